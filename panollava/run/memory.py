"""Memory of a stage: its estimate, the automatic batch size, and the messages when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn
from torch.nn.functional import pad

from panollava.batch import Batch
from panollava.checkpoint import LAST, follow
from panollava.logs import LOG, in_words
from panollava.run.cost import Memory, MicroBatch, Setting, memory
from panollava.stages.protocol import Stage
from panollava.training.options import StageOptions

if TYPE_CHECKING:  # a run needs Hydra, and what is here does not
    from panollava.run.run import Run


def forecast(run: Run, name: str, stage: Stage, options: StageOptions) -> None:
    """Logs how many parameters train, how long the sequences are, and the estimated memory."""
    total, share = sum(map(_count, stage.parameters())), sum(map(_count, stage.trained().values()))
    LOG.info("Stage %s trains %s of %s parameters (%.2f %%).", name, f"{share:,}", f"{total:,}", 100 * share / total)
    if stage.composite is not None:
        image, text = run.backbones.image_tokens, options.max_text_length
        positions = getattr(stage.composite.config.get_text_config(), "max_position_embeddings", None)
        LOG.info(
            "Its sequences: %d image tokens and up to %d of text, %d of %s positions.",
            image, text, image + text, "unlimited" if positions is None else positions,
        )  # fmt: skip
    found, free, size = estimate(run, stage, options), _free(run.compute.device), partial(in_words, base=1000)
    taken, updates = _taken(run.compute.device), found.gradients + found.optimiser  # the model is in what is taken
    LOG.info(
        "Estimated memory: %s in all. Taken are %s, %s of them by the model; gradients and optimiser take %s, a batch "
        "of %d %s. %s are free.",
        size(taken + updates + found.step), size(taken), size(found.weights), size(updates),
        options.batch_size, size(found.step), size(free),
    )  # fmt: skip
    if updates + found.step > free:  # the model is loaded already
        LOG.warning(
            "This may not fit: use a smaller stage.%s.batch_size, trainer.checkpoint_activations=true or "
            "trainer.auto_batch=true.",
            name,
        )


def check_whole(run: Run) -> None:
    """Warns where a model that trains in shards is too large for the one GPU on which it is evaluated."""
    device = run.compute.device
    if not run.is_sharded or device.type != "cuda":
        return
    parts: tuple[nn.Module, ...] = (run.backbones.tower.model, run.backbones.language)
    whole = sum(weight.numel() for part in parts for weight in part.parameters()) * run.compute.dtype.itemsize
    there, size = torch.cuda.get_device_properties(device).total_memory, partial(in_words, base=1000)
    if whole > there:
        LOG.warning(
            "The evaluation after training opens the whole model on one GPU: its weights take %s of %s. Use "
            "evaluation.enabled=false, and afterwards python -m panollava.eval <run> device=cpu.",
            size(whole), size(there),
        )  # fmt: skip


def estimate(run: Run, stage: Stage, options: StageOptions) -> Memory:
    """Memory of a stage by part (see ``panollava.run.cost``), for the longest texts."""
    return memory(stage, MicroBatch.of(run, stage, options, options.max_text_length), Setting.of(run))


def _count(parameter: nn.Parameter) -> int:
    """Weights in a tensor; two of four bits share a byte."""
    return parameter.numel() * (2 if parameter.dtype is torch.uint8 else 1)


def _taken(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def _free(device: torch.device) -> int:
    if device.type == "cuda":  # what the allocator holds of earlier stages is used again
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return int(psutil.virtual_memory().available)


# trainer.auto_batch

PROBE_MOMENTS = 3
"""Copies of the trained weights that an optimiser step holds: AdamW's two moments, and one for its intermediates."""

BUCKETS = 1
"""Copies of the gradients that DDP holds beside them, to send them."""


def auto_batch_size(run: Run, name: str, stage: Stage, options: StageOptions) -> StageOptions:
    """The largest micro-batch that fits in memory, with batch times accumulation as in ``options``.

    A trial is a forward and backward pass of samples with the longest texts, with as much memory set aside as the
    optimiser will take. It changes no weights, gradients or random state. Processes try together, and take a batch
    only where it fits for all of them.

    Raises:
        ValueError: not even a batch of one sample fits.
    """
    if stage.coupled:
        LOG.info(
            "trainer.auto_batch leaves stage.%s.batch_size=%d as it is: %s are taken over a whole micro-batch, so that "
            "a smaller one would be another objective.",
            name, options.batch_size, stage.coupled,
        )  # fmt: skip
        return options
    window = next(
        iter(run.batches(name, options, share=False, places=stage.places).windows(0))
    )  # shared ones need less
    batch = longest(window[0], run.backbones.image_tokens + options.max_text_length)
    candidate: StageOptions | None = options
    while candidate is not None:
        fits = _fits(run, stage, batch.first(candidate.batch_size))
        if not run.procs.sum({"failed": float(not fits)})["failed"]:
            if candidate is not options:
                LOG.warning(
                    "stage.%s.batch_size=%d does not fit into memory: it is %d, accumulated %d times, which is the "
                    "same objective.",
                    name, options.batch_size, candidate.batch_size, candidate.accumulate,
                )  # fmt: skip
            return candidate
        last, candidate = candidate, smaller(candidate)
    raise ValueError(step_too_large(run, name, stage, last))


def smaller(options: StageOptions) -> StageOptions | None:
    """The next smaller batch with as many samples an optimiser step, or None where it is 1 already."""
    if options.batch_size == 1:
        return None
    together = options.batch_size * options.accumulate
    size = max(size for size in range(1, options.batch_size) if together % size == 0)
    return replace(options, batch_size=size, accumulate=together // size)


def longest(batch: Batch, length: int) -> Batch:
    """The batch with every text padded to ``length`` tokens, all of which are targets."""
    if batch.input_ids is None or batch.attention_mask is None or batch.labels is None:
        return batch
    more = max(0, length - batch.input_ids.shape[1])
    token = int(batch.input_ids[0, -1])
    return replace(
        batch,
        input_ids=pad(batch.input_ids, (0, more), value=token),
        attention_mask=pad(batch.attention_mask, (0, more), value=1),
        labels=pad(batch.labels, (0, more), value=token),
    )


def _fits(run: Run, stage: Stage, batch: Batch) -> bool:
    """Whether a forward and backward pass of a batch finds memory."""
    trained = list(stage.trained().values())
    devices = [run.compute.device] if run.compute.device.type == "cuda" else []
    stage.train()
    with torch.random.fork_rng(devices):
        try:
            _forward_backward(run, stage, trained, batch)
            fits = True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False
    for parameter in trained:
        parameter.grad = None
    gc.collect()  # tensors that the error's frames refer to
    if devices:
        torch.cuda.empty_cache()
    return fits


def _forward_backward(run: Run, stage: Stage, trained: list[torch.nn.Parameter], batch: Batch) -> None:
    copies = PROBE_MOMENTS + (BUCKETS if run.procs.world_size > 1 else 0)
    set_aside = [torch.zeros_like(parameter) for parameter in trained for _ in range(copies)]
    with run.compute.autocast():
        output = stage(batch.to(run.compute.device))
    torch.stack(list(output.losses.values())).sum().backward()
    del set_aside


# Running out of memory

_SIGNS = (
    "DefaultCPUAllocator",  # torch on the CPU
    "out of memory",  # CUDA and Apple's MPS
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
    """Turns errors for lack of memory into a `ValueError` with the message."""
    try:
        yield
    except Exception as error:
        # The error message of another process that failed is not about this one's memory.
        if isinstance(error, ValueError | ConnectionError) or not is_out_of_memory(error):
            raise
        raise ValueError(message()) from error


def step_too_large(run: Run, name: str, stage: Stage, options: StageOptions) -> str:
    """The message where a step, or a batch of the validation, needs more memory than there is."""
    doing = "training" if stage.training else "validating"
    tokens = ""
    if run.stages[name].targets:
        tokens = f", {run.backbones.image_tokens} image and up to {options.max_text_length} text tokens"
    return (
        f"Out of memory in stage {name}, {doing} with stage.{name}.batch_size={options.batch_size} "
        f"({len(run.backbones.crop.camera_rows)} views a sample{tokens}; {_memory_used(run)}). "
        f"{_batch_advice(name, stage, options)} {_other_advice(run, name, stage, options)}{_resume_advice(run, name)}"
    )


def model_too_large(run: Run, name: str) -> str:
    """The message where memory runs out before the first step."""
    return (
        f"Out of memory in stage {name}, before its first step: the model itself does not fit ({_memory_used(run)}). "
        "Use smaller backbones, trainer.precision=bf16, language.load_in_4bit=true on a GPU, or fewer trainable blocks."
    )


def answers_too_large(batch_size: int, max_new_tokens: int, *, kept: bool = False) -> str:
    """The message where answering needs too much memory; ``kept``: the next start continues from the answers so far."""
    lower = "The batch is 1 already"
    if batch_size > 1:
        half = batch_size // 2
        lower = f"batch_size={half} (evaluation.batch_size={half} in training) needs less and gives the same answers"
    again = " The answers so far are kept: run the same command for the others." if kept else ""
    return (
        f"Out of memory while answering {batch_size} questions at once with up to {max_new_tokens} new tokens each. "
        f"{lower}; a smaller max_new_tokens or crop.overlap, or device=cpu, need less too.{again}"
    )


def _batch_advice(name: str, stage: Stage, options: StageOptions) -> str:
    less = smaller(options)
    if less is None:
        return "The batch is 1 already."
    if stage.coupled:
        return (
            f"stage.{name}.batch_size={less.batch_size} needs less, but is another objective: {stage.coupled} are "
            "taken over a whole micro-batch, and accumulation does not replace it."
        )
    return f"stage.{name}.batch_size={less.batch_size} stage.{name}.accumulate={less.accumulate} keeps the objective."


def _other_advice(run: Run, name: str, stage: Stage, options: StageOptions) -> str:
    trainer, reads_text = run.trainer, run.stages[name].targets is not None
    has_blocks = options.vision_trainable_blocks != 0 or options.language_trainable_blocks != 0
    recomputable = reads_text or options.vision_trainable_blocks != 0
    ways = {
        "trainer.checkpoint_activations=true": recomputable and not trainer.checkpoint_activations,
        f"a smaller stage.{name}.max_text_length ({options.max_text_length})": reads_text,
        f"a smaller crop.overlap ({run.cfg.crop.get('overlap')})": bool(run.cfg.crop.get("overlap")),
        "trainer.precision=bf16": run.compute.dtype is torch.float32,
        "fewer trainable blocks": has_blocks,
    }
    text = ", ".join(way for way, helps in ways.items() if helps)
    text = text[:1].upper() + text[1:] if text.startswith("a ") else text
    if not trainer.auto_batch and not stage.coupled and options.batch_size > 1:
        return f"{text} need less too; trainer.auto_batch=true finds a batch that fits."
    return f"{text} need less too." if text else ""


def _resume_advice(run: Run, name: str) -> str:
    """Which settings resume the run: all others begin another one."""
    keys = ("auto_batch", "checkpoint_activations")
    ways = [f"trainer.{key}=true" for key in keys if not getattr(run.trainer, key)]
    if not ways or follow(run.experiment.stage_folder(name) / LAST) is None:
        return ""
    return f" With {' or '.join(ways)} the same command resumes from what is saved; the others begin anew."


def _memory_used(run: Run) -> str:
    """Memory of the device that this process has taken, and all there is."""
    if run.compute.device.type == "cuda":
        total = torch.cuda.get_device_properties(run.compute.device).total_memory
        return f"{torch.cuda.max_memory_allocated(run.compute.device) / 1e9:.1f} of {total / 1e9:.1f} GB were taken"
    whole, taken = psutil.virtual_memory(), _taken(run.compute.device)
    return f"this process has {taken / 1e9:.1f} of {whole.total / 1e9:.1f} GB, {whole.available / 1e9:.1f} are free"
