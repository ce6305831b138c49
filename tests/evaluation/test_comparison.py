"""Comparisons of models on the same questions: verdicts, corrections, tables and pictures."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image

from panollava.evaluation.comparison import Contender, holm, standings, verdicts
from panollava.evaluation.comparison_report import (
    markdown,
    scores_picture,
    standings_csv,
    trade_off_picture,
    verdicts_csv,
)
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.statistics import compare


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


def test_a_model_and_itself_are_not_distinguishable() -> None:
    (found,) = verdicts([contender("a", 0.5), contender("b", 0.5)], "unicode")
    assert not found.is_distinguishable
    assert "not distinguishable" in str(found)
    assert "no number of pictures" in str(found)


def test_the_verdict_is_that_of_a_calculation_by_hand() -> None:
    first, second = contender("a", 0.5, seed=1), contender("b", 0.7, seed=2)
    (found,) = verdicts([first, second], "unicode")
    right = [[one.prediction == "a red ring" for one in each.predictions] for each in (first, second)]
    difference = np.mean(right[1]) - np.mean(right[0])
    assert found.found.difference.value == pytest.approx(difference)
    assert found.is_distinguishable
    assert f"b is better than a: {100 * difference:+.1f} points" in str(found)
    images = [one.image_id for one in first.predictions]
    assert found.adjusted_p == compare(np.float64(right[0]), np.float64(right[1]), images).p_value
    assert "a is worse than b" in str(verdicts([second, first], "unicode")[0])


def test_pairs_share_the_risk_of_error() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert len(verdicts([contender(name, 0.5) for name in "abc"], "unicode")) == 3


def test_the_order_of_answers_does_not_matter() -> None:
    first, second = contender("a", 0.5, seed=1), contender("b", 0.7, seed=2)
    turned = Contender("b", second.predictions[::-1], 80)
    assert verdicts([first, turned], "unicode")[0].found == verdicts([first, second], "unicode")[0].found


def test_other_measures() -> None:
    (found,) = verdicts([contender("a", 0.3, seed=1), contender("b", 0.9, seed=2)], "unicode", "ROUGE-L")
    assert found.found.difference.value > 0
    assert found.is_distinguishable


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
    text = markdown(places, found, "Two runs")
    assert text.index("| 모델 |") < text.index("| a\\|b |")  # the best first
    assert "모델 is better than a|b" in text
    rows = list(csv.DictReader(io.StringIO(standings_csv(places))))
    assert float(rows[0]["exact match"]) == pytest.approx(places[0].exact.value)
    assert rows[0]["image tokens"] == "80"
    (pair,) = csv.DictReader(io.StringIO(verdicts_csv(found)))
    assert (pair["first"], pair["distinguishable"]) == ("a|b", "True")
    for picture in (scores_picture(places), trade_off_picture(places)):
        assert min(Image.open(io.BytesIO(picture)).size) > 150
