"""Several models on the same questions: who is better, how sure that is, and what would be needed to know.

Legend: ``Q`` questions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panollava.evaluation.answers import is_correct
from panollava.evaluation.captions import CaptionScores, answer_scores
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.scores import EXACT, as_scored, caption_scores, split_answers
from panollava.evaluation.statistics import Comparison, Interval, compare, groups_needed, mean_interval
from panollava.evaluation.words import Words

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
        found: the second less the first.
        adjusted_p: the p-value after Holm's correction for the number of pairs.
        pictures: on so many pictures.
    """

    first: str
    second: str
    found: Comparison
    adjusted_p: float
    pictures: int

    @property
    def is_distinguishable(self) -> bool:
        """Whether chance alone is an unlikely reason, at 5 % over all pairs."""
        return self.adjusted_p < 0.05

    def __str__(self) -> str:
        """In words."""
        points, low, high = (
            100 * value
            for value in (self.found.difference.value, self.found.difference.low, self.found.difference.high)
        )
        numbers = f"{points:+.1f} points ({low:+.1f} to {high:+.1f}), p = {self.adjusted_p:.4f}"
        if self.is_distinguishable:
            return f"{self.second} is {'better' if points > 0 else 'worse'} than {self.first}: {numbers}"
        needed = groups_needed(self.found, self.pictures)
        wanted = (
            "no number of pictures would part them" if needed is None else f"some {needed:,} pictures would be needed"
        )
        return f"{self.first} and {self.second} are not distinguishable: {numbers}; {wanted} to tell them apart"


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
        ValueError: fewer than two models, an unknown measure, or other questions.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    if len(contenders) < 2:
        raise ValueError("It takes two runs to compare: name another one.")
    if measure not in PER_ANSWER:
        raise ValueError(f"measure={measure!r} is not a score of single answers. Available: {', '.join(PER_ANSWER)}.")
    asked = [one.sample_id for one in contenders[0].predictions]
    images = [one.image_id for one in contenders[0].predictions]
    scores = {one.name: _scores(one, asked, words, measure) for one in contenders}
    pairs = list(itertools.combinations(scores, 2))
    found = [compare(scores[first], scores[second], images) for first, second in pairs]
    adjusted = holm([one.p_value for one in found])
    pictures = len(set(images))
    return [
        Verdict(first, second, each, p, pictures)
        for (first, second), each, p in zip(pairs, found, adjusted, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the smallest times all, the next times one less, and so on."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    result, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        result[place] = highest
    return result


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
    return answer_scores(split_answers(as_scored(ordered), words), measure)
