"""Scores of answers that are boxes in words, with the evaluator of detections.

A question asks for a box if its reference is one. An answer that is not exactly a box is a missed box; nothing is read
into other texts.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from panollava.crop.boxes import PictureBoxes, box_frames
from panollava.data.boxes import parse_box
from panollava.data.source import Question
from panollava.evaluation.detection import BoxScores, score_boxes
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.statistics import finite

_CLASS = "box"


@dataclass(frozen=True)
class BoxAnswers:
    """Scores of the answers to all questions for a box. Each question is a picture of its own with one true box.

    Intervals are over pictures all the same: the questions about one count together.
    """

    questions: int
    boxes: int  # answers that are a box
    has_scores: bool  # whether answers have log-probabilities; else their order is unknown
    median_error_deg: float | None  # from the centre of the true box, of all answers that are a box
    scores: BoxScores

    def record(self) -> dict[str, Any]:
        """As JSON keeps it: what is not defined is null, shares are from 0 to 1."""
        found = asdict(self)
        scores = found.pop("scores")
        if not self.has_scores:
            scores["with_scores"] = None
        return finite({**found, **scores})

    def metrics(self) -> dict[str, float]:
        """Flat `name -> number`, of what is defined; AP with the answers' own scores, where they have some."""
        ranked = self.scores.with_scores if self.has_scores else self.scores.with_equal_scores
        values = {"ap50": ranked.ap50, "ap": ranked.ap, "mean_iou": self.scores.mean_iou}
        found = {f"box/{name}": one.value for name, one in values.items() if one is not None}
        return found | ({} if self.median_error_deg is None else {"box/median_error_deg": self.median_error_deg})

    def lines(self) -> list[str]:
        """The table of a terminal."""
        found, given = self.scores, self.scores.with_scores if self.has_scores else None
        lines = [f"Boxes in words, {self.boxes} of {self.questions} answers are a box:"]
        for name, field in (("AP50", "ap50"), ("AP", "ap")):
            own = "unavailable, decoding was not greedy" if given is None else getattr(given, field)
            lines.append(f"{name}: {own} by log-probability; {getattr(found.with_equal_scores, field)} all equal")
        lines.append(f"mean IoU: {found.mean_iou}")
        if self.median_error_deg is not None:
            ours = f"{found.centre_error_deg} of boxes with an IoU of .5, " if found.centre_error_deg else ""
            lines.append(f"centre error in degrees: {ours}{self.median_error_deg:.1f} as the median of all boxes")
        return lines


def asks_box(question: Question | Prediction) -> bool:
    """Whether the right answer is a box in words."""
    return len(question.references) > 0 and parse_box(question.references[0].strip()) is not None


def score_box_answers(predictions: Sequence[Prediction]) -> BoxAnswers | None:
    """Scores of the answers to questions for a box; None where there are none."""
    asked = [one for one in predictions if asks_box(one)]
    if not asked:
        return None
    has_scores = all(one.log_probability is not None for one in asked)
    truth, found, errors = {}, {}, []
    for number, one in enumerate(asked):
        true, got = parse_box(one.references[0].strip()), parse_box(one.prediction.strip())
        assert true is not None
        key = f"{number} {one.sample_id}"
        truth[key] = _alone(true, None)
        if got is not None:
            found[key] = _alone(got, one.log_probability if has_scores else 0.0)
            centres = box_frames(np.stack([true, got]))[:, 2]
            errors.append(math.degrees(math.acos(float(np.clip(centres[0] @ centres[1], -1, 1)))))
    median = float(np.median(errors)) if errors else None
    pictures = [one.image_id or key for one, key in zip(asked, truth, strict=True)]
    scores = score_boxes(truth, found, [_CLASS], groups=pictures)
    return BoxAnswers(len(asked), len(found), has_scores, median, scores)


def _alone(box: np.ndarray, score: float | None) -> PictureBoxes:
    return PictureBoxes(box[None], np.zeros(1, dtype=int), None if score is None else np.array([score]))
