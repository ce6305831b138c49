"""trainer.auto_batch: tries, before the first step, which batch fits, with as many samples an optimiser step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import psutil
import torch
from torch import nn
from torch.nn.functional import pad

from panollava.batch import Batch
from panollava.checkpoint import LAST, follow
from panollava.logs import LOG, in_words
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.run.run import Run
from panollava.stages.protocol import Stage
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


def step_too_large(run: Run, name: str, stage: Stage, options: StageOptions) -> str:
    """What to say when a step, or a batch of the validation, needs more memory than there is."""
    doing = "training" if stage.training else "validating"
    tokens = ""
    if run.stages[name].targets:
        tokens = f", {run.backbones.image_tokens} image and up to {options.max_text_length} text tokens"
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


def _batch_advice(name: str, stage: Stage, options: StageOptions) -> str:
    less = smaller(options)
    if less is None:
        return "The batch is 1 already."
    if stage.coupled:
        return (
            f"stage.{name}.batch_size={less.batch_size} needs less, but is another objective: {stage.coupled} are "
            "taken over a whole micro-batch, and accumulating does not make up for it."
        )
    return f"stage.{name}.batch_size={less.batch_size} stage.{name}.accumulate={less.accumulate} keeps the objective."


def _other_advice(run: Run, name: str, stage: Stage, options: StageOptions) -> str:
    trainer, cfg, reads_text = run.trainer, run.cfg, run.stages[name].targets is not None
    recomputable = reads_text or options.vision_trainable_blocks != 0
    ways = []
    if recomputable and not trainer.checkpoint_activations:
        ways.append("trainer.checkpoint_activations=true")
    if reads_text:
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


GRADIENT, MOMENTS = 4, 8
"""Bytes of a weight's gradient and of AdamW's two moments, all fp32."""


@dataclass(frozen=True)
class Memory:
    """What a stage holds in memory (bytes), about.

    Attributes:
        model: its weights, as they lie.
        optimiser: gradients and AdamW's state of what trains.
        step: what a micro-batch keeps for the backward pass.
    """

    model: int
    optimiser: int
    step: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.model + self.optimiser + self.step


def forecast(run: Run, name: str, stage: Stage, options: StageOptions) -> None:
    """Logs how much of the model trains, how long its sequences are, and what it will take of the memory.

    Args:
        run: the run.
        name: the stage's name.
        stage: the stage, on its device.
        options: with the batch that will be used.
    """
    total, share = sum(map(_count, stage.parameters())), sum(map(_count, stage.trained().values()))
    LOG.info("Stage %s trains %s of %s parameters (%.2f %%).", name, f"{share:,}", f"{total:,}", 100 * share / total)
    if stage.composite is not None:
        image, text = run.backbones.image_tokens, options.max_text_length
        positions = getattr(stage.composite.config.get_text_config(), "max_position_embeddings", None)
        LOG.info(
            "Its sequences: %d image tokens and up to %d of text, %d of %s positions.",
            image, text, image + text, "unlimited" if positions is None else positions,
        )  # fmt: skip
    memory, free, told = estimate(run, stage, options), _free(run.compute.device), partial(in_words, base=1000)
    LOG.info(
        "Its memory, about: model %s, gradients and optimiser %s, a batch of %d %s; %s are free.",
        told(memory.model), told(memory.optimiser), options.batch_size, told(memory.step), told(free),
    )  # fmt: skip
    if memory.optimiser + memory.step > free:  # the model is there already
        LOG.warning(
            "That may not fit: a smaller stage.%s.batch_size, trainer.checkpoint_activations=true or "
            "trainer.auto_batch=true would help.",
            name,
        )


def estimate(run: Run, stage: Stage, options: StageOptions) -> Memory:
    """Memory of a stage, from its weights and the inputs and outputs of its linear layers.

    Activations of a layer are counted as what goes in and what comes out, for every token that passes it. Attention
    scores, norms and what the allocator loses are not counted, so the truth may be twice as much.

    Args:
        run: for the views, the image tokens and the type of activations.
        stage: with what trains switched on.
        options: batch size and text length.
    """
    trained = sum(parameter.numel() for parameter in stage.trained().values())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in stage.parameters())
    vision, model = stage.vision, stage.composite
    views = options.batch_size * len(run.backbones.crop.camera_rows)
    patches, tokens = vision.tower.grid[0] * vision.tower.grid[1], vision.tokens_per_view
    blocks = list(vision.tower.blocks)
    learning = [block for block in blocks if any(weight.requires_grad for weight in block.parameters())]
    passing = max((_width(block) for block in blocks), default=0)  # a frozen block forgets what it computed
    numbers = views * patches * (passing + sum(map(_width, learning)))
    numbers += views * max(patches, tokens) * _width(vision.resampler)
    own = [part for part in stage.children() if part not in (vision, model)]
    numbers += views * tokens * sum(map(_width, own))
    if model is not None:
        numbers += views * tokens * _width(model.projector)
        numbers += _language_numbers(run, model, options)
    step = numbers * run.compute.dtype.itemsize
    return Memory(weights, trained * (GRADIENT + MOMENTS), step)


def _language_numbers(run: Run, model: PanoLlavaForConditionalGeneration, options: StageOptions) -> int:
    sequence = options.batch_size * (run.backbones.image_tokens + options.max_text_length)
    config = model.config.get_text_config()
    widths = [_width(block) for block in model.language_blocks]
    if run.trainer.checkpoint_activations:  # each block keeps its input, and one at a time all it computes
        widths = [config.hidden_size] * len(widths) + [max(widths)]
    logits = 2 * options.batch_size * options.max_text_length * config.vocab_size  # and their gradient
    return sequence * sum(widths) + logits * 4 // run.compute.dtype.itemsize  # fp32


def _width(module: nn.Module) -> int:
    """Numbers that go into and come out of a module's linear layers for one token."""
    return sum(one.in_features + one.out_features for one in module.modules() if isinstance(one, nn.Linear))


def _count(parameter: nn.Parameter) -> int:
    """Weights in a tensor; two of four bits share a byte."""
    return parameter.numel() * (2 if parameter.dtype is torch.uint8 else 1)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


PROBE_MOMENTS = 3
"""Copies of the weights that train which an optimiser step holds: AdamW's two moments, and one while it works."""

BUCKETS = 1
"""Copies that DDP holds beside them: of the gradients, to send them."""


def fit_batch(run: Run, name: str, stage: Stage, options: StageOptions) -> StageOptions:
    """The largest batch that fits, found by trying the one asked for, then the next that divides the samples of a step.

    A trial is a forward and backward pass of the longest samples there may be, with as much memory set aside as the
    optimiser will take. Weights, gradients and random state are afterwards as they were. Processes try together and
    take a batch only where all of them can.

    Args:
        run: the run.
        name: the stage's name.
        stage: the stage, on its device.
        options: with the batch and accumulation asked for, or of the run that is resumed, which keeps them if it can.

    Returns:
        The options with the batch to use; batch times accumulation is what was asked for.

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
    window = next(iter(run.batches(name, options).windows(0)))
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


def longest(batch: Batch, length: int) -> Batch:
    """The batch with every text as long as texts may be, each added token one to be learnt."""
    if batch.input_ids is None or batch.attention_mask is None or batch.labels is None:
        return batch
    more = max(0, length - batch.input_ids.shape[1])
    token = int(batch.input_ids[0, -1])
    return Batch(
        batch.sample_ids,
        batch.pixel_values,
        batch.cameras,
        batch.view_mask,
        pad(batch.input_ids, (0, more), value=token),
        pad(batch.attention_mask, (0, more), value=1),
        pad(batch.labels, (0, more), value=token),
        batch.vision_features,
    )


def _fits(run: Run, stage: Stage, batch: Batch) -> bool:
    """Whether a forward and backward pass of a batch finds memory."""
    trained = list(stage.trained().values())
    devices = [run.compute.device] if run.compute.device.type == "cuda" else []
    stage.train()
    with torch.random.fork_rng(devices):
        try:
            _pass(run, stage, trained, batch)
            fits = True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False
    for parameter in trained:
        parameter.grad = None
    gc.collect()  # what an error held on to
    if devices:
        torch.cuda.empty_cache()
    return fits


def _pass(run: Run, stage: Stage, trained: list[torch.nn.Parameter], batch: Batch) -> None:
    copies = PROBE_MOMENTS + (BUCKETS if run.procs.world_size > 1 else 0)
    aside = [torch.zeros_like(parameter) for parameter in trained for _ in range(copies)]
    with run.compute.autocast():
        output = stage(batch.to(run.compute.device))
    torch.stack(list(output.losses.values())).sum().backward()
    del aside
