"""Exact match per question type, beside what guessing and blank pictures reach."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from panollava.evaluation.predictions import Prediction
from panollava.evaluation.statistics import mean_interval

FINAL_PUNCTUATION = ".,!?;:。、।؟۔،؛…"
LEADING_ARTICLE = re.compile(r"^(?:a|an|the) ")
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\U000e0000-\U000e0fff]"
)
"""Characters without any picture of their own (Unicode's Default_Ignorable_Code_Point)."""

ALIKE = str.maketrans(
    dict.fromkeys("‘’‚‛ʼʹ′´`＇", "'")
    | dict.fromkeys("“”„‟″＂", '"')
    | dict.fromkeys("‐‑‒–—―−﹘﹣－", "-")
    | {"⁄": "/", "∕": "/", "˚": "°", "〜": "~"}
)
"""Characters that are typed for each other."""

OTHER_MEANING = ("<super>", "<sub>", "<circle>", "<fraction>")
"""Compatibility forms that say something else: 10² is no 102."""


def fold(text: str) -> str:
    """The text with every character as it is usually written, in lower case.

    Full-width and half-width forms, ligatures, presentation forms, quotation marks, dashes and decomposed letters
    become the usual ones, and what nobody sees goes. Superscripts, subscripts, fractions and numbers in circles, in
    brackets or with a unit in one character stay as they are, and so do the letters of the Hangul compatibility block.

    Source: Unicode Standard Annex 15, Unicode Normalization Forms, table 1 (kinds of compatibility forms).
    """
    visible = INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    usual = "".join(_usual(char) for char in visible)
    return unicodedata.normalize("NFC", "".join(_usual(char) for char in usual.casefold()))


@lru_cache(maxsize=65_536)
def _usual(char: str) -> str:
    """What a character is usually written as; itself for most."""
    if (alike := char.translate(ALIKE)) != char:
        return alike
    form, *codes = unicodedata.decomposition(char).split() or [""]
    if not form.startswith("<") or form in OTHER_MEANING or "\u3130" <= char <= "\u318f":
        return char
    parts = [chr(int(code, 16)) for code in codes]
    if len(parts) > 1 and (parts[0] == " " or any(part.isdecimal() for part in parts)):
        return char  # an accent by itself; a number in brackets, with a full stop, or of a day or an hour
    return "".join(_usual(part) for part in parts)


def normalise(text: str) -> str:
    """A text as it is compared: how it is written does not count, what it says does.

    In this order: ``fold``, runs of white space as one space, no punctuation at the end, no leading "a", "an" or "the".
    A text that would vanish altogether keeps its characters.
    """
    spaced = " ".join(fold(text).split())
    bare = spaced.rstrip(FINAL_PUNCTUATION + " ") or spaced
    return LEADING_ARTICLE.sub("", bare)


def is_correct(prediction: str, references: Iterable[str]) -> bool:
    """Whether a prediction says the same as any of the references; an empty one never does."""
    said = normalise(prediction)
    return said != "" and any(said == normalise(reference) for reference in references)


@dataclass(frozen=True)
class KindScore:
    """Scores of one question type; all shares lie in 0..1."""

    count: int
    exact_match: float
    majority_answer: str
    """The one answer that is right most often among the evaluated references of this type."""
    majority_share: float
    """How often it is right: what always guessing it would score."""
    interval: tuple[float, float] | None
    """95 % interval of the exact match, over pictures; None where they are too few."""
    blank_exact_match: float | None = None
    """Exact match on the same questions with blank pictures, where that was measured."""
    blank_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class AnswerReport:
    """Scores over all questions and per question type."""

    count: int
    exact_match: float
    interval: tuple[float, float] | None
    """95 % interval of the exact match, over pictures; None where they are too few."""
    majority_share: float
    """What guessing the majority answer of each type would score over all questions."""
    blank_exact_match: float | None
    blank_interval: tuple[float, float] | None
    kinds: dict[str, KindScore]

    def metrics(self) -> dict[str, float]:
        """Flat `name -> number`: `exact_match`, `exact_match/<type>`, and likewise `majority` and `blank`."""
        values = {"exact_match": self.exact_match, "majority": self.majority_share}
        if self.interval is not None:
            values |= dict(zip(("exact_match_low", "exact_match_high"), self.interval, strict=True))
        if self.blank_exact_match is not None:
            values["blank"] = self.blank_exact_match
        for kind, score in self.kinds.items():
            values[f"exact_match/{kind}"] = score.exact_match
            values[f"majority/{kind}"] = score.majority_share
            if score.blank_exact_match is not None:
                values[f"blank/{kind}"] = score.blank_exact_match
        return values


def score_answers(predictions: Sequence[Prediction], blank: Sequence[Prediction] | None = None) -> AnswerReport:
    """Scores predictions.

    Args:
        predictions: what the model answered.
        blank: its answers to the same questions with blank pictures.

    Raises:
        ValueError: there are no predictions, or `blank` answers other questions.
    """
    if not predictions:
        raise ValueError("No question was evaluated, so there is no score: check the test set and max_samples.")
    if blank is not None:
        _check_same_questions(predictions, blank)
    blank_by_kind = _by_kind(blank or [])
    kinds = {kind: _score_kind(group, blank_by_kind.get(kind)) for kind, group in sorted(_by_kind(predictions).items())}
    guessed = sum(score.majority_share * score.count for score in kinds.values())
    return AnswerReport(
        count=len(predictions),
        exact_match=exact_match(predictions),
        interval=exact_match_interval(predictions),
        majority_share=guessed / len(predictions),
        blank_exact_match=exact_match(blank) if blank else None,
        blank_interval=exact_match_interval(blank) if blank else None,
        kinds=kinds,
    )


def exact_match(predictions: Sequence[Prediction]) -> float:
    """Share of predictions that match a reference."""
    return sum(is_correct(each.prediction, each.references) for each in predictions) / len(predictions)


def exact_match_interval(predictions: Sequence[Prediction]) -> tuple[float, float] | None:
    """95 % interval of the share of predictions that match, over pictures; None where they are too few."""
    right = [float(is_correct(each.prediction, each.references)) for each in predictions]
    found = mean_interval(right, [each.image_id for each in predictions])
    return None if found.low is None or found.high is None else (found.low, found.high)


def majority_answer(references: Sequence[Sequence[str]]) -> tuple[str, float]:
    """The answer that is right for most of the questions, as it is most often written, and its share.

    Args:
        references: the reference answers of each question. Ties go to the first in the alphabet.
    """
    questions: Counter[str] = Counter()
    spellings: dict[str, Counter[str]] = {}
    for group in references:
        questions.update({normalise(reference) for reference in group})
        for reference in group:
            spellings.setdefault(normalise(reference), Counter())[reference.strip()] += 1
    best = _most(questions)
    return _most(spellings[best]), questions[best] / len(references)


def _score_kind(predictions: list[Prediction], blank: list[Prediction] | None) -> KindScore:
    answer, share = majority_answer([each.references for each in predictions])
    return KindScore(
        count=len(predictions),
        exact_match=exact_match(predictions),
        majority_answer=answer,
        majority_share=share,
        interval=exact_match_interval(predictions),
        blank_exact_match=exact_match(blank) if blank else None,
        blank_interval=exact_match_interval(blank) if blank else None,
    )


def _most(counts: Counter[str]) -> str:
    return min(counts, key=lambda text: (-counts[text], text))


def _by_kind(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    groups: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(prediction.kind, []).append(prediction)
    return groups


def _check_same_questions(predictions: Sequence[Prediction], blank: Sequence[Prediction]) -> None:
    asked = {each.sample_id for each in predictions}
    different = sorted(asked ^ {each.sample_id for each in blank})
    if different or len(predictions) != len(blank):
        raise ValueError(
            f"The blank-picture answers are to other questions ({len(blank)} answers against "
            f"{len(predictions)}; {', '.join(different[:3])} …): ask the same ones to compare."
        )
