"""Watches a stage for signs that it learns nothing, and says so once each."""

from __future__ import annotations

from collections.abc import Mapping

from panollava.logs import LOG
from panollava.stages.protocol import Stage

STILL_STEPS = 20
"""Optimiser steps, on different samples, over which a loss that learns does not stay the same."""

STILL_VALIDATIONS = 3
"""Validations in a row, likewise."""

_SAME = 1e-6
"""Relative difference of losses that are the same: float32 tells no smaller one."""


class Watch:
    """The concerns about a stage while it trains; each is logged when it first arises."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._steps, self._validations = _Stillness(), _Stillness()
        self._now: dict[str, str] = {}
        self._told: set[str] = set()

    @property
    def concerns(self) -> list[str]:
        """Those that hold now."""
        return list(self._now.values())

    def step(self, loss: float, grad_norm: float, lr: float) -> None:
        """After an optimiser step.

        Args:
            loss: over its samples.
            grad_norm: before clipping.
            lr: learning rate.
        """
        steps = self._steps.add(loss)
        text = None
        if steps >= STILL_STEPS:
            text = (
                f"the loss has been {loss:.6g} in each of the last {steps} steps, whatever their samples (gradient "
                f"norm {grad_norm:.1e}, lr {lr:.1e}): nothing to learn from reaches the weights, as after a collapse "
                f"or with a far too high learning rate. Start again (overwrite=true) with a lower "
                f"stage.{self.stage.name}.lr."
            )
        self._note("steps", text)

    def validation(self, metrics: Mapping[str, float]) -> None:
        """After a validation, with its means."""
        count = self._validations.add(metrics["loss"])
        text = None
        if count >= STILL_VALIDATIONS:
            text = (
                f"the validation loss has been {metrics['loss']:.6g} in each of the last {count} validations: the "
                f"stage does not learn any more. If it never did, change stage.{self.stage.name}.lr; else fewer "
                f"stage.{self.stage.name}.epochs would do."
            )
        self._note("validations", text)
        self._note("stage", self.stage.concern(metrics))

    def _note(self, kind: str, text: str | None) -> None:
        if text is None:
            self._now.pop(kind, None)
            return
        self._now[kind] = text
        if kind not in self._told:
            self._told.add(kind)
            LOG.warning("Stage %s: %s", self.stage.name, text)


class _Stillness:
    """Counts how often in a row a number was the same."""

    def __init__(self) -> None:
        self.value, self.count = float("nan"), 0

    def add(self, value: float) -> int:
        is_same = abs(value - self.value) <= _SAME * abs(self.value)
        self.count = self.count + 1 if is_same else 1
        if not is_same:
            self.value = value
        return self.count
