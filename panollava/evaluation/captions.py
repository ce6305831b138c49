"""Caption scores: BLEU, ROUGE-L, CIDEr and METEOR as pycocoevalcap computes them, CLIPScore and RefCLIPScore.

Legend: ``Q`` answers, ``R`` sets of answers, ``D`` width of CLIP's embeddings.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider as CiderScorer
from pycocoevalcap.meteor.meteor import Meteor as MeteorScorer
from pycocoevalcap.rouge.rouge import Rouge as RougeScorer

from panollava.evaluation.metrics import ORDER, AnswerSet, Metric
from panollava.evaluation.statistics import Interval, interval_of, mean_interval
from panollava.logs import counted

_SMALL, _TINY = 1e-9, 1e-15  # what BleuScorer adds to counts so that it never divides by 0


class Bleu(Metric):
    """BLEU-1 to BLEU-4. They score the set of answers as a whole, from summed counts, and so do their intervals."""

    name = "BLEU"

    def undefined(self, answers: AnswerSet) -> dict[str, str]:
        longest = max((len(ngram) for own in answers.reference_ngrams for ngram in own), default=0)
        return {f"BLEU-{n}": f"no reference has {counted(n, 'word')}" for n in range(longest + 1, ORDER + 1)}

    def scores(self, answers: AnswerSet) -> dict[str, Interval]:
        scorer = BleuScorer(n=ORDER)
        for answer in answers.split:
            scorer += (answer.prediction, list(answer.references))
        # n-grams and matching n-grams of each order, length, and the closest length of a reference.
        rows = [
            [*c["guess"], *c["correct"], c["testlen"], min((abs(r - c["testlen"]), r) for r in c["reflen"])[1]]
            for c in scorer.ctest
        ]
        counts = np.array(rows, dtype=np.float64)
        return {f"BLEU-{n}": interval_of(counts, answers.images, partial(_bleu, n)) for n in range(1, ORDER + 1)}


def _bleu(order: int, counts: np.ndarray) -> np.ndarray:
    """Summed counts ``(R, 2 ORDER + 2)`` -> BLEU ``(R,)``.

    Source: Papineni et al. 2002, BLEU, section 2.3, with the constants of BleuScorer.
    """
    guesses, hits = counts[:, :order], counts[:, ORDER : ORDER + order]
    precision = ((hits + _TINY) / (guesses + _SMALL)).prod(axis=1) ** (1 / order)
    ratio = (counts[:, -2] + _TINY) / (counts[:, -1] + _SMALL)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))


class _WordMetric(Metric):
    """A metric that is undefined where no reference has a word."""

    def undefined(self, answers: AnswerSet) -> dict[str, str]:
        return {} if any(answers.reference_ngrams) else {self.name: "no reference has a word"}


class RougeL(_WordMetric):
    """ROUGE-L of each answer."""

    name = "ROUGE-L"

    def per_answer(self, answers: AnswerSet) -> np.ndarray:
        return np.asarray(RougeScorer().compute_score(*_texts(answers))[1], dtype=np.float64)


class Cider(_WordMetric):
    """CIDEr of each answer; the document frequencies are those of the whole set."""

    name, top = "CIDEr", 10.0

    def undefined(self, answers: AnswerSet) -> dict[str, str]:
        documents = answers.reference_ngrams
        if len(set(answers.images)) < 2:
            return {self.name: "weighs words by how few pictures they are said of, and there is one picture"}
        # A word in all references has weight 0, so that even a right answer of such words scores 0.
        frequencies = Counter(ngram for own in documents for ngram in own)
        without = sum(bool(own) and all(frequencies[ngram] == len(documents) for ngram in own) for own in documents)
        why = (
            "weighs words by how few answers' references have them, those that all have with 0, and "
            f"{without:,} of {len(documents):,} answers have references without any other word"
        )
        return {self.name: why} if without else super().undefined(answers)

    def per_answer(self, answers: AnswerSet) -> np.ndarray:
        return np.asarray(CiderScorer().compute_score(*_texts(answers))[1], dtype=np.float64)


class Spice(Metric):
    """SPICE is listed in tables and files, and never available."""

    name = "SPICE"

    def undefined(self, answers: AnswerSet) -> dict[str, str]:
        return {self.name: "needs Stanford CoreNLP models, which are not part of pycocoevalcap"}


class Meteor(_WordMetric):
    """METEOR. The score of the set is computed from summed statistics; it is not the mean of its answers' scores."""

    name, needs = "METEOR", ("meteor", "java")

    def scores(self, answers: AnswerSet) -> dict[str, Interval]:
        scorer = MeteorScorer()
        value, segments = scorer.compute_score(*_texts(answers))
        for pipe in (scorer.meteor_p.stdout, scorer.meteor_p.stderr):
            pipe.close()
        counts = np.array([(segment, 1.0) for segment in segments])
        return {self.name: interval_of(counts, answers.images, lambda sums: sums[:, 0] / sums[:, 1], value=value)}


def _texts(answers: AnswerSet) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    split = answers.split
    return {i: list(one.references) for i, one in enumerate(split)}, {
        i: [one.prediction] for i, one in enumerate(split)
    }


class ClipScore(Metric):
    """CLIPScore, how well an answer fits its panorama, and RefCLIPScore, how well it fits a reference too.

    Source: Hessel et al. 2021, CLIPScore: A Reference-free Evaluation Metric for Image Captioning, sections 3 and 4.
    """

    name, needs, top = "CLIP-score", ("clip", "pictures"), 2.5

    def scores(self, answers: AnswerSet) -> dict[str, Interval]:
        scored, images, clip, picture = answers.scored, answers.images, answers.clip, answers.pictures
        assert picture is not None
        seen = _embeddings(images, 16, lambda ids: clip.pictures([picture(one) for one in ids]))
        said = _embeddings([text for one in scored for text in (one.prediction, *one.references)], 128, clip.texts)
        fits = self.top * np.array([_cosine(seen[one.image_id], said[one.prediction]) for one in scored])
        best = np.array([max(_cosine(said[text], said[one.prediction]) for text in one.references) for one in scored])
        # Harmonic mean; 0 where either is.
        both = 2 * fits * best / np.maximum(fits + best, np.finfo(np.float64).tiny)
        return {
            self.name: mean_interval(fits, images, top=self.top),
            "RefCLIP-score": mean_interval(both, images, top=2 * self.top / (self.top + 1)),
        }


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return max(0.0, float(a @ b))


def _embeddings(keys: Sequence[str], batch_size: int, encode: Callable[[list[str]], Any]) -> dict[str, np.ndarray]:
    """The embedding ``(D,)`` of each distinct key."""
    distinct, result = list(dict.fromkeys(keys)), dict[str, np.ndarray]()
    for start in range(0, len(distinct), batch_size):
        part = distinct[start : start + batch_size]
        result.update(zip(part, encode(part).double().numpy(), strict=True))
    return result
