"""Caption scores with intervals over pictures: BLEU, ROUGE-L and CIDEr as pycocoevalcap has them, and METEOR.

Legend: ``Q`` scored answers, ``G`` pictures, ``R`` sets of answers.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import precook
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from panollava.evaluation.statistics import Interval, interval_of, mean_interval
from panollava.logs import counted

ORDER = 4
TOP = {"CIDEr": 10.0}
"""The highest value of scores that are no shares."""

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

    def record(self) -> dict[str, Any]:
        """As JSON keeps it: a score that is not there is null."""
        return asdict(self) | {"scores": scores_record(self.scores, self.unavailable)}

    def lines(self) -> list[str]:
        """A line a score, with its interval or the reason why it is not there."""
        there = [f"{name}: {interval}" for name, interval in self.scores.items()]
        return [*there, *(f"{name}: unavailable, {why}" for name, why in sorted(self.unavailable.items()))]


def scores_record(scores: Mapping[str, Interval], unavailable: Mapping[str, str]) -> dict[str, Any]:
    """Scores as JSON keeps them: one that is not there is null."""
    return {name: asdict(interval) for name, interval in scores.items()} | dict.fromkeys(unavailable)


def score_captions(answers: Sequence[Answer], *, meteor: bool = True) -> CaptionScores:
    """All caption scores of a set of answers; those that are not defined on it are told with the reason.

    ROUGE-L and CIDEr are means over answers; the document frequencies of CIDEr are those of the whole set. BLEU belongs
    to the set and is made from summed counts, for its interval too.

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
    unavailable = why_undefined(answers)
    unavailable |= {"SPICE": "needs Stanford CoreNLP models, which are not part of pycocoevalcap"}
    if not meteor:
        unavailable["METEOR"] = "was not asked for"
    elif shutil.which("java") is None:
        unavailable["METEOR"] = "needs Java, and no java is on the PATH"
    with ThreadPoolExecutor(max_workers=1) as elsewhere:
        # Java does its work on another core.
        from_java = None if "METEOR" in unavailable else elsewhere.submit(_meteor, references, predictions)
        scores = _bleu(answers, images)
        for name in ("ROUGE-L", "CIDEr"):
            if name not in unavailable:
                scores[name] = mean_interval(answer_scores(answers, name), images, top=TOP.get(name, 1.0))
        if from_java is not None:
            # The score of the set is made from summed statistics and is not the mean of its answers'.
            value, segments = from_java.result()
            counts = np.array([(segment, 1.0) for segment in segments])
            scores["METEOR"] = interval_of(counts, images, lambda sums: sums[:, 0] / sums[:, 1], value=value)
    return CaptionScores({name: one for name, one in scores.items() if name not in unavailable}, unavailable)


def why_undefined(answers: Sequence[Answer]) -> dict[str, str]:
    """Scores that would be the same whatever the answers are, or 0 for a right one, and why."""
    documents = [{ngram for text in answer.references for ngram in precook(text, ORDER)} for answer in answers]
    frequencies = Counter(ngram for own in documents for ngram in own)
    longest = max((len(ngram) for ngram in frequencies), default=0)
    found = {f"BLEU-{order}": f"no reference has {counted(order, 'word')}" for order in range(longest + 1, ORDER + 1)}
    if longest == 0:
        found |= dict.fromkeys(("ROUGE-L", "CIDEr", "METEOR"), "no reference has a word")
    without = sum(bool(own) and all(frequencies[ngram] == len(answers) for ngram in own) for own in documents)
    if len({answer.image_id for answer in answers}) < 2:
        found["CIDEr"] = "weighs words by how few pictures they are said of, and there is one picture"
    elif without:
        found["CIDEr"] = (
            "weighs words by how few answers' references have them, those that all have with 0, and "
            f"{without:,} of {len(answers):,} answers have references without any other word"
        )
    return found


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
