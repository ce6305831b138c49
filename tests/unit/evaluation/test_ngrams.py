"""Scores of captions, each text counted once, against pycocoevalcap answer by answer: every bit is the same."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider as CiderScorer
from pycocoevalcap.rouge.rouge import Rouge, my_lcs
from support import REAL_DATA

from panollava.evaluation import words
from panollava.evaluation.captions import Bleu, Cider, RougeL, _common_length
from panollava.evaluation.metrics import ORDER, AnswerSet
from panollava.evaluation.ngrams import NGrams, ReferenceNGrams
from panollava.evaluation.predictions import Scored, read_predictions
from panollava.evaluation.statistics import interval_of

REAL = REAL_DATA / "caption_predictions.csv"
VOCABULARY = ["a", "the", "red", "blue", "ring", "ball", "is", "left", "of", "near", "sky", "tower", "people", "walk"]


def answers(count: int = 80, seed: int = 0) -> list[Scored]:
    """Random texts, some empty or repeated; answers about one picture share references, also the same one twice."""
    generator = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(generator.choice(VOCABULARY, generator.integers(0, 14)))

    groups = [tuple(text() for _ in range(generator.integers(1, 5))) for _ in range(count // 4)]
    groups[0] += groups[0]
    groups[1] = ("a ring is near a ring is near a ring", *groups[1])
    return [
        Scored(
            str(place // 4), "what?", "text", groups[place // 4][0] if place % 9 == 0 else text(), groups[place // 4]
        )
        for place in range(count)
    ]


def check(given: AnswerSet) -> None:
    """All scores of a set, against those of pycocoevalcap."""
    references = {place: list(one.references) for place, one in enumerate(given.split)}
    predictions = {place: [one.prediction] for place, one in enumerate(given.split)}
    expected = CiderScorer().compute_score(references, predictions)[1]
    np.testing.assert_array_equal(Cider().per_answer(given), expected)
    np.testing.assert_array_equal(RougeL().per_answer(given), Rouge().compute_score(references, predictions)[1])
    scorer = BleuScorer(n=ORDER)
    for place in references:
        scorer += (predictions[place][0], references[place])
    found = Bleu().scores(given)
    for order, value in enumerate(scorer.compute_score(option="closest")[0], 1):
        assert found[f"BLEU-{order}"].value == pytest.approx(value, abs=1e-14)


def test_every_answer_has_the_score_of_pycocoevalcap() -> None:
    for seed in range(3):
        check(AnswerSet(answers(seed=seed)))


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="the real predictions are not here")
def test_every_real_answer_has_the_score_of_pycocoevalcap() -> None:
    check(AnswerSet(read_predictions(REAL, "grouped")[:1200]))


def test_counts_of_bleu_are_those_of_its_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    given = AnswerSet(answers())
    scorer, rows = BleuScorer(n=ORDER), []
    for one in given.split:
        scorer += (one.prediction, list(one.references))
        counts = scorer.ctest[-1]
        closest = min((abs(length - counts["testlen"]), length) for length in counts["reflen"])[1]
        rows.append([*counts["guess"], *counts["correct"], counts["testlen"], closest])
    seen = []
    monkeypatch.setattr(
        "panollava.evaluation.captions.interval_of",
        lambda counts, *given: seen.append(counts) or interval_of(counts, *given),
    )
    Bleu().scores(given)
    np.testing.assert_array_equal(seen[0], rows)


def test_the_longest_common_subsequence_is_that_of_the_table() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        one, other = (generator.choice(VOCABULARY[:5], generator.integers(1, 90)).tolist() for _ in range(2))
        places: dict[str, int] = {}
        for place, word in enumerate(one):
            places[word] = places.get(word, 0) | 1 << place
        assert _common_length(places, len(one), other) == my_lcs(one, other)


def test_ngrams_are_counted_as_tuples_of_words_would_be() -> None:
    ngrams, text = NGrams(3), "a ring a ring is a ball"
    assert [list(own.values()) for own in ngrams.counts(text)] == [[3, 2, 1, 1], [2, 1, 1, 1, 1], [1] * 5]
    assert ngrams.counts("a ring")[1].keys() <= ngrams.counts(text)[1].keys()
    assert ngrams.counts("ring is")[1].keys().isdisjoint(ngrams.counts("is ring")[1])
    assert ngrams.counts("") == [{}, {}, {}]


def test_references_of_several_answers_count_once_an_answer() -> None:
    found = ReferenceNGrams([("a a ring", "a ball"), ("a a ring", "a ball"), ("ring",)], 2)
    (a,), (ring,) = found.ngrams.counts("a")[0], found.ngrams.counts("ring")[0]
    assert found.highest["a a ring", "a ball"][0][a] == 2
    assert (found.frequencies[0][a], found.frequencies[0][ring]) == (2, 3)
    assert found.longest == 2


@pytest.mark.parametrize(
    "text", ["The Dog’s “BIG” house", "Ａ １０² ﬁ ⑴ ㎏ e\u0301", "東京tower か\u3099 ไทย", "건물이 ㄱ", "ẞ İ ŉ", ""]
)
def test_words_are_those_of_each_character_by_itself(text: str) -> None:
    visible = words.INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    usual = "".join(map(words._usual, visible))
    folded = unicodedata.normalize("NFC", "".join(map(words._usual, usual.casefold())))
    assert words.fold(text) == folded
    if not any(words._kind(char)[1] for char in folded):
        spaced = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in folded)
        assert words.split_words([text], "unicode") == [" ".join(spaced.split())]
