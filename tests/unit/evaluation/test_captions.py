"""Caption scores against pycocoevalcap called directly, and intervals against recomputed resamples."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from support import REAL_DATA

from panollava.evaluation.metrics import AnswerSet, Scores, compute_scores, find_metrics
from panollava.evaluation.predictions import Scored, read_predictions
from panollava.evaluation.words import choose_words, split_words

REAL = REAL_DATA / "caption_predictions.csv"
WORDS = ["a", "the", "red", "blue", "ring", "ball", "is", "left", "of", "near", "sky", "tower", "people", "walk"]
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")


def answer(prediction: str, references: tuple[str, ...], image_id: str) -> Scored:
    return Scored(image_id, "what?", "text", prediction, references)


def score_captions(given: list[Scored], *, meteor: bool = False) -> Scores:
    return compute_scores(AnswerSet(given, "unicode", meteor), find_metrics(None, ""))


def answers(count: int, seed: int = 0) -> list[Scored]:
    """Random sentences, three answers a picture, one to four references each."""
    generator = np.random.default_rng(seed)

    def sentence() -> str:
        return " ".join(generator.choice(WORDS, generator.integers(1, 12)))

    return [
        answer(sentence(), tuple(sentence() for _ in range(generator.integers(1, 5))), f"picture {number // 3}")
        for number in range(count)
    ]


def library(given: list[Scored]) -> dict[str, float]:
    """The scores that pycocoevalcap gives."""
    references = {place: list(one.references) for place, one in enumerate(given)}
    predictions = {place: [one.prediction] for place, one in enumerate(given)}
    bleu, _ = Bleu(4).compute_score(references, predictions, verbose=0)
    scores = {f"BLEU-{order}": value for order, value in enumerate(bleu, 1)}
    scores["ROUGE-L"], _ = Rouge().compute_score(references, predictions)
    scores["CIDEr"], _ = Cider().compute_score(references, predictions)
    return scores


def test_scores_are_those_of_pycocoevalcap() -> None:
    given = answers(60)
    found = score_captions(given)
    assert set(found.unavailable) == {"METEOR", "SPICE", "CLIP-score"}
    for name, value in library(given).items():
        assert found.scores[name].value == pytest.approx(value, abs=1e-12)
        assert found.scores[name].low <= value <= found.scores[name].high


def test_the_interval_of_bleu_is_that_of_resampled_sets_of_pictures() -> None:
    """The slow way: draw pictures, score the whole set anew."""
    given = answers(90, seed=3)
    by_image: dict[str, list[Scored]] = {}
    for one in given:
        by_image.setdefault(one.image_id, []).append(one)
    generator, values = np.random.default_rng(1), []
    for _ in range(300):
        drawn = [one for image in generator.choice(list(by_image), len(by_image)) for one in by_image[image]]
        values.append(library(drawn)["BLEU-2"])
    low, high = np.quantile(values, [0.025, 0.975])
    found = score_captions(given).scores["BLEU-2"]
    assert found.low == pytest.approx(low, abs=0.2 * (high - low))
    assert found.high == pytest.approx(high, abs=0.2 * (high - low))


def test_a_single_answer_has_no_cider() -> None:
    found = score_captions([answer("a red ring", ("a red ring",), "one")])
    assert "CIDEr" not in found.scores
    assert "one picture" in found.unavailable["CIDEr"]
    assert found.unavailable["BLEU-4"] == "no reference has 4 words"
    assert found.scores["BLEU-3"].value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("references", "why"),
    [
        (("red", "red"), "2 of 2 answers"),  # the same words of both pictures: none weighs anything
        (("a red ring", "a red ring", "a red ring"), "3 of 3 answers"),
        (("a red ring", "a red"), "1 of 2 answers"),
        (("", ""), "no reference has a word"),
    ],
)
def test_cider_is_unavailable_where_a_right_answer_would_score_nothing(references: tuple[str, ...], why: str) -> None:
    given = [answer(text, (text,), str(place)) for place, text in enumerate(references)]
    found = score_captions(given)
    assert why in found.unavailable["CIDEr"]
    assert found.record()["scores"]["CIDEr"] is None
    assert any(line.startswith("CIDEr: unavailable, ") for line in found.lines())


def test_scores_at_their_ends_have_possible_intervals_of_some_width() -> None:
    texts = [f"the ring at place {number} is red" for number in range(12)]
    for right in (True, False):
        given = [answer(text if right else "no", (text,), str(place)) for place, text in enumerate(texts)]
        found = score_captions(given).scores
        assert set(found) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}
        for name, one in found.items():
            assert one.value == pytest.approx(one.top if right else 0, abs=1e-3)
            assert one.low is not None
            assert one.high is not None
            assert 0 <= one.low < one.high <= (10 if name == "CIDEr" else 1)
            assert one.high - one.low > 0.1 * one.top


def test_words_are_the_same_with_java_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert choose_words("auto") == choose_words("unicode") == "unicode"
    assert choose_words("ptb") == "ptb"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert choose_words("auto") == "unicode"
    with pytest.raises(ValueError, match="needs Java"):
        choose_words("ptb")


def test_an_empty_answer_scores_nothing() -> None:
    found = score_captions([answer("", ("a red ring",), "one"), answer("x", ("y",), "two")])
    assert all(interval.value == pytest.approx(0, abs=1e-6) for interval in found.scores.values())


@pytest.mark.parametrize("given", [[], [answer("a", (), "one")]])
def test_nothing_to_score_is_refused(given: list[Scored]) -> None:
    with pytest.raises(ValueError, match="answer"):
        score_captions(given)


@needs_java
@pytest.mark.slow
def test_meteor_is_there_where_java_is() -> None:
    found = score_captions(
        [answer("a red ring", ("a red ring",), "1"), answer("a dog", ("the sky",), "2")], meteor=True
    )
    assert 0 < found.scores["METEOR"].value < 1


def test_meteor_without_java_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "Java" in score_captions(answers(3), meteor=True).unavailable["METEOR"]


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="the real predictions are not here")
@pytest.mark.parametrize("form", ["grouped", "single"])
def test_real_predictions_score_as_pycocoevalcap_says(form: str) -> None:
    scored = read_predictions(REAL, form)[::4]
    given = AnswerSet(scored).split
    found = score_captions(scored).scores
    for name, value in library(given).items():
        assert found[name].value == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The dog's BIG house, costs $5.", "the dog s big house costs 5"),
        ("건물이 있는 넓은 광장, 사람들!", "건물이 있는 넓은 광장 사람들"),
        ("広い広場。人々", "広 い 広 場 人 々"),
        ("東京tower", "東 京 tower"),
        ("हिन्दी में", "हिन्दी में"),
        ("cafe\u0301 Ｆｕｌｌ", "café full"),
        ("!!! …", ""),
        ("10²", "10²"),
        ("soft\u00adhy\u200bphen it’s", "softhyphen it s"),
        ("", ""),
    ],
)
def test_unicode_words(text: str, words: str) -> None:
    assert split_words([text], "unicode") == [words]


@needs_java
def test_ptb_words_are_those_of_pycocoevalcap() -> None:
    texts = [
        "The dog's (big) house, costs $5.",
        'It isn\'t -- here; "there"',
        "건물이 있는 광장, 사람들!",
        "",
        "a\nb\u2028c",
    ]
    expected = PTBTokenizer().tokenize(
        {place: [{"caption": " ".join(text.split())}] for place, text in enumerate(texts)}
    )
    assert split_words(texts, "ptb") == [expected[place][0] for place in range(len(texts))]
    assert "건물이 있는 광장 사람들" in split_words(texts, "ptb")
