"""trainer.auto_batch: tries, before the first step, which batch fits, with as many samples an optimiser step."""

from __future__ import annotations

import gc

import torch
from torch.nn.functional import pad

from panollava.assemble.run import Run
from panollava.assemble.stage import AnyStage
from panollava.batch import Batch
from panollava.logs import LOG
from panollava.pipeline.memory import is_out_of_memory, smaller, step_too_large
from panollava.training.options import StageOptions

MOMENTS = 3
"""Copies of the weights that train which an optimiser step holds: AdamW's two moments, and one while it works."""

BUCKETS = 1
"""Copies that DDP holds beside them: of the gradients, to send them."""


def fit_batch(run: Run, name: str, stage: AnyStage, options: StageOptions) -> StageOptions:
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


def _fits(run: Run, stage: AnyStage, batch: Batch) -> bool:
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


def _pass(run: Run, stage: AnyStage, trained: list[torch.nn.Parameter], batch: Batch) -> None:
    copies = MOMENTS + (BUCKETS if run.procs.world_size > 1 else 0)
    aside = [torch.zeros_like(parameter) for parameter in trained for _ in range(copies)]
    with run.compute.autocast():
        output = stage(batch.to(run.compute.device))
    torch.stack(list(output.losses.values())).sum().backward()
    del aside
