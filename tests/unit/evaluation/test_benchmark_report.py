"""Answers of a file to a benchmark: how they find their items, and the command that scores both forms."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from support.benchmark_files import Fixture

from panollava.evaluation.benchmarks.protocol import BENCHMARKS, Name, find_benchmark
from panollava.evaluation.benchmarks.report import read_answers, score_benchmark
from panollava.run.options import EvalOptions
from panollava.score import ScoreOptions

NONE: dict[str, str | None] = {}


def written(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def by_id(fixture: Fixture, path: Path) -> Path:
    return written(path, [["item_id", "prediction"], *([one["id"], one["answer"]] for one in fixture.cases)])


def test_the_sets_are_those_of_the_command() -> None:
    assert get_args(Name) == tuple(BENCHMARKS)
    for options in (ScoreOptions, EvalOptions):
        (literal, _) = get_args(get_type_hints(options)["benchmark"])
        assert get_args(literal) == tuple(BENCHMARKS)
    assert [find_benchmark(name).name for name in BENCHMARKS] == list(BENCHMARKS)


@pytest.mark.parametrize("name", ["panospace", "bench360", "panoenv", "eagle", "hstar"])
def test_answers_find_their_items_by_id(name: str, tmp_path: Path) -> None:
    fixture = Fixture(name, tmp_path / "set")
    path = by_id(fixture, tmp_path / "predictions.csv")
    assert read_answers(path, fixture.items, shares_answers=False, named=NONE) == fixture.answered()


def test_orders_of_a_question_take_the_rows_in_their_order(tmp_path: Path) -> None:
    fixture = Fixture("bench360", tmp_path / "set")
    rows = [["image", "question", "prediction"]]
    rows += [[f"./{one.item.image}", one.item.question, one.answer or ""] for one in fixture.answered()]
    path = written(tmp_path / "predictions.csv", rows)
    assert read_answers(path, fixture.items, shares_answers=False, named=NONE) == fixture.answered()
    written(path, rows[:3])
    with pytest.raises(ValueError, match=r"line 3: 2 answers to .* which is 4 items"):
        read_answers(path, fixture.items, shares_answers=False, named=NONE)


def test_prompts_tell_the_orders_of_a_question_apart(tmp_path: Path) -> None:
    """In another order of rows: by the question alone an answer would go to another order of the options."""
    fixture = Fixture("bench360", tmp_path / "set")
    rows = [[one.item.image, one.item.prompt, one.answer or ""] for one in reversed(fixture.answered())]
    path = written(tmp_path / "predictions.csv", [["image", "question", "prediction"], *rows])
    assert read_answers(path, fixture.items, shares_answers=False, named=NONE) == fixture.answered()
    written(path, [["image", "question", "prediction"], *rows[:3]])
    found = read_answers(path, fixture.items, shares_answers=False, named=NONE)
    assert [one.answer for one in found if one.answer is not None] == [row[-1] for row in reversed(rows[:3])]


def test_one_answer_serves_all_references_of_a_question(tmp_path: Path) -> None:
    fixture = Fixture("quic360", tmp_path / "set")
    rows = [["url", "query", "prediction"], *([one["image"], one["question"], one["answer"]] for one in fixture.cases)]
    path = written(tmp_path / "predictions.csv", rows)
    assert read_answers(path, fixture.items, shares_answers=True, named=NONE) == fixture.answered()


def test_a_picture_of_an_address_may_be_its_file_and_a_question_the_prompt(tmp_path: Path) -> None:
    fixture = Fixture("quic360", tmp_path / "set")
    rows = [["image_id", "question", "prediction", "sample_id"]]
    for one in fixture.cases:
        item = next(each for each in fixture.items if (each.image, each.question) == (one["image"], one["question"]))
        rows.append([item.picture.name, item.prompt, one["answer"], "0"])
    path = written(tmp_path / "predictions.csv", rows)
    assert read_answers(path, fixture.items, shares_answers=True, named=NONE) == fixture.answered()


def test_a_column_that_is_named_is_taken(tmp_path: Path) -> None:
    fixture = Fixture("panoenv", tmp_path / "set")
    path = written(tmp_path / "p.csv", [["id", "said"], ["1", "yes"]])
    found = read_answers(path, fixture.items, shares_answers=False, named={"prediction": "said"})
    assert [one.answer for one in found[:2]] == ["yes", None]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["item_id", "prediction"], ["99", "yes"]], "line 2: '99' names no item of the set"),
        ([["item_id", "prediction"], ["1", "yes"], ["1", "no"]], "line 3: 2 answers to '1', which is 1 items"),
        ([["image", "prediction"], ["a.jpg", "yes"]], "no column names the items"),
        ([["item_id", "words"], ["1", "yes"]], "no column for the prediction"),
    ],
)
def test_rows_that_fit_no_item_are_refused(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    fixture = Fixture("panoenv", tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        read_answers(written(tmp_path / "p.csv", rows), fixture.items, shares_answers=False, named=NONE)


def test_a_missing_file_and_no_answers_are_refused(tmp_path: Path) -> None:
    fixture = Fixture("panoenv", tmp_path / "set")
    with pytest.raises(FileNotFoundError, match="predictions="):
        read_answers(tmp_path / "p.csv", fixture.items, shares_answers=False, named=NONE)
    nothing = [type(one)(one.item, None) for one in fixture.answered()]
    with pytest.raises(ValueError, match="No item of panoenv has an answer"):
        score_benchmark(fixture.benchmark, nothing)


def test_the_table_has_both_forms_and_all_counts(tmp_path: Path) -> None:
    fixture = Fixture("panospace", tmp_path / "set")
    table = score_benchmark(fixture.benchmark, fixture.answered()).table().splitlines()
    assert "| as released | corrected |" in table[0]
    assert any(line.startswith("| accuracy | 50.0 % (") and "| 56.7 % (" in line for line in table)
    assert table[-4:] == [
        "| scored | 53 | 53 |",
        "| skipped, they count for nothing | 0 | 0 |",
        "| without an answer, counted as wrong | 0 | 0 |",
        "| with nothing to read in the answer | 11 | 16 |",
    ]


def command(folder: Path, *keys: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "panollava.score", "predictions.csv", *keys]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.slow
def test_the_command_prints_and_keeps_both_forms(tmp_path: Path) -> None:
    fixture = Fixture("bench360", tmp_path / "set")
    by_id(fixture, tmp_path / "predictions.csv")
    done = command(tmp_path, "benchmark=bench360", "benchmark_files=set")
    assert done.returncode == 0, done.stderr
    assert "| right in all orders | – | 30.8 % (" in done.stdout + done.stderr
    kept = json.loads((tmp_path / "predictions_scores.json").read_text())
    assert kept["benchmark"] == "bench360"
    assert kept["as_released"]["scores"]["accuracy"]["value"] == pytest.approx(16 / 52)
    assert kept["corrected"]["scores"]["accuracy"]["value"] == pytest.approx(31 / 52)


@pytest.mark.slow
def test_the_command_names_a_missing_picture_and_idle_keys(tmp_path: Path) -> None:
    fixture = Fixture("panospace", tmp_path / "set")
    by_id(fixture, tmp_path / "predictions.csv")
    (fixture.folder / "images" / "gone.jpg").unlink()
    done = command(tmp_path, "benchmark=panospace", "benchmark_files=set")
    assert done.returncode == 1
    assert "gone.jpg" in done.stderr
    done = command(tmp_path, "benchmark=panospace", "meteor=true", "truth=boxes.json")
    assert "meteor, truth: no effect with benchmark=panospace" in done.stderr
    assert "benchmark_files is missing" in done.stderr
    assert "no effect without benchmark=" in command(tmp_path, "benchmark_files=set").stderr
