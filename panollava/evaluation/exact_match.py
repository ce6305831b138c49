"""Exact match: the metric, the report by question type beside guessing and blank pictures, and its tables."""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from panollava.evaluation.metrics import EXACT, AnswerSet, Metric
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.statistics import mean_interval
from panollava.evaluation.words import normalise

Ends = tuple[float, float] | None  # 95 % interval of a share over pictures; None where they are too few
HEADER = ("question type", "questions", "exact match", "blank picture", "majority answer", "its share")
RIGHT = (False, True, True, True, False, True)  # columns that are aligned on the right


class ExactMatch(Metric):
    """1 for an answer that equals one of its references after ``normalise``, else 0."""

    name = EXACT

    def per_answer(self, answers: AnswerSet) -> np.ndarray:
        usual = answers.normalised.__getitem__  # each text is normalised once
        right = [is_correct(one.prediction, one.references, usual) for one in answers.scored]
        return np.array(right, dtype=np.float64)


def is_correct(prediction: str, references: Iterable[str], usual: Callable[[str], str] = normalise) -> bool:
    """Whether a prediction equals one of the references after ``usual``; an empty one never does."""
    said = usual(prediction)
    return said != "" and any(said == usual(reference) for reference in references)


@dataclass(frozen=True)
class KindScore:
    """Scores of one question type; all shares lie in 0..1."""

    count: int
    exact_match: float
    majority_answer: str  # the one that is right for most questions of this type
    majority_share: float  # the score of a model that always gives it
    interval: Ends
    blank_exact_match: float | None = None  # on the same questions with blank pictures, where it was measured
    blank_interval: Ends = None


@dataclass(frozen=True)
class AnswerReport:
    """Scores over all questions and per question type; see ``KindScore``."""

    count: int
    exact_match: float
    interval: Ends
    majority_share: float  # the score of a model that always gives the majority answer of each type
    blank_exact_match: float | None
    blank_interval: Ends
    kinds: dict[str, KindScore]  # by question type

    def metrics(self) -> dict[str, float]:
        """Flat `name -> number`: `exact_match`, `exact_match/<type>`, and likewise `majority` and `blank`."""
        values = {"exact_match": self.exact_match, "majority": self.majority_share}
        if self.interval is not None:
            values |= dict(zip(("exact_match_low", "exact_match_high"), self.interval, strict=True))
        if self.blank_exact_match is not None:
            values["blank"] = self.blank_exact_match
        for kind, score in self.kinds.items():
            values |= {f"exact_match/{kind}": score.exact_match, f"majority/{kind}": score.majority_share}
            if score.blank_exact_match is not None:
                values[f"blank/{kind}"] = score.blank_exact_match
        return values


def score_answers(predictions: Sequence[Prediction], blank: Sequence[Prediction] | None = None) -> AnswerReport:
    """Exact match of an evaluation; `blank` are the answers to the same questions with blank pictures.

    Raises ValueError where there are no predictions, or `blank` answers other questions.
    """
    if not predictions:
        raise ValueError("No question was evaluated, so there is no score: check the test set and max_samples.")
    if blank is not None:
        different = sorted({each.sample_id for each in predictions} ^ {each.sample_id for each in blank})
        if different or len(predictions) != len(blank):
            raise ValueError(
                f"The blank-picture answers are to other questions ({len(blank)} answers against "
                f"{len(predictions)}; {', '.join(different[:3])} …): ask the same ones to compare."
            )
    kinds = {}
    for kind in sorted({each.kind for each in predictions}):
        own, of_blank = ([each for each in all_of or () if each.kind == kind] for all_of in (predictions, blank))
        value, interval = _exact_match(own)
        majority = majority_answer([each.references for each in own])
        kinds[kind] = KindScore(len(own), value, *majority, interval, *(_exact_match(of_blank) if of_blank else ()))
    share = sum(score.majority_share * score.count for score in kinds.values()) / len(predictions)
    value, interval = _exact_match(predictions)
    blank_value, blank_interval = _exact_match(blank) if blank else (None, None)
    return AnswerReport(len(predictions), value, interval, share, blank_value, blank_interval, kinds)


def _exact_match(predictions: Sequence[Prediction]) -> tuple[float, Ends]:
    right = [float(is_correct(each.prediction, each.references)) for each in predictions]
    found = mean_interval(right, [each.image_id for each in predictions])
    return sum(right) / len(right), None if found.low is None or found.high is None else (found.low, found.high)


def majority_answer(references: Sequence[Sequence[str]]) -> tuple[str, float]:
    """The right answer of most questions (of ties the first in the alphabet), in its usual spelling, and its share."""
    questions = Counter(text for group in references for text in {normalise(reference) for reference in group})
    best = _most(questions)
    spellings = Counter(one.strip() for group in references for one in group if normalise(one) == best)
    return _most(spellings), questions[best] / len(references)


def _most(counts: Counter[str]) -> str:
    return min(counts, key=lambda text: (-counts[text], text))


def rotation_consistency(
    predictions: Sequence[Prediction],
    rotated_predictions: Sequence[Prediction],
    rotate_answer: Callable[[str], str | None],
) -> tuple[int, float]:
    """Compares answers to the same questions before and after a rotation of the panorama, whether right or wrong.

    Returns the number of questions whose references name a direction (for others `rotate_answer` returns None), and the
    share of them in 0..1 whose answer on the rotated panorama is the rotated answer; not a number where there are none.
    Raises ValueError where a question has no answer on the rotated panorama.
    """
    rotated = {each.sample_id: each.prediction for each in rotated_predictions}
    asked = [each for each in predictions if any(rotate_answer(text) is not None for text in each.references)]
    if missing := [each.sample_id for each in asked if each.sample_id not in rotated]:
        raise ValueError(
            f"{len(missing)} questions were not asked on the rotated panorama ({', '.join(missing[:3])} …): "
            "ask the same questions twice."
        )
    expected = [(rotate_answer(each.prediction), rotated[each.sample_id]) for each in asked]
    followed = sum(text is not None and normalise(text) == normalise(after) for text, after in expected)
    return len(asked), followed / len(asked) if asked else math.nan


def text_table(report: AnswerReport) -> str:
    """The report as lines of fixed width, for a terminal or a log file."""
    rows = [HEADER, *_rows(report)]
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def markdown_table(report: AnswerReport) -> str:
    """The report as a Markdown table."""
    rows = [HEADER, ["---:" if right else "---" for right in RIGHT], *_rows(report)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _rows(report: AnswerReport) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    scores: list[tuple[str, KindScore | AnswerReport]] = [*report.kinds.items(), ("all", report)]
    for name, score in scores:
        shares = [percent(score.exact_match, score.interval), percent(score.blank_exact_match, score.blank_interval)]
        answer = _one_line(score.majority_answer) if isinstance(score, KindScore) else ""
        rows.append((_one_line(name), str(score.count), *shares, answer, percent(score.majority_share)))
    return rows


def percent(share: float | None, interval: Sequence[float] | None = None) -> str:
    """A share with its interval, in percent; a dash where there is none."""
    ends = f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else ""
    return "–" if share is None else f"{100 * share:.1f} %{ends}"


def _one_line(text: str, limit: int = 40) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    spaced = ((cell, " " * (width - _width(cell))) for cell, width in zip(cells, widths, strict=True))
    padded = (space + cell if right else cell + space for (cell, space), right in zip(spaced, RIGHT, strict=True))
    return "  ".join(padded).rstrip()


def _width(text: str) -> int:
    """Columns of a terminal that a text takes: two for an East Asian character, none for a combining one."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
