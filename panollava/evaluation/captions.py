"""Caption scores: BLEU, ROUGE-L, CIDEr and METEOR as pycocoevalcap computes them, CLIPScore and RefCLIPScore.

Legend: ``Q`` answers, ``R`` sets of answers, ``D`` width of CLIP's embeddings.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from pycocoevalcap.meteor.meteor import Meteor as MeteorScorer

from panollava.evaluation.metrics import ORDER, AnswerSet, Metric
from panollava.evaluation.ngrams import ReferenceNGrams
from panollava.evaluation.statistics import Interval, interval_of, mean_interval
from panollava.logs import counted

_SMALL, _TINY = 1e-9, 1e-15  # what pycocoevalcap's BleuScorer adds to counts so that it never divides by 0
_BETA = 1.2  # weight of recall against precision in ROUGE-L
_SIGMA = 6.0  # words by which lengths may differ before CIDEr falls by much


class Bleu(Metric):
    """BLEU-1 to BLEU-4. They score the set of answers as a whole, from summed counts, and so do their intervals."""

    name = "BLEU"

    def undefined(self, answers: AnswerSet) -> dict[str, str]:
        longest = answers.reference_ngrams.longest
        return {f"BLEU-{n}": f"no reference has {counted(n, 'word')}" for n in range(longest + 1, ORDER + 1)}

    def scores(self, answers: AnswerSet) -> dict[str, Interval]:
        references = answers.reference_ngrams
        lengths = {each: {len(text.split()) for text in each} for each in references.highest}
        rows = []
        for one in answers.split:
            highest, own = references.highest[one.references], references.ngrams.counts(one.prediction)
            length = len(one.prediction.split())
            closest = min((abs(each - length), each) for each in lengths[one.references])[1]
            # n-grams and matching n-grams of each order, length, and the closest length of a reference.
            guesses = [max(0, length - n + 1) for n in range(1, ORDER + 1)]
            rows.append([*guesses, *map(_matches, own, highest), length, closest])
        counts = np.array(rows, dtype=np.float64)
        return {f"BLEU-{n}": interval_of(counts, answers.images, partial(_bleu, n)) for n in range(1, ORDER + 1)}


def _matches(own: dict[int, int], highest: dict[int, int]) -> int:
    """n-grams of an answer that its references have too, each at most as often as one of them."""
    return sum(min(count, highest[ngram]) for ngram, count in own.items() if ngram in highest)


def _bleu(order: int, counts: np.ndarray) -> np.ndarray:
    """Summed counts ``(R, 2 ORDER + 2)`` -> BLEU ``(R,)``.

    Source: Papineni et al. 2002, BLEU, section 2.3, with the constants of BleuScorer.
    """
    guesses, hits = counts[:, :order], counts[:, ORDER : ORDER + order]
    precision = ((hits + _TINY) / (guesses + _SMALL)).prod(axis=1) ** (1 / order)
    ratio = (counts[:, -2] + _TINY) / (counts[:, -1] + _SMALL)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))


class WordMetric(Metric):
    """A metric that is undefined where no reference has a word."""

    def undefined(self, answers: AnswerSet) -> dict[str, str]:
        return {} if answers.reference_ngrams.longest else {self.name: "no reference has a word"}


class RougeL(WordMetric):
    """ROUGE-L of each answer.

    Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries, section 3.1, with the highest precision
        and the highest recall over the references, as pycocoevalcap takes them.
    """

    name = "ROUGE-L"

    def per_answer(self, answers: AnswerSet) -> np.ndarray:
        # A text without words counts as one empty word, as in pycocoevalcap.
        words = {text: text.split(" ") for one in answers.split for text in one.references}
        return np.array(
            [_rouge(one.prediction.split(" "), [words[text] for text in one.references]) for one in answers.split]
        )


def _rouge(own: list[str], references: Sequence[list[str]]) -> float:
    places: dict[str, int] = {}
    for place, word in enumerate(own):
        places[word] = places.get(word, 0) | 1 << place
    common = [_common_length(places, len(own), words) for words in references]
    precision = max(common) / len(own)
    recall = max(length / len(words) for length, words in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_length(places: dict[str, int], length: int, words: list[str]) -> int:
    """Words of the longest common subsequence of ``words`` and a text of ``length`` words.

    Args:
        places: of each word of the text, as bits.
        length: of the text.
        words: of the other text.

    Source: Hyyrö 2004, Bit-parallel LCS-length computation revisited, figure 2 (one row of the table is one number).
    """
    row = whole = (1 << length) - 1
    for word in words:
        if word in places:
            matching = row & places[word]
            row = (row + matching) | (row - matching)
    return length - (row & whole).bit_count()


class Cider(WordMetric):
    """CIDEr of each answer; the document frequencies are those of the whole set."""

    name, top = "CIDEr", 10.0

    def undefined(self, answers: AnswerSet) -> dict[str, str]:
        if len(set(answers.images)) < 2:
            return {self.name: "weighs words by how few pictures they are said of, and there is one picture"}
        references, count = answers.reference_ngrams, len(answers.scored)
        # A word in all references has weight 0, so that even a right answer of such words scores 0.
        everywhere = [{ngram for ngram, at in own.items() if at == count} for own in references.frequencies]
        without = sum(
            references.answers[each]
            for each, highest in references.highest.items()
            if highest[0] and all(own.keys() <= common for own, common in zip(highest, everywhere, strict=True))
        )
        why = (
            "weighs words by how few answers' references have them, those that all have with 0, and "
            f"{without:,} of {count:,} answers have references without any other word"
        )
        return {self.name: why} if without else super().undefined(answers)

    def per_answer(self, answers: AnswerSet) -> np.ndarray:
        vectors = _CiderVectors(answers.reference_ngrams, len(answers.scored))
        return np.array([vectors.score(one.prediction, one.references) for one in answers.split])


class _CiderVectors:
    """Weighted n-grams of texts, each text once, and their similarity.

    Source: Vedantam et al. 2015, CIDEr: Consensus-based Image Description Evaluation, section 4 and its CIDEr-D, with
        the arithmetic of pycocoevalcap in its order, so that scores are equal to the last bit.
    """

    def __init__(self, references: ReferenceNGrams, answers: int) -> None:
        self._ngrams = references.ngrams
        self._most = float(np.log(float(answers)))
        # np.log and math.log differ in the last bit of some numbers.
        rarity = {at: self._most - float(np.log(float(at))) for own in references.frequencies for at in {*own.values()}}
        self._rarity = [{ngram: rarity[at] for ngram, at in own.items()} for own in references.frequencies]
        self._vectors: dict[str, tuple[list[dict[int, float]], list[float], int]] = {}

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """CIDEr of an answer."""
        own, norms, length = self._vector(prediction)
        sums = [0.0] * len(own)
        for text in references:
            others, other_norms, other_length = self._vector(text)
            penalty = math.e ** (-(float(length - other_length) ** 2) / (2 * _SIGMA**2))
            for n, (vector, other) in enumerate(zip(own, others, strict=True)):
                norm = norms[n] * other_norms[n]
                sums[n] += _product(vector, other) / (norm or 1.0) * penalty
        return float(np.mean(sums)) / len(references) * 10.0

    def _vector(self, text: str) -> tuple[list[dict[int, float]], list[float], int]:
        """Weights by n-gram for each order, their norms, and the number of pairs of words."""
        if (found := self._vectors.get(text)) is None:
            counts = self._ngrams.counts(text)
            weights = [
                {ngram: count * rarity.get(ngram, self._most) for ngram, count in own.items()}
                for own, rarity in zip(counts, self._rarity, strict=True)
            ]
            norms = [math.sqrt(_squares(own.values())) for own in weights]
            found = self._vectors[text] = weights, norms, sum(counts[1].values())
        return found


def _squares(weights: Iterable[float]) -> float:
    """Their sum, in this order and rounded after each; since Python 3.12 ``sum`` rounds once."""
    total = 0.0
    for weight in weights:
        total += weight**2
    return total


def _product(own: dict[int, float], other: dict[int, float]) -> float:
    """Scalar product in which no weight of the first vector is higher than in the second."""
    total = 0.0
    if not other.keys().isdisjoint(own):
        for ngram, weight in own.items():
            if ngram in other:
                highest = other[ngram]
                total += (weight if weight < highest else highest) * highest
    return total


class Spice(Metric):
    """SPICE is listed in tables and files, and never available."""

    name = "SPICE"

    def undefined(self, answers: AnswerSet) -> dict[str, str]:
        return {self.name: "needs Stanford CoreNLP models, which are not part of pycocoevalcap"}


class Meteor(WordMetric):
    """METEOR. The score of the set is computed from summed statistics; it is not the mean of its answers' scores."""

    name, needs = "METEOR", ("meteor", "java")

    def scores(self, answers: AnswerSet) -> dict[str, Interval]:
        scorer = MeteorScorer()
        references = {at: list(one.references) for at, one in enumerate(answers.split)}
        said = {at: [one.prediction] for at, one in enumerate(answers.split)}
        value, segments = scorer.compute_score(references, said)
        for pipe in (scorer.meteor_p.stdout, scorer.meteor_p.stderr):
            pipe.close()
        counts = np.array([(segment, 1.0) for segment in segments])
        return {self.name: interval_of(counts, answers.images, lambda sums: sums[:, 0] / sums[:, 1], value=value)}


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
