"""When memory runs out: the message that says where, at which sizes, and which settings need less."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import psutil
import torch

from panollava.assemble.run import Run
from panollava.assemble.stage import AnyStage
from panollava.checkpoint import LAST, follow
from panollava.training.options import StageOptions

_SIGNS = (
    "DefaultCPUAllocator",  # torch on the CPU
    "out of memory",  # CUDA's and Apple's own words
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Insufficient memory",  # OpenCV
    "killed by signal: Killed",  # a loader's worker, which the system ended
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, NumPy, OpenCV or a loader means that there was no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, Exception) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def explained(message: Callable[[], str]) -> Iterator[None]:
    """Turns running out of memory inside into a message.

    Raises:
        ValueError: with the message.
    """
    try:
        yield
    except Exception as error:
        # Another process's last words are not about this one's memory.
        if isinstance(error, ValueError | ConnectionError) or not is_out_of_memory(error):
            raise
        raise ValueError(message()) from error


def smaller(options: StageOptions) -> StageOptions | None:
    """The next smaller batch with as many samples an optimiser step, or None where it is 1 already."""
    if options.batch_size == 1:
        return None
    together = options.batch_size * options.accumulate
    size = max(size for size in range(1, options.batch_size) if together % size == 0)
    return replace(options, batch_size=size, accumulate=together // size)


def step_too_large(run: Run, name: str, stage: AnyStage, options: StageOptions) -> str:
    """What to say when a step, or a batch of the validation, needs more memory than there is."""
    doing = "training" if stage.training else "validating"
    text = "" if name == "vision" else f", {run.backbones.image_tokens} image and up to {options.max_text_length} text"
    tokens = f"{text} tokens" if text else ""
    return (
        f"Out of memory in stage {name}, {doing} with stage.{name}.batch_size={options.batch_size} "
        f"({len(run.backbones.crop.camera_rows)} views a sample{tokens}; {_taken(run)}). "
        f"{_batch_advice(name, stage, options)} {_other_advice(run, name, stage, options)}{_resumed_advice(run, name)}"
    )


def model_too_large(run: Run, name: str) -> str:
    """What to say when memory runs out before the first step."""
    return (
        f"Out of memory in stage {name}, before its first step: the model itself does not fit ({_taken(run)}). Use "
        "smaller backbones, trainer.precision=bf16, language.load_in_4bit=true on a GPU, or fewer trainable blocks."
    )


def answers_too_large(batch_size: int, max_new_tokens: int, *, kept: bool = False) -> str:
    """What to say when answering needs more memory than there is.

    Args:
        batch_size: questions answered at once.
        max_new_tokens: longest answer.
        kept: whether the answers so far are kept for the next start.
    """
    if batch_size > 1:
        half = batch_size // 2
        lower = f"batch_size={half} (evaluation.batch_size={half} in training) needs less and gives the same answers"
    else:
        lower = "The batch is 1 already"
    again = " The answers so far are kept, and the same command goes on with the others." if kept else ""
    return (
        f"Out of memory while answering {batch_size} questions at once with up to {max_new_tokens} new tokens each. "
        f"{lower}; a smaller max_new_tokens or crop.overlap, or device=cpu, need less too.{again}"
    )


def _batch_advice(name: str, stage: AnyStage, options: StageOptions) -> str:
    less = smaller(options)
    if less is None:
        return "The batch is 1 already."
    if stage.coupled:
        return (
            f"stage.{name}.batch_size={less.batch_size} needs less, but is another objective: {stage.coupled} are "
            "taken over a whole micro-batch, and accumulating does not make up for it."
        )
    return f"stage.{name}.batch_size={less.batch_size} stage.{name}.accumulate={less.accumulate} keeps the objective."


def _other_advice(run: Run, name: str, stage: AnyStage, options: StageOptions) -> str:
    trainer, cfg = run.trainer, run.cfg
    recomputable = name != "vision" or options.vision_trainable_blocks != 0
    ways = []
    if recomputable and not trainer.checkpoint_activations:
        ways.append("trainer.checkpoint_activations=true")
    if name != "vision":
        ways.append(f"a smaller stage.{name}.max_text_length ({options.max_text_length})")
    if cfg.crop.get("overlap"):
        ways.append(f"a smaller crop.overlap ({cfg.crop.overlap})")
    if run.compute.dtype is torch.float32:
        ways.append("trainer.precision=bf16")
    if options.vision_trainable_blocks != 0 or options.language_trainable_blocks != 0:
        ways.append("fewer trainable blocks")
    if not trainer.auto_batch and not stage.coupled and options.batch_size > 1:
        return f"{_joined(ways)} need less too; trainer.auto_batch=true finds a batch that fits."
    return f"{_joined(ways)} need less too." if ways else ""


def _resumed_advice(run: Run, name: str) -> str:
    """Which settings go on with what is saved: others make another run of it."""
    keys = ("auto_batch", "checkpoint_activations")
    ways = [f"trainer.{key}=true" for key in keys if not getattr(run.trainer, key)]
    if not ways or follow(run.experiment.stage_folder(name) / LAST) is None:
        return ""
    return f" With {' or '.join(ways)} the same command goes on from what is saved; the others begin anew."


def _joined(ways: list[str]) -> str:
    text = ", ".join(ways)
    return text[:1].upper() + text[1:] if text.startswith("a ") else text


def _taken(run: Run) -> str:
    """Memory of the device that this process has taken, and all there is."""
    if run.compute.device.type == "cuda":
        total = torch.cuda.get_device_properties(run.compute.device).total_memory
        return f"{torch.cuda.max_memory_allocated(run.compute.device) / 1e9:.1f} of {total / 1e9:.1f} GB were taken"
    memory = psutil.virtual_memory()
    taken = psutil.Process().memory_info().rss
    return f"this process has {taken / 1e9:.1f} of {memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} are free"
