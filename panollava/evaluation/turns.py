"""Whether answers that name directions turn when the panorama does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from panollava.evaluation.answers import normalise
from panollava.evaluation.predictions import Prediction


@dataclass(frozen=True)
class TurnConsistency:
    """How often the answer on the turned panorama is the turned answer."""

    count: int
    """Questions whose references name a direction."""
    share: float
    """Share of them that turned, in 0..1; not a number where there are none."""


def turn_consistency(
    predictions: Sequence[Prediction],
    turned_predictions: Sequence[Prediction],
    turn_answer: Callable[[str], str | None],
) -> TurnConsistency:
    """Compares answers before and after a turn of the panorama; right or wrong does not count here.

    Args:
        predictions: answers on the panoramas as they are.
        turned_predictions: answers to the same questions (by sample id) on the turned panoramas.
        turn_answer: what an answer becomes under the turn, None where it names no direction.

    Raises:
        ValueError: a question has no turned answer.
    """
    turned = {each.sample_id: each.prediction for each in turned_predictions}
    asked = [each for each in predictions if any(turn_answer(text) is not None for text in each.references)]
    if not asked:
        return TurnConsistency(count=0, share=math.nan)
    missing = [each.sample_id for each in asked if each.sample_id not in turned]
    if missing:
        raise ValueError(
            f"{len(missing)} questions were not asked on the turned panorama ({', '.join(missing[:3])} …): "
            "ask the same questions twice."
        )
    followed = sum(_follows(each.prediction, turned[each.sample_id], turn_answer) for each in asked)
    return TurnConsistency(count=len(asked), share=followed / len(asked))


def _follows(before: str, after: str, turn_answer: Callable[[str], str | None]) -> bool:
    expected = turn_answer(before)
    return expected is not None and normalise(after) == normalise(expected)
