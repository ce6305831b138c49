"""Comparisons of models on the same questions: verdicts, corrections, tables and pictures."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from panollava.evaluation.comparison import (
    Contender,
    markdown,
    scores_picture,
    standings,
    standings_csv,
    trade_off_picture,
    verdicts,
    verdicts_csv,
)
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.statistics import compare_pairs, holm


def contender(name: str, share: float, seed: int = 0, pictures: int = 60) -> Contender:
    """A model that answers a share of four questions a picture rightly."""
    right = np.random.default_rng(seed).random((pictures, 4)) < share
    predictions = tuple(
        Prediction(
            sample_id=f"{picture}-{question}",
            image_id=str(picture),
            kind="what",
            question="what is there?",
            prediction="a red ring" if right[picture, question] else "a blue ball",
            references=("a red ring",),
            latency_s=0.01,
        )
        for picture in range(pictures)
        for question in range(4)
    )
    return Contender(name, predictions, 80)


def captions(name: str, share: float, seed: int = 0) -> Contender:
    """A model that describes a share of its pictures, each of another colour, rightly."""
    given = contender(name, share, seed)
    right = {"a red ring": "ring number {}", "a blue ball": "no such thing"}
    return replace(
        given,
        predictions=tuple(
            replace(
                one,
                prediction=right[one.prediction].format(one.sample_id),
                references=(f"ring number {one.sample_id}",),
            )
            for one in given.predictions
        ),
    )


def test_a_model_and_itself_are_not_distinguishable() -> None:
    (found,) = verdicts([contender("a", 0.5), contender("b", 0.5)], "unicode")
    assert not found.found.is_distinguishable
    assert str(found) == "a and b are not distinguishable: the same score on each of 60 pictures"


def test_the_verdict_is_that_of_a_calculation_by_hand() -> None:
    first, second = contender("a", 0.5, seed=1), contender("b", 0.7, seed=2)
    (found,) = verdicts([first, second], "unicode")
    right = [[one.prediction == "a red ring" for one in each.predictions] for each in (first, second)]
    difference = np.mean(right[1]) - np.mean(right[0])
    assert found.found.difference.value == pytest.approx(difference)
    assert found.found.is_distinguishable
    assert f"b is better than a: {100 * difference:+.1f} points" in str(found)
    images = [one.image_id for one in first.predictions]
    (pair,) = compare_pairs([(np.float64(right[0]), np.float64(right[1]))], images)
    assert found.found.adjusted_p == pair.p_value
    assert "a is worse than b" in str(verdicts([second, first], "unicode")[0])


def test_pairs_share_the_risk_of_error() -> None:
    adjusted, levels = holm([0.01, 0.04, 0.03])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06])
    assert levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2])
    assert holm([0.5, 0.9]) == ([1.0, 1.0], [0.025, 0.025])
    assert len(verdicts([contender(name, 0.5) for name in "abc"], "unicode")) == 3


def test_the_order_of_answers_does_not_matter() -> None:
    first, second = contender("a", 0.5, seed=1), contender("b", 0.7, seed=2)
    turned = Contender("b", second.predictions[::-1], 80)
    assert verdicts([first, turned], "unicode")[0].found == verdicts([first, second], "unicode")[0].found


def test_other_measures() -> None:
    (found,) = verdicts([contender("a", 0.3, seed=1), contender("b", 0.9, seed=2)], "unicode", "ROUGE-L")
    assert found.found.difference.value > 0
    assert found.found.is_distinguishable
    assert "points (" in str(found)
    (found,) = verdicts([captions("a", 0.3, seed=1), captions("b", 0.9, seed=2)], "unicode", "CIDEr")
    assert "points" not in str(found)
    with pytest.raises(ValueError, match="CIDEr' is unavailable on these questions"):
        verdicts([contender("a", 0.3), contender("b", 0.9)], "unicode", "CIDEr")


@pytest.mark.parametrize(
    ("pictures", "models", "words"),
    [
        (3, 2, "3 pictures cannot show any difference at 5 %, it takes 6 at least"),
        (7, 5, "7 pictures cannot show any difference at 5 % among 10 pairs of runs, it takes 9 at least"),
        (1, 2, "1 picture cannot show any difference at 5 %"),
    ],
)
def test_what_few_pictures_cannot_show(pictures: int, models: int, words: str) -> None:
    found = verdicts([contender(str(n), n / models, seed=n, pictures=pictures) for n in range(models)], "unicode")
    assert all("not distinguishable" in str(one) and "would be needed" not in str(one) for one in found)
    assert words in str(found[-1])


def test_what_would_be_needed_is_more_than_there_is() -> None:
    (found,) = verdicts([contender("a", 0.5, seed=1, pictures=8), contender("b", 0.6, seed=2, pictures=8)], "unicode")
    needed = re.search(r"some ([\d,]+) pictures would be needed to distinguish them", str(found))
    assert needed is not None
    assert int(needed[1].replace(",", "")) >= 9


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="two runs"):
        verdicts([contender("a", 0.5)], "unicode")
    with pytest.raises(ValueError, match="b answered other questions"):
        verdicts([contender("a", 0.5), contender("b", 0.5, pictures=59)], "unicode")
    with pytest.raises(ValueError, match="BLEU"):
        verdicts([contender("a", 0.5), contender("b", 0.5)], "unicode", "BLEU-4")


def test_tables_and_pictures() -> None:
    models = [contender("a|b", 0.5, seed=1), contender("모델", 0.7, seed=2)]
    places, found = standings(models, "unicode"), verdicts(models, "unicode")
    text = markdown(places, found, "Two runs", "unicode")
    assert "words=unicode" in text
    assert "- CIDEr is unavailable: weighs words" in text
    assert text.index("| 모델 |") < text.index("| a\\|b |")  # the best first
    assert "모델 is better than a|b" in text
    rows = list(csv.DictReader(io.StringIO(standings_csv(places))))
    assert float(rows[0]["exact match"]) == pytest.approx(places[0].exact.value)
    assert rows[0]["image tokens"] == "80"
    (pair,) = csv.DictReader(io.StringIO(verdicts_csv(found)))
    assert (pair["first"], pair["distinguishable"]) == ("a|b", "True")
    for picture in (scores_picture(places), trade_off_picture(places)):
        assert min(Image.open(io.BytesIO(picture)).size) > 150
