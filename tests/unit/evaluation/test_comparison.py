"""Comparisons of models on the same questions: verdicts, corrections, tables and pictures."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from panollava.evaluation.comparison import (
    Contender,
    by_setting,
    markdown,
    scores_picture,
    setting_scores,
    settings_table,
    standings,
    standings_csv,
    trade_off_picture,
    verdict_lines,
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
    same = "a and b are not distinguishable: the same score on each of 60 pictures"
    assert (
        str(found) == f"The trained models {same}; about the settings nothing is shown: the config of a run is missing"
    )


def test_the_verdict_is_that_of_a_calculation_by_hand() -> None:
    first, second = contender("a", 0.5, seed=1), contender("b", 0.7, seed=2)
    (found,) = verdicts([first, second], "unicode")
    right = [[one.prediction == "a red ring" for one in each.predictions] for each in (first, second)]
    difference = np.mean(right[1]) - np.mean(right[0])
    assert found.found.difference.value == pytest.approx(difference)
    assert found.found.is_distinguishable
    assert f"b is better than a: {100 * difference:+.1f} points" in str(found)
    images = [one.image_id for one in first.predictions]
    (pair,) = compare_pairs([(np.float64(right[0]), np.float64(right[1]), images)])
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


@pytest.mark.parametrize(("pictures", "shares"), [(60, (0.5, 0.5)), (60, (0.0, 1.0)), (5, (0, 1)), (60, (0.3, 0.8))])
def test_what_would_be_seen_is_never_nothing(pictures: int, shares: tuple[float, float]) -> None:
    """Also where no picture, or every one, differs; below the least number of pictures it is empty."""
    models = [contender(name, share, seed=1, pictures=pictures) for name, share in zip("ab", shares, strict=True)]
    (found,) = verdicts(models, "unicode")
    (pair,) = csv.DictReader(io.StringIO(verdicts_csv([found])))
    if pictures < found.found.least_groups:
        assert pair["detectable"] == ""
    else:
        assert 0.03 < float(pair["detectable"]) <= 1
        assert float(pair["detectable"]) >= found.found.detectable


def test_tables_and_pictures() -> None:
    models = [contender("a|b", 0.5, seed=1), contender("모델", 0.7, seed=2)]
    places, found = standings(models, "unicode"), verdicts(models, "unicode")
    text = markdown(places, verdict_lines(found), "Two runs", "unicode")
    assert "words=unicode" in text
    assert "- CIDEr is unavailable: weighs words" in text
    assert text.index("| 모델 |") < text.index("| a\\|b |")  # the best first
    assert "모델 is better than a|b" in text
    rows = list(csv.DictReader(io.StringIO(standings_csv(places))))
    assert float(rows[0]["exact match"]) == pytest.approx(places[0].exact.value)
    assert rows[0]["image tokens"] == "80"
    (pair,) = csv.DictReader(io.StringIO(verdicts_csv(found)))
    assert (pair["first"], pair["distinguishable"]) == ("a|b", "True")
    for files in (scores_picture(places), trade_off_picture(places)):
        assert min(Image.open(io.BytesIO(files["png"])).size) > 150
        texts = [each.text for each in ElementTree.fromstring(files["svg"]).iter("{http://www.w3.org/2000/svg}text")]
        assert {"모델", "a|b"} <= set(texts)  # letters, and no outlines of letters
    assert scores_picture(places) == scores_picture(places)


def repeats(shares: dict[str, float], seeds: int, spread: float = 0.0) -> list[Contender]:
    """Models of settings that answer a share of their questions rightly, which differs by up to `spread` by seed."""
    return [
        replace(
            contender(f"{name}{seed}", share + spread * seed / max(1, seeds - 1), 10 * place + seed),
            setting={"resampler": name},
            seed=str(seed),
            facts={"parameters": f"{place}"},
        )
        for place, (name, share) in enumerate(shares.items())
        for seed in range(seeds)
    ]


def test_verdicts_on_settings_are_by_seed_first() -> None:
    models = repeats({"mlp": 0.5, "bimamba": 0.9, "qformer": 0.5}, 3)
    found = {(one.first, one.second): one for one in verdicts(models, "unicode")}
    far = found["resampler=mlp", "resampler=bimamba"]
    assert far.is_distinguishable
    assert re.match(
        r"resampler=bimamba is better than resampler=mlp over seeds: \+\d\d\.\d points \(\+.* to \+.*\), p = 0\.0\d+, "
        r"3 seeds each; by picture \+\d\d\.\d points \(\+.* to \+.*\), p = 0\.000\d$",
        str(far),
    )
    near = found["resampler=mlp", "resampler=qformer"]
    assert not near.is_distinguishable
    assert str(near).startswith("resampler=mlp and resampler=qformer are not distinguishable over seeds: ")
    assert "seeds each would be needed to distinguish them; by picture" in str(near)
    scores = {one.name: np.mean([each.prediction == "a red ring" for each in one.predictions]) for one in models}
    means = [np.mean([scores[f"{name}{seed}"] for seed in range(3)]) for name in ("mlp", "bimamba")]
    assert far.found.difference.value == pytest.approx(means[1] - means[0])
    assert far.seeds is not None
    assert far.seeds.difference.value == pytest.approx(means[1] - means[0])
    assert "Holm's correction" in verdict_lines(list(found.values()))
    rows = list(csv.DictReader(io.StringIO(verdicts_csv(list(found.values())))))
    assert [(row["first seeds"], row["distinguishable"]) for row in rows] == [
        ("3", "True"),
        ("3", "False"),
        ("3", "True"),
    ]


def test_a_difference_by_picture_alone_is_no_verdict_on_settings() -> None:
    """Seeds that lie far apart hide a difference that thousands of answers make certain for these models."""
    (found,) = verdicts(repeats({"a": 0.5, "b": 0.6}, 2, spread=0.3), "unicode")
    assert found.found.is_distinguishable
    assert not found.is_distinguishable
    assert "are not distinguishable over seeds" in str(found)
    assert "by picture, where these trained models differ +" in str(found)


def test_one_seed_says_nothing_about_settings() -> None:
    alone = repeats({"a": 0.3, "b": 0.9}, 1)
    assert by_setting(alone) == {}
    assert settings_table(alone, "unicode") == ""
    (found,) = verdicts(alone, "unicode")
    assert found.is_distinguishable
    assert str(found).startswith("Of these two trained models, b0 is better than a0: +")
    assert str(found).endswith("; about the settings nothing is shown: one seed each")
    (found,) = verdicts([*alone, repeats({"a": 0.3}, 2)[1]], "unicode")
    assert str(found).startswith(
        "About the settings resampler=a and resampler=b nothing is shown: one seed of resampler=b; these trained "
        "models differ by picture: +"
    )
    assert not found.is_distinguishable


def test_a_verdict_names_what_was_still_learning() -> None:
    models = repeats({"a": 0.3, "b": 0.9}, 2)
    (found,) = verdicts([replace(models[0], still_learning=True), *models[1:]], "unicode")
    assert str(found).endswith("; resampler=a was still learning, so this ranks how fast, not how well")
    (found,) = verdicts([replace(one, still_learning=True) for one in models[::2]], "unicode")
    assert str(found).endswith("; a0 and b0 were still learning, so this ranks how fast, not how well")
    assert "learning" not in str(verdicts([replace(one, still_learning=False) for one in models], "unicode")[0])


def test_the_same_seed_twice_is_no_repetition() -> None:
    models = repeats({"a": 0.3, "b": 0.9}, 2)
    again = replace(models[0], name="again")
    assert by_setting([*models, again]) == {}
    assert by_setting([replace(one, setting=None) for one in models]) == {}
    assert str(verdicts([*models, again], "unicode")[0]).endswith(
        "; about the settings nothing is shown: resampler=a has 2 models of seed 0 (a0, again), name one of them"
    )
    unknown = verdicts([replace(one, setting=None) for one in models], "unicode")
    assert str(unknown[0]).endswith("nothing is shown: the config of a run is missing")
    same = [replace(one, predictions=models[0].predictions) for one in models]
    (found,) = verdicts(same, "unicode")
    assert str(found).endswith(
        "nothing is shown: the seeds of each score the same; these trained models are not distinguishable by picture: "
        "the same score on each picture"
    )


def test_seeds_of_one_setting_are_compared_as_models() -> None:
    models = [replace(one, setting={}) for one in repeats({"a": 0.3}, 3)]
    found = verdicts(models, "unicode")
    assert [(one.first, one.second) for one in found] == [("a0", "a1"), ("a0", "a2"), ("a1", "a2")]
    assert str(found[0]).endswith("; they are of one setting, with a seed each")


def test_the_table_of_settings() -> None:
    models = repeats({"a": 0.3, "b": 0.9}, 3)
    head, _, *rows = [line[2:-2].split(" | ") for line in settings_table(models, "unicode").splitlines()]
    assert head[:4] == ["resampler", "seeds", "exact match, %", "interval by seed"]
    scores = setting_scores(models, "unicode")
    for row, own in zip(rows, scores, strict=True):
        cells = dict(zip(head, row, strict=True))
        assert cells["exact match, %"] == f"{100 * np.mean(own):.1f}"
        assert cells["per seed, %"] == ", ".join(f"{100 * one:.1f}" for one in sorted(own))
        low, high = map(float, cells["interval by seed"].split(" to "))
        half = 4.303 * np.std(own, ddof=1) / math.sqrt(3)
        assert (low, high) == pytest.approx((100 * (np.mean(own) - half), 100 * (np.mean(own) + half)), abs=0.06)
    assert [row[-1] for row in rows] == ["0", "1"]
