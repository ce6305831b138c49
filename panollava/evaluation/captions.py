"""Caption scores with intervals over pictures: BLEU, ROUGE-L and CIDEr as pycocoevalcap has them, and METEOR.

Legend: ``Q`` scored answers, ``G`` pictures, ``R`` resamples.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from panollava.evaluation.statistics import Interval, interval_of, mean_interval

ORDER = 4
_SMALL, _TINY = 1e-9, 1e-15
"""What BleuScorer adds to counts, so that nothing is divided by 0."""


@dataclass(frozen=True)
class Answer:
    """A scored answer: words with a space between (see ``split_words``).

    Attributes:
        prediction: what was said.
        references: what is right, one at least.
        image_id: the picture it is about.
    """

    prediction: str
    references: tuple[str, ...]
    image_id: str


@dataclass(frozen=True)
class CaptionScores:
    """Scores by name, and why others are not there."""

    scores: dict[str, Interval]
    unavailable: dict[str, str]

    def lines(self) -> list[str]:
        """A line a score, with its interval or the reason why it is not there."""
        there = [f"{name}: {interval}" for name, interval in self.scores.items()]
        return [*there, *(f"{name}: unavailable, {why}" for name, why in sorted(self.unavailable.items()))]


def score_captions(answers: Sequence[Answer], *, meteor: bool = True) -> CaptionScores:
    """All caption scores of a set of answers.

    ROUGE-L and CIDEr are means over answers, and resampled as such; the document frequencies of CIDEr are those of
    the whole set. BLEU belongs to the set and is made again from the counts of each resample.

    Args:
        answers: ``Q`` of them.
        meteor: METEOR too where there is Java; it takes most of a minute for some thousand answers.

    Raises:
        ValueError: there are no answers, or one has no reference.
    """
    if not answers:
        raise ValueError("There are no answers to score.")
    if any(not answer.references for answer in answers):
        raise ValueError("Each answer needs a reference to be scored against.")
    images = [answer.image_id for answer in answers]
    predictions = {place: [answer.prediction] for place, answer in enumerate(answers)}
    references = {place: list(answer.references) for place, answer in enumerate(answers)}
    unavailable = {"SPICE": "needs Stanford CoreNLP models, which are not part of pycocoevalcap"}
    if not meteor:
        unavailable["METEOR"] = "was not asked for"
    elif shutil.which("java") is None:
        unavailable["METEOR"] = "needs Java, and no java is on the PATH"
    with ThreadPoolExecutor(max_workers=1) as elsewhere:
        # Java does its work on another core.
        from_java = None if "METEOR" in unavailable else elsewhere.submit(_meteor, references, predictions)
        scores = _bleu(answers, images)
        scores["ROUGE-L"] = mean_interval(answer_scores(answers, "ROUGE-L"), images)
        if len(answers) > 1:
            scores["CIDEr"] = mean_interval(answer_scores(answers, "CIDEr"), images)
        else:
            unavailable["CIDEr"] = "is 0 for a single answer, since each of its words is in every document"
        if from_java is not None:
            value, segments = from_java.result()
            scores["METEOR"] = _shifted(mean_interval(segments, images), value)
    return CaptionScores(scores, unavailable)


def answer_scores(answers: Sequence[Answer], name: str) -> np.ndarray:
    """``(Q,)``: ROUGE-L or CIDEr of each answer."""
    predictions = {place: [answer.prediction] for place, answer in enumerate(answers)}
    references = {place: list(answer.references) for place, answer in enumerate(answers)}
    scorer = {"ROUGE-L": Rouge, "CIDEr": Cider}[name]()
    return np.asarray(scorer.compute_score(references, predictions)[1], dtype=np.float64)


def _meteor(references: dict[int, list[str]], predictions: dict[int, list[str]]) -> tuple[float, list[float]]:
    scorer = Meteor()
    score, segments = scorer.compute_score(references, predictions)
    for pipe in (scorer.meteor_p.stdout, scorer.meteor_p.stderr):
        pipe.close()
    return score, segments


def _bleu(answers: Sequence[Answer], images: Sequence[str]) -> dict[str, Interval]:
    scorer = BleuScorer(n=ORDER)
    for answer in answers:
        scorer += (answer.prediction, list(answer.references))
    # Guesses and hits of each order, length, and length of the reference that is nearest to it.
    counts = np.array(
        [
            [
                *one["guess"],
                *one["correct"],
                one["testlen"],
                min((abs(r - one["testlen"]), r) for r in one["reflen"])[1],
            ]
            for one in scorer.ctest
        ],
        dtype=np.float64,
    )
    return {f"BLEU-{order}": interval_of(counts, images, _bleu_of(order)) for order in range(1, ORDER + 1)}


def _bleu_of(order: int) -> Callable[[np.ndarray], np.ndarray]:
    def score(counts: np.ndarray) -> np.ndarray:
        """Summed counts ``(R, 2 ORDER + 2)`` -> BLEU ``(R,)``.

        Source: Papineni et al. 2002, BLEU, section 2.3, with the constants of BleuScorer.
        """
        guesses, hits = counts[:, :order], counts[:, ORDER : ORDER + order]
        precision = ((hits + _TINY) / (guesses + _SMALL)).prod(axis=1) ** (1 / order)
        ratio = (counts[:, -2] + _TINY) / (counts[:, -1] + _SMALL)
        return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))

    return score


def _shifted(interval: Interval, value: float) -> Interval:
    """The interval of the segments' mean around the score of the set, which METEOR makes from summed statistics."""
    by = value - interval.value
    return Interval(value, interval.low + by, interval.high + by)
