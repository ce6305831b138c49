"""Going on with another number of processes: the same samples in every optimiser step, shared out anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from panollava.logs import LOG
from panollava.training.options import StageOptions


@dataclass(frozen=True)
class Share:
    """How the samples of an optimiser step were shared out.

    Attributes:
        processes: number of processes.
        batch_size: samples of a micro-batch in each.
        accumulate: micro-batches of a step.
    """

    processes: int
    batch_size: int
    accumulate: int

    @classmethod
    def of(cls, options: StageOptions, processes: int) -> Share:
        """As a stage is told to."""
        return cls(processes, options.batch_size, options.accumulate)

    @property
    def samples(self) -> int:
        """Samples of an optimiser step."""
        return self.processes * self.batch_size * self.accumulate


def same_steps(
    options: StageOptions, saved: Mapping[str, Any] | None, processes: int, *, coupled: bool
) -> StageOptions:
    """Batch size and accumulation with which a run goes on as it began.

    A step keeps its samples, so that the objective, the schedule and the place in the epoch stay what they were. The
    micro-batch of a process does not grow, unless the objective is of the micro-batch of all processes.

    Args:
        options: of the config.
        saved: ``share`` of the checkpoint that is resumed.
        processes: of now.
        coupled: whether the objective is taken over a whole micro-batch of all processes.

    Raises:
        ValueError: so many processes cannot share a step's samples equally.
    """
    if saved is None:
        return options
    before = Share(**saved)
    if before.processes == processes:
        return replace(options, batch_size=before.batch_size, accumulate=before.accumulate)
    together = before.processes * before.batch_size
    whole = together if coupled else before.samples
    if whole % processes:
        possible = ", ".join(str(count) for count in range(1, whole + 1) if whole % count == 0)
        what = "micro-batch" if coupled else "optimiser step"
        raise ValueError(
            f"The run that is resumed took {whole} samples in each {what} with {before.processes} processes, which "
            f"{processes} processes cannot share equally. Go on with one of {possible} processes."
        )
    each = whole // processes
    if coupled:
        result = replace(options, batch_size=each, accumulate=before.accumulate)
    else:
        size = max(size for size in range(1, before.batch_size + 1) if each % size == 0)
        result = replace(options, batch_size=size, accumulate=each // size)
    LOG.info(
        "Resumed with %d processes in place of %d: batch size %d and accumulation %d in place of %d and %d, so that a "
        "step has %d samples as before.",
        processes, before.processes, result.batch_size, result.accumulate, before.batch_size, before.accumulate,
        before.samples,
    )  # fmt: skip
    return result
