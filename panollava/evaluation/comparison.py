"""Several models on the same questions: who is better, how sure that is, and what would be needed to know.

Legend: ``Q`` questions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panollava.evaluation.answers import is_correct
from panollava.evaluation.captions import TOP, CaptionScores, answer_scores, why_undefined
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.scores import EXACT, as_scored, caption_scores, split_answers
from panollava.evaluation.statistics import LEVEL, Comparison, Interval, compare_pairs, mean_interval, rounded
from panollava.evaluation.words import Words
from panollava.logs import counted

PER_ANSWER = (EXACT, "ROUGE-L", "CIDEr")
"""Scores that each answer has by itself, so that two models can be compared question by question."""


@dataclass(frozen=True)
class Contender:
    """One model's answers.

    Attributes:
        name: how it is called in tables.
        predictions: its answers.
        image_tokens: tokens that a panorama takes in its language model.
    """

    name: str
    predictions: tuple[Prediction, ...]
    image_tokens: int


@dataclass(frozen=True)
class Standing:
    """A model's place.

    Attributes:
        name: of the model.
        exact: exact match.
        captions: BLEU, ROUGE-L, CIDEr.
        image_tokens: per panorama.
        latency_s: mean time of an answer.
    """

    name: str
    exact: Interval
    captions: CaptionScores
    image_tokens: int
    latency_s: float


@dataclass(frozen=True)
class Verdict:
    """Two models compared.

    Attributes:
        first, second: their names.
        found: the second less the first, with the correction for the number of pairs.
        pairs: how many there are.
    """

    first: str
    second: str
    found: Comparison
    pairs: int

    def __str__(self) -> str:
        """In words."""
        found, pictures = self.found, counted(self.found.groups, "picture")
        if found.adjusted_p is None:
            same = "the same score" if found.groups == 1 else "the same score on each"
            return f"{self.first} and {self.second} are not distinguishable: {same} of {pictures}"
        value = found.difference.value
        numbers = f"{difference_text(found.difference)}, p = {rounded(found.adjusted_p, 4, LEVEL)}"
        if found.is_distinguishable:
            return f"{self.second} is {'better' if value > 0 else 'worse'} than {self.first}: {numbers}"
        if found.groups < found.least_groups:
            among = f" among {self.pairs} pairs of runs" if self.pairs > 1 else ""
            why = f"{pictures} cannot show any difference at 5 %{among}, it takes {found.least_groups} at least"
        elif found.groups_needed is None:
            why = "their means are equal, so no number of pictures can be named that would tell them apart"
        else:
            why = f"some {found.groups_needed:,} pictures would be needed to tell them apart"
        return f"{self.first} and {self.second} are not distinguishable: {numbers}; {why}"


def standings(contenders: Sequence[Contender], words: Words) -> list[Standing]:
    """Each model's scores with their intervals over pictures."""
    found = []
    for one in contenders:
        right = [float(is_correct(each.prediction, each.references)) for each in one.predictions]
        exact = mean_interval(right, [each.image_id for each in one.predictions])
        captions = caption_scores(as_scored(one.predictions), words, meteor=False)
        latency = float(np.mean([each.latency_s for each in one.predictions]))
        found.append(Standing(one.name, exact, captions, one.image_tokens, latency))
    return found


def verdicts(contenders: Sequence[Contender], words: Words, measure: str = EXACT) -> list[Verdict]:
    """Every two models compared on the questions they share, which must be all of them.

    Args:
        contenders: at least two.
        words: how texts are split for ROUGE-L and CIDEr.
        measure: one of ``PER_ANSWER``.

    Raises:
        ValueError: fewer than two models, an unknown measure, one that is not defined on these questions, or
            other questions.

    """
    if len(contenders) < 2:
        raise ValueError("It takes two runs to compare: name another one.")
    if measure not in PER_ANSWER:
        raise ValueError(f"measure={measure!r} is not a score of single answers. Available: {', '.join(PER_ANSWER)}.")
    asked = [one.sample_id for one in contenders[0].predictions]
    images = [one.image_id for one in contenders[0].predictions]
    scores = {one.name: _scores(one, asked, words, measure) for one in contenders}
    pairs = list(itertools.combinations(scores, 2))
    found = compare_pairs([(scores[first], scores[second]) for first, second in pairs], images, top=TOP.get(measure, 1))
    return [Verdict(first, second, each, len(pairs)) for (first, second), each in zip(pairs, found, strict=True)]


def difference_text(difference: Interval) -> str:
    """A difference with its interval: in points of a share, else on the score's own scale."""
    factor, digits, unit = (100, 1, " points") if difference.top == 1 else (1, 3, "")
    text = f"{rounded(factor * difference.value, digits, sign='+')}{unit}"
    if difference.low is None or difference.high is None:
        return text
    low, high = (rounded(factor * end, digits, sign="+") for end in (difference.low, difference.high))
    return f"{text} ({low} to {high})"


def _scores(contender: Contender, asked: Sequence[str], words: Words, measure: str) -> np.ndarray:
    """``(Q,)`` in the order of ``asked``."""
    by_id = {one.sample_id: one for one in contender.predictions}
    if by_id.keys() != set(asked):
        missing = sorted(set(asked) ^ by_id.keys())
        raise ValueError(
            f"{contender.name} answered other questions than the first run ({len(missing)} differ, such as "
            f"{missing[0]}): evaluate all on one test set, with csv_input= or world_seed=."
        )
    ordered = [by_id[one] for one in asked]
    if measure == EXACT:
        return np.array([float(is_correct(one.prediction, one.references)) for one in ordered])
    answers = split_answers(as_scored(ordered), words)
    if why := why_undefined(answers).get(measure):
        raise ValueError(f"measure={measure!r} is unavailable on these questions: {why}. Compare by another measure.")
    return answer_scores(answers, measure)
