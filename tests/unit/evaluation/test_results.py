"""Result files: the exact names and columns, any text, and never half a folder."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panollava.evaluation.exact_match import score_answers
from panollava.evaluation.predictions import METRICS, PREDICTIONS, Prediction
from panollava.evaluation.results import latency_summary, write_results
from panollava.score import _conditions

NOW = datetime(2026, 1, 2, 3, 4, 5)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def test_files_columns_and_contents(tmp_path, answer) -> None:
    predictions = [
        answer('빨강,\n\'"red"', "빨강", 'red; "x"', kind="색"),
        answer("", "nan"),
        answer("The red.", "red", history=(("Was?", '"빨강"'),)),
    ]
    folder = write_results(
        tmp_path,
        "demo",
        predictions,
        score_answers(predictions),
        settings={"seed": 7, "path": tmp_path},
        now=NOW,
    )
    assert folder == tmp_path / "eval_results" / "demo" / "predictions_20260102_030405"
    assert {path.name for path in folder.iterdir()} == {"predictions.csv", "metrics.json"}
    assert (folder / PREDICTIONS).read_bytes().startswith(b"\xef\xbb\xbfsample_id,")
    rows = _read(folder / PREDICTIONS)
    names = "sample_id,image_id,kind,turn,history,question,prediction,references,reference,correct,latency_s"
    assert ",".join(rows[0]) == names
    assert [row["prediction"] for row in rows] == ['빨강,\n\'"red"', "", "The red."]
    assert json.loads(rows[0]["references"]) == ["빨강", 'red; "x"']
    assert [row["reference"] for row in rows] == ["빨강", "nan", "red"]
    assert [(row["turn"], row["history"]) for row in rows[1:]] == [("1", ""), ("2", '[["Was?", "\\"빨강\\""]]')]
    assert [row["correct"] for row in rows] == ["false", "false", "true"]
    assert pd.read_csv(folder / PREDICTIONS)["correct"].tolist() == [False, False, True]

    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    assert metrics["experiment_name"] == "demo"
    assert metrics["exact_match"] == pytest.approx(1 / 3)
    assert metrics["kinds"]["색"]["count"] == 1
    assert metrics["settings"] == {"seed": 7, "path": str(tmp_path)}
    assert metrics["latency"]["mean_s"] == 0.5
    assert "batch" in metrics["latency"]["measured_as"]


def test_evaluations_of_the_same_second_do_not_overwrite_each_other(tmp_path, answer) -> None:
    predictions = [answer("red", "red")]
    report = score_answers(predictions)
    folders = [write_results(tmp_path, "sweep/job", predictions, report, now=NOW) for _ in range(3)]
    assert [folder.name for folder in folders] == [
        "predictions_20260102_030405",
        "predictions_20260102_030405_2",
        "predictions_20260102_030405_3",
    ]


def test_an_evaluation_that_was_stopped_takes_over_what_it_had_written(tmp_path, answer) -> None:
    predictions = [answer("red", "red", latency_s=0.25)]
    report = score_answers(predictions)
    first = write_results(tmp_path, "demo", predictions, report, now=NOW, key="mine", settings={"seed": 1})
    for name in (".writing_mine_abc", ".writing_other_abc"):  # the second may be at work
        (first.parent / name).mkdir()
    (first / ".tmp-answers.png-abc").write_text("half a picture")
    again = write_results(tmp_path, "demo", predictions, report, key="mine", resumed=True, settings={"seed": 1})
    assert again == first
    assert sorted(path.name for path in first.parent.iterdir()) == [".writing_other_abc", first.name]
    assert sorted(path.name for path in first.iterdir()) == ["metrics.json", "predictions.csv"]
    slower = [answer("red", "red", latency_s=0.5)]
    for answers, seed in ((slower, 1), (predictions, 2)):  # another evaluation, and the same scored in another way
        other = write_results(tmp_path, "demo", answers, report, key="mine", resumed=True, settings={"seed": seed})
        assert other != first


def test_a_failure_leaves_no_folder_behind(tmp_path, answer, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("panollava.disk.os.fsync", full)
    predictions = [answer("red", "red")]
    with pytest.raises(OSError, match="No space"):
        write_results(tmp_path, "demo", predictions, score_answers(predictions))
    assert list((tmp_path / "eval_results" / "demo").iterdir()) == []


@pytest.mark.parametrize("name", ["../elsewhere", "", "/tmp/elsewhere", "a/../../b", "..\\up"])
def test_an_experiment_stays_below_the_results(tmp_path, answer, name) -> None:
    predictions = [answer("red", "red")]
    with pytest.raises(ValueError, match="experiment_name="):
        write_results(tmp_path, name, predictions, score_answers(predictions))


@settings(deadline=None)  # it waits for the disk
@given(text=st.text(st.characters(codec=None), max_size=20))
def test_any_text_survives(tmp_path_factory, text) -> None:
    folder = tmp_path_factory.getbasetemp()
    predictions = [Prediction("s", "i", "k", text, text, (text,), 0.1)]
    folder = write_results(folder, "any", predictions, score_answers(predictions))
    expected = text.encode("utf-8", "backslashreplace").decode("utf-8")
    assert _read(folder / PREDICTIONS)[0]["prediction"] == expected
    json.loads((folder / METRICS).read_text(encoding="utf-8"))


def test_settings_that_json_cannot_hold_are_written_as_text(tmp_path, answer) -> None:
    predictions = [answer("red", "red")]
    folder = write_results(tmp_path, "demo", predictions, score_answers(predictions), settings={"loss": float("nan")})
    assert json.loads((folder / METRICS).read_text())["settings"] == {"loss": "NaN"}


def test_latency_percentiles(answer) -> None:
    summary = latency_summary([answer("x", "x", latency_s=float(value)) for value in range(1, 21)])
    assert (summary["mean_s"], summary["median_s"], summary["p95_s"]) == (10.5, 10.5, 19.0)


def test_a_scored_file_has_the_conditions_of_its_own_answers(tmp_path, answer, caplog) -> None:
    """Not those of another file in the folder, nor of answers that were changed."""
    predictions = [answer("red", "red"), answer("blue", "red")]
    settings = {"conditions": {"weights": "abc"}}
    folder = write_results(tmp_path, "demo", predictions, score_answers(predictions), settings=settings)
    assert _conditions(folder / PREDICTIONS) == {"weights": "abc"}
    other = folder / "other.csv"
    text = (folder / PREDICTIONS).read_bytes()
    other.write_bytes(text)
    assert _conditions(other) is None
    (folder / PREDICTIONS).write_bytes(text.replace(b"blue", b"red"))
    assert _conditions(folder / PREDICTIONS) is None
    (folder / PREDICTIONS).write_bytes(text)
    (folder / METRICS).write_text("[]")
    assert _conditions(folder / PREDICTIONS) is None
    (folder / METRICS).unlink()
    assert _conditions(folder / PREDICTIONS) is None
