"""One answered question, as scores, tables, files and pictures use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from panollava.data.source import Question


@dataclass(frozen=True)
class Prediction:
    """A question with the model's answer."""

    sample_id: str
    image_id: str
    kind: str
    """Question type, by which scores are also reported."""
    question: str
    prediction: str
    references: tuple[str, ...]
    latency_s: float
    """Time of the batch divided by its size: an answer's cost at this batch size, not the wait for it."""
    history: tuple[tuple[str, str], ...] = ()
    """(question, answer) pairs that came before the question."""

    @property
    def turn(self) -> int:
        """Place of the question in its conversation, from 1."""
        return len(self.history) + 1

    @property
    def written_history(self) -> str:
        """The history as files keep it: JSON, or nothing where there is none."""
        return json.dumps(self.history, ensure_ascii=False) if self.history else ""


def answered(question: Question, prediction: str, latency_s: float) -> Prediction:
    """The prediction that answers `question`."""
    return Prediction(
        sample_id=question.sample_id,
        image_id=question.image_id,
        kind=question.kind,
        question=question.question,
        prediction=prediction,
        references=tuple(question.references),
        latency_s=latency_s,
        history=question.history,
    )


def answers_digest(predictions: Iterable[Prediction]) -> str:
    """Tells whether answers are still the ones that were given: the same before and after they were on disk."""
    found = hashlib.sha256()
    for one in predictions:
        line = json.dumps((one.sample_id, one.prediction), ensure_ascii=False)
        found.update(line.encode(errors="backslashreplace") + b"\n")
    return found.hexdigest()[:16]
