"""Metrics: which are chosen, what each needs, and one of another package from the config to the files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from support.runs import command, config

from panollava import component, score
from panollava.evaluation import metrics
from panollava.evaluation.comparison import Contender, verdicts
from panollava.evaluation.metrics import (
    METRICS,
    AnswerSet,
    Metric,
    check_metrics,
    compute_scores,
    find_metric,
    find_metrics,
)
from panollava.evaluation.predictions import Prediction, as_scored
from panollava.run.config_check import checked

GUIDE = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text(encoding="utf-8")
(BREVITY,) = re.findall(r"^```python\n# my_package/brevity.py\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
OTHERS = '''

class Nameless(Metric):
    """Has no name."""


class Argument(Brevity):
    """Cannot be built."""

    def __init__(self, words): ...


class Needy(Brevity):
    """Needs what there is not."""

    needs = ("gpu",)


class Exact(Brevity):
    """Has the name of one of ours."""

    name = "exact match"


class NoMetric:
    """Is no metric."""
'''
Answers = Callable[..., Prediction]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with the metric of CONTRIBUTING.md, on the path and not yet allowed."""
    folder = tmp_path / "site" / "my_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "brevity.py").write_text(BREVITY + OTHERS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("PANOLLAVA_ALLOW", "")
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, name)
    return "my_package.brevity:Brevity"


def test_a_metric_of_another_package_is_scored_beside_ours(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named on the command line, which allows it; the record has no other metric but exact match."""
    path = tmp_path / "predictions.csv"
    rows = [f"{n}.png,what?,{'one two' if n % 2 else 'one'},one" for n in range(6)]
    path.write_text("\n".join(["image,question,prediction,reference", *rows]))
    assert command(monkeypatch, score, str(path), f"metrics=[BLEU,{package}]") == 0
    record = json.loads((tmp_path / "predictions_scores.json").read_text())
    assert list(record["scores"]) == ["exact match", "BLEU-1", "brevity", "BLEU-2", "BLEU-3", "BLEU-4"]
    found = record["scores"]["brevity"]
    assert found["value"] == pytest.approx(0.75)
    assert 0 < found["low"] < 0.75 < found["high"] <= 1
    assert record["unavailable"].keys() == {"BLEU-2", "BLEU-3", "BLEU-4"}
    assert (record["metrics"], record["packages"]) == (["BLEU", package], {"my_package": "unknown"})
    assert "| brevity | 75.0 % (" in capsys.readouterr().err
    assert command(monkeypatch, score, str(path), "metrics=[blue]") == 1
    assert "metrics: there is no 'blue'" in capsys.readouterr().err


def test_runs_are_compared_by_a_metric_of_another_package(package: str, answer: Answers) -> None:
    component.allow("my_package")
    given = [
        Contender(name, tuple(answer(text, "one", image_id=str(n), sample_id=str(n)) for n in range(8)), 9)
        for name, text in (("long", "one two"), ("short", "one"))
    ]
    (found,) = verdicts(given, "unicode", package)
    assert found.found.difference.value == pytest.approx(0.5)
    assert found.found.is_distinguishable


def test_the_config_is_checked(package: str) -> None:
    with pytest.raises(ValueError, match=r"evaluation.metrics=my_package.brevity:Brevity .* allow=my_package"):
        find_metrics([package], "evaluation.metrics")
    # Naming it in the config of a training allows it.
    assert checked(config(f"evaluation.metrics=[CIDEr,{package}]")).evaluation.metrics == ["CIDEr", package]
    assert checked(config()).evaluation.metrics is None


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["ROUGE"], r"key: there is no 'ROUGE'. Did you mean 'ROUGE-L'\? Available: exact match, BLEU"),
        (["BLEU", "BLEU"], "BLEU is listed twice"),
        (["my_package.brevity:Nameless"], "the class has no name"),
        (["my_package.brevity:Argument"], "has arguments without a default"),
        (["my_package.brevity:Needy"], r"needs=\['gpu'\]: allowed are meteor, java"),
        (["my_package.brevity:Exact"], "exact match is listed twice"),
        (["my_package.brevity:NoMetric"], "is no Metric: it has no per_answer, scores"),
        (["my_package.brevity:Missing"], "has no class Missing"),
    ],
)
def test_what_is_no_metric_is_refused(package: str, types: list[str], message: str) -> None:
    component.allow("my_package")
    with pytest.raises(ValueError, match=message):
        find_metrics(types, "key")
    (problem,) = check_metrics(types, "key")
    assert problem.startswith("key")
    assert check_metrics(None, "key") == check_metrics(list(METRICS), "key") == check_metrics([1], "key") == []


def test_every_metric_of_ours_says_what_it_is() -> None:
    for name in METRICS:
        found = find_metric(name, "key")
        assert (found.name, type(found).__doc__ is not None) == (name, True)
        assert set(found.needs) <= set(get_args(metrics.Need))
    assert [one.name for one in find_metrics(None, "key")] == [name for name in METRICS if name != "exact match"]
    assert [one.name for one in find_metrics(["METEOR", "exact match"], "key")] == ["METEOR"]


class Given(Metric):
    """Gives what a test says."""

    def __init__(self, name: str, values: object) -> None:
        self.name, self.values = name, values  # type: ignore[misc]

    def per_answer(self, answers: AnswerSet) -> np.ndarray:
        return np.array(self.values)


@pytest.mark.parametrize("values", [[0.5], [0.5, np.nan], [0.5, 1.5], [-0.1, 0.5], [[0.5, 0.5]]])
def test_scores_out_of_range_or_of_another_number_are_refused(answer: Answers, values: list) -> None:
    answers = AnswerSet(as_scored([answer("red", "red", sample_id=str(at)) for at in range(2)]))
    with pytest.raises(ValueError, match="The metric 'odd' must give 2 numbers from 0 to 1"):
        compute_scores(answers, [Given("odd", values)])


def test_a_metric_does_not_replace_the_score_of_another(answer: Answers) -> None:
    answers = AnswerSet(as_scored([answer("red", "red", sample_id=str(at)) for at in range(2)]))
    with pytest.raises(ValueError, match="BLEU-1 is the name of scores of two metrics"):
        compute_scores(answers, [find_metric("BLEU", "key"), Given("BLEU-1", [0.0, 0.0])])


class Seen(Metric):
    """Mean grey level of the panorama of each answer."""

    name, needs, top = "seen", ("pictures",), 255.0

    def per_answer(self, answers: AnswerSet) -> np.ndarray:
        assert answers.pictures is not None
        return np.array([float(answers.pictures(image).mean()) for image in answers.images])


def test_what_a_metric_needs_and_is_not_there_makes_it_unavailable(
    answer: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = as_scored([answer("red", "red", image_id=str(n)) for n in range(3)])
    without = compute_scores(AnswerSet(scored), [Seen()])
    assert (without.scores, list(without.unavailable)) == ({}, ["seen"])
    assert without.record()["scores"] == {"seen": None}
    pictures = {str(n): np.full((2, 4, 3), 40 * n, np.uint8) for n in range(3)}
    found = compute_scores(AnswerSet(scored, pictures=pictures.__getitem__), [Seen()])
    assert (found.scores["seen"].value, found.scores["seen"].top, found.unavailable) == (40, 255, {})


def test_a_line_of_the_registry_adds_one_of_ours(answer: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class, in a module of its own or beside others, and the line: two files at most."""
    monkeypatch.setitem(METRICS, "seen", f"{__name__}:Seen")
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _as_module())
    assert find_metrics(None, "key")[-1].name == "seen"
    found = compute_scores(AnswerSet(as_scored([answer("red", "red")])), find_metrics(None, "key"))
    assert "needs pictures" in found.unavailable["seen"]


def _as_module() -> object:
    module = type(sys)(__name__)
    vars(module).update(globals())
    return module
