"""Detects a stage that has stopped learning, and logs each concern once."""

import math
from collections.abc import Mapping

from panollava.logs import LOG
from panollava.stages.protocol import Stage

STILL_STEPS = 20
"""Steps in a row with the same loss, on different samples, after which a stage counts as stuck."""

STILL_VALIDATIONS = 3
"""Validations in a row with the same loss."""

_SAME = 1e-6
"""Relative difference below which losses are the same; float32 resolves no smaller one."""


class TrainingMonitor:
    """Concerns about a stage while it trains; each is logged when it first arises."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._repeated: dict[str, tuple[float, int]] = {}
        self._current: dict[str, str] = {}
        self._logged: set[str] = set()

    @property
    def concerns(self) -> list[str]:
        """The concerns that hold at present."""
        return list(self._current.values())

    def step(self, loss: float, grad_norm: float, lr: float) -> None:
        """Call it after an optimiser step, with the gradient norm before clipping."""
        count, text = self._repeats("steps", loss), None
        if count >= STILL_STEPS:
            text = (
                f"the loss has been {loss:.6g} in each of the last {count} steps, on different samples (gradient norm "
                f"{grad_norm:.1e}, lr {lr:.1e}): the weights get no useful gradient, as after a collapse or with a far "
                f"too high learning rate. Start again (overwrite=true) with a lower stage.{self.stage.name}.lr."
            )
        self._update("steps", text)

    def validation(self, metrics: Mapping[str, float]) -> None:
        """Call it after a validation, with its means."""
        count, text = self._repeats("validations", metrics["loss"]), None
        if count >= STILL_VALIDATIONS:
            text = (
                f"the validation loss has been {metrics['loss']:.6g} in each of the last {count} validations: the "
                f"stage no longer learns. If it never did, change stage.{self.stage.name}.lr; else use fewer "
                f"stage.{self.stage.name}.epochs."
            )
        self._update("validations", text)
        self._update("stage", self.stage.concern(metrics))

    def _repeats(self, kind: str, value: float) -> int:
        """How often in a row the value was the same, this time included."""
        first, count = self._repeated.get(kind, (math.nan, 0))
        is_same = abs(value - first) <= _SAME * abs(first)
        self._repeated[kind] = (first, count + 1) if is_same else (value, 1)
        return self._repeated[kind][1]

    def _update(self, kind: str, text: str | None) -> None:
        if text is None:
            self._current.pop(kind, None)
            return
        self._current[kind] = text
        if kind not in self._logged:
            self._logged.add(kind)
            LOG.warning("Stage %s: %s", self.stage.name, text)
