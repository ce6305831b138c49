"""One optimiser step: an objective that does not depend on how its batch was cut."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from panollava.batch import Batch
from panollava.stages.protocol import Stage
from panollava.training.distributed import Processes
from panollava.training.parallel import whole
from panollava.training.precision import Compute

MAX_OVERFLOWS = 20
"""fp16 steps in a row that may overflow while the scaler looks for its scale."""

_BAD = "not finite"
"""Stands among the sums for the number of micro-batches whose loss is not finite."""


class OptimiserStep:
    """Forward and backward over a window of micro-batches, then one update.

    Each loss is divided by its count over the whole window and all processes, so that a batch of 8, two of 4
    accumulated, and two processes with 4 each have the same loss and the same update.

    Args:
        stage: gives counts and trained parameters.
        module: the stage, or its wrapper; it is what runs.
        optimizer, scaler: updated by every step.
        compute: device and number format.
        procs: ranks to sum over.
        clip_norm: largest gradient norm; 0 leaves gradients alone.
    """

    def __init__(
        self,
        stage: Stage,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        compute: Compute,
        procs: Processes,
        clip_norm: float,
    ) -> None:
        self.stage, self.module = stage, module
        self.optimizer, self.scaler = optimizer, scaler
        self.compute, self.procs, self.clip_norm = compute, procs, clip_norm
        self.parameters = list(stage.trained().values())
        self.overflows = 0

    def __call__(self, window: list[Batch], lr: float) -> dict[str, float]:
        """Takes one step.

        Args:
            window: the micro-batches of this process.
            lr: learning rate of the step.

        Returns:
            ``loss`` (their sum), each loss, the metrics and ``grad_norm``.

        Raises:
            ValueError: a loss or gradient that is not finite; the message names the samples.
        """
        counts: dict[str, float] = {}
        for batch in window:
            for name, count in self.stage.counts(batch).items():
                counts[name] = counts.get(name, 0.0) + count
        totals = self.procs.sum(counts)
        sums: dict[str, Tensor] = {}
        per_batch: list[Tensor] = []
        for index, batch in enumerate(window):
            with self._sync_on_last(index == len(window) - 1), self.compute.autocast():
                output = self.module(batch)
                losses = {name: value / max(totals[name], 1.0) for name, value in output.losses.items()}
                loss = torch.stack(list(losses.values())).sum()
                self.scaler.scale(loss * self.procs.world_size).backward()
            per_batch.append(loss.detach())
            for name, value in {**output.losses, **output.metrics}.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        names = sorted(sums)
        values = dict(zip(names, torch.stack([sums[n].float() for n in names]).tolist(), strict=True))
        bad = [not fine for fine in torch.isfinite(torch.stack(per_batch)).tolist()]
        values = self.procs.sum({**values, _BAD: float(sum(bad))})
        norm = self._update(window, bad, bad_anywhere=values.pop(_BAD) > 0)
        return {**summarise(values, totals), "grad_norm": norm}

    def _update(self, window: list[Batch], bad: list[bool], *, bad_anywhere: bool) -> float:
        """Clips and steps; every process comes to the same decisions, since all have the norm of all gradients."""
        self.scaler.unscale_(self.optimizer)
        limit = self.clip_norm or math.inf
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters, limit)))
        overflow = self.scaler.is_enabled() and not bad_anywhere and not math.isfinite(norm)
        self.overflows = self.overflows + 1 if overflow else 0
        if (not overflow and (bad_anywhere or not math.isfinite(norm))) or self.overflows > MAX_OVERFLOWS:
            raise ValueError(self._not_finite(window, bad, bad_anywhere=bad_anywhere))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _not_finite(self, window: list[Batch], bad: list[bool], *, bad_anywhere: bool) -> str:
        culprits = [b for b, is_bad in zip(window, bad, strict=True) if is_bad] if bad_anywhere else window
        own = json.dumps([name for batch in culprits for name in batch.sample_ids])
        names = [name for text in self.procs.texts(own) for name in json.loads(text)]
        what = "loss" if bad_anywhere else "gradient"
        return (
            f"The {what} of stage {self.stage.name!r} is not finite in the step with samples {', '.join(names[:16])}"
            f"{' …' if len(names) > 16 else ''}; the weights were not changed. Look at these samples, lower "
            f"stage.{self.stage.name}.lr, or use trainer.precision=fp32."
        )

    def _sync_on_last(self, is_last: bool) -> contextlib.AbstractContextManager:
        """DDP's gradients travel between processes once a window, with its last micro-batch.

        FSDP's do each time: to keep them whole until the last one would take the memory that it saves.
        """
        if isinstance(self.module, DistributedDataParallel) and not is_last:
            return self.module.no_sync()
        return contextlib.nullcontext()


def summarise(sums: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """Sums divided by their counts, and ``loss``: the sum of all losses.

    Args:
        sums: a loss by its name, a metric as ``<loss>/<term>``.
        counts: of each loss.
    """
    values = {name: value / max(counts[name.split("/")[0]], 1.0) for name, value in sums.items()}
    if not values:
        return {}
    return {"loss": sum(values[name] for name in counts if name in values), **values}
