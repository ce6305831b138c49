"""Files of predictions: how they are read, grouped and scored, and the command that does it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from support import ROOT

from panollava.evaluation.exact_match import score_answers
from panollava.evaluation.metrics import AnswerSet, find_metrics, score
from panollava.evaluation.predictions import METRICS, PREDICTIONS, Prediction, as_scored, read_answers, read_predictions
from panollava.evaluation.results import write_results
from panollava.run.data import data_name, data_overrides

TABLE = """image,query,prediction,reference
a.jpg,what?,a ring,a ring
a.jpg,what?,a ball,the ball
a.jpg,where?,left,left
b.jpg,what?,"sky, blue",blue
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.csv"
    path.write_text("\ufeff" + TABLE, encoding="utf-8")
    return path


def test_grouped_rows_share_the_references_of_their_question(table: Path) -> None:
    rows = read_predictions(table, "grouped")
    assert [row.references for row in rows] == [("a ring", "the ball")] * 2 + [("left",), ("blue",)]
    assert [row.prediction for row in rows] == ["a ring", "a ball", "left", "sky, blue"]


def test_single_rows_have_their_own(table: Path) -> None:
    assert [row.references for row in read_predictions(table, "single")] == [
        ("a ring",),
        ("the ball",),
        ("left",),
        ("blue",),
    ]


def test_an_answer_may_be_long_and_data_sets_keep_their_limit(table: Path) -> None:
    limit, long = csv.field_size_limit(), "ring" * 60_000
    assert len(long) > limit
    table.write_text(f"image,query,prediction,reference\na.jpg,what?,{long},a ring\n", encoding="utf-8")
    assert [row.prediction for row in read_predictions(table, "grouped")] == [long]
    assert csv.field_size_limit() == limit


def test_lists_of_references_are_read_as_evaluations_write_them(tmp_path: Path) -> None:
    path = tmp_path / "ours.csv"
    path.write_text(
        "sample_id,image_id,kind,question,prediction,references,reference\n"
        '1,a,what,what?,ring,"[""ring"", ""circle""]",ring\n'
    )
    (grouped,) = read_predictions(path, "grouped")
    assert grouped.references == ("ring", "circle")
    assert grouped.kind == "what"
    assert [row.references for row in read_predictions(path, "single")] == [("ring",), ("circle",)]


def test_turns_that_ask_the_same_words_keep_their_own_references(tmp_path: Path, answer: Callable[..., object]) -> None:
    """In the same conversation, and in the same turn of two; a file without the columns is grouped as before."""
    told = [(), (("Sure?", "yes"),), (("What?", "a ring"),), (("What?", "a ball"),)]
    given = [answer(text, text, question="Sure?", history=history) for text, history in zip("abcd", told, strict=True)]
    path = write_results(tmp_path, "demo", given, score_answers(given)) / PREDICTIONS  # type: ignore[arg-type]
    rows = read_predictions(path, "grouped")
    assert [row.references for row in rows] == [("a",), ("b",), ("c",), ("d",)]
    assert rows == as_scored(read_answers(path.parent, {})) == as_scored(given)  # type: ignore[arg-type]
    assert score(AnswerSet(rows), find_metrics(None, ""), form="grouped").pairs == 4
    others = tmp_path / "others.csv"
    others.write_text("image,query,turn_id,prediction,reference\na,Sure?,1,x,y\na,Sure?,2,x,z\na,Sure?,2,x,w\n")
    assert [row.references for row in read_predictions(others, "grouped")] == [("y",), ("z", "w"), ("z", "w")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("image,prediction,reference\n", "no rows"),
        ("image,reference\na,b\n", "no column for the prediction"),
        ("picture,prediction,reference\na,b,c\n", "no column for the image.*found: picture"),
        ("image,image,prediction,reference\na,b,c,d\n", "occurs 2 times"),
        ("image,prediction,reference\na,b,\n", "line 2, column reference: there is no reference"),
        ("image,prediction,reference\n,b,c\n", "line 2, column image: no picture"),
        ("image,prediction,reference,answer\na,b,c,d\n", "reference and answer could each be .* reference_column"),
        ("image,prediction,Output,reference\na,b,c,d\n", "could each be the prediction.*with prediction_column"),
        ("image,prediction,references\na,b,{not json\n", "line 2, column references: .* is no JSON"),
        *(
            (f"image,prediction,references\na,b,{cell}\n", "line 2, column references: .* is no JSON list of texts")
            for cell in [
                '"""red"""',
                "5",
                "null",
                "true",
                '"[1]"',
                '"[[""red""]]"',
                '"[""red"", null]"',
                '"{""a"": 1}"',
            ]
        ),
        (
            'image,prediction,references,reference\na,b,"[""red""]",blue\n',
            "column reference: 'blue' is none of the ref",
        ),
        ("image,prediction,reference\na,it is red, blue,red\n", "line 2, column reference: 4 cells where"),
        ("image,prediction,reference,kind\na,red,blue\n", "line 2, column kind: 3 cells where the header has 4"),
        ('image,prediction,reference\na,"two\nlines",b\na,b\n', "line 4, column reference: 2 cells"),
        ('image,prediction,reference\na, "b", "c"\n', "line 2, column prediction: there is a blank before"),
        ('image,prediction,reference\na,"b,c\n', "line 2: a double quote that is opened here is never closed"),
        ('image,prediction,reference\na.jpg,b,"c\nb.jpg,b,c\nc.jpg,d,e"\n', "line 2: .* in line 3 looks like a row"),
        ("image;prediction;reference\na;b;c\n", "save the file with commas"),
        ("sep=,\nimage,prediction,reference\na,b,c\n", "line 1: sep=, is a"),
        ("image,prediction,reference\na\0,b,c\n", "line 2, column image: a NUL"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_predictions(path, "grouped")


def test_a_column_that_is_named_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "named.csv"
    path.write_text('image,question,answer,label,references\na,?,ours,one,"[""two""]"\n')
    named = {"prediction": "answer", "reference": "label"}
    (row,) = read_predictions(path, "grouped", named)
    assert (row.prediction, row.references) == ("ours", ("one",))
    (row,) = read_predictions(path, "grouped", named | {"reference": "references"})
    assert row.references == ("two",)
    with pytest.raises(ValueError, match="reference_column=truth is none of them"):
        read_predictions(path, "grouped", named | {"reference": "truth"})


def test_a_picture_is_one_however_its_name_is_spelled(tmp_path: Path) -> None:
    path = tmp_path / "spelled.csv"
    names = ["img/a.jpg", "./img/a.jpg", "img\\\\a.jpg", "img/x/../a.jpg", "other/a.jpg"]
    path.write_text("image,prediction,reference\n" + "".join(f"{name},b,c\n" for name in names))
    assert [row.image_id for row in read_predictions(path, "grouped")] == ["img/a.jpg"] * 4 + ["other/a.jpg"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"[""a""]"', '"""a"""', r"line 2, column references: '\"a\"' is no JSON list of texts"),
        (",0.5", ",soon", "line 2, column latency_s: 'soon.*' is no number"),
        ('"[[""What?"", ""a ring""]]"', '"[[""What?""]]"', "line 2, column history: no JSON list of pairs"),
        ("?,a,", "?,b,", "predictions.csv: its answers were changed since they were written"),
        (",0.5", ", and a half,0.5", "line 2, column latency_s: 12 cells where the header has 11"),
        ("latency_s", "seconds", "no column for the latency_s"),
    ],
)
def test_answers_of_ours_that_were_changed_are_refused(
    tmp_path: Path, answer: Callable[..., object], old: str, new: str, message: str
) -> None:
    given = [answer("a", "a", history=(("What?", "a ring"),), latency_s=0.5)]
    folder = write_results(tmp_path, "demo", given, score_answers(given))  # type: ignore[arg-type]
    path, metrics = folder / PREDICTIONS, json.loads((folder / METRICS).read_text())
    assert read_answers(path.parent, metrics) == given
    text = path.read_text("utf-8-sig")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(ValueError, match=message):
        read_answers(path.parent, metrics)


def test_other_bytes_and_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x00")
    with pytest.raises(ValueError, match="not UTF-8 text but UTF-16"):
        read_predictions(tmp_path / "bytes.csv", "grouped")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_predictions(tmp_path / "none.csv", "grouped")


def test_report_counts_and_scores_by_kind(table: Path) -> None:
    report = score(AnswerSet(read_predictions(table, "grouped")), find_metrics(None, ""), form="grouped")
    assert (report.answers, report.pairs, report.images) == (4, 3, 2)
    assert report.scores["exact match"].value == pytest.approx(3 / 4)
    assert report.scores["BLEU-1"].value > 0.5
    assert "unavailable: was not requested" in report.table()
    assert json.loads(json.dumps(report.record()))["form"] == "grouped"


@pytest.mark.slow
def test_the_command_prints_and_keeps_the_scores(table: Path) -> None:
    command = [sys.executable, "-m", "panollava.score", str(table), "words=unicode", "meteor=false", "form=single"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=table.parent)
    assert "| BLEU-1 |" in done.stdout + done.stderr
    kept = json.loads((table.parent / "predictions_scores.json").read_text())
    assert kept["words"] == "unicode"
    assert kept["scores"]["exact match"]["value"] == pytest.approx(0.75)


def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "panollava.score"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "predictions is missing" in done.stderr


def test_commands_share_their_defaults_and_name_what_was_asked() -> None:
    conf = ROOT / "conf"
    read = [OmegaConf.load(conf / name) for name in ("score.yaml", "compare.yaml", "evaluation/default.yaml")]
    assert {str(one.words) for one in read} == {"unicode"}
    assert {bool(one.get("meteor", False)) for one in read} == {False}
    asked = SimpleNamespace(
        split="test", csv_input="data/val.csv", world_seed=None, world_scenes=None, world_level=None, score_by=None
    )
    world = {"type": "world", "name": "world"}
    assert data_name(asked, data_overrides(asked, world)) == "val.csv"
    asked.csv_input = None
    assert data_name(asked, data_overrides(asked, world)) == "world-test"
    asked.world_level = 2
    assert data_name(asked, data_overrides(asked, world)) == "world-level2-test"


def test_log_probabilities_of_answers_are_read_again(tmp_path: Path, answer: Callable[..., Prediction]) -> None:
    """Boxes in words are ranked by them, also where answers on disk are used again."""
    given = [answer("a", "a", log_probability=-0.1 / 3), answer("b", "a")]
    folder = write_results(tmp_path, "demo", given, score_answers(given))
    assert read_answers(folder, {}) == given


@pytest.mark.parametrize(
    "recorded", [{"type": "world", "name": "world"}, {"type": "annotated", "name": "mine", "roll": "cw"}]
)
def test_the_file_that_is_named_for_a_detection_stage_has_boxes(recorded: dict[str, str], tmp_path: Path) -> None:
    asked = SimpleNamespace(
        split="test", csv_input="x.json", world_seed=None, world_scenes=None, world_level=None, score_by=None
    )
    found = data_overrides(asked, recorded, learnt=["chair"])
    assert (found["type"], found["test_boxes"], found.get("roll")) == ("annotated", "x.json", recorded.get("roll"))
    assert "classes" not in found
    asked.csv_input = str(tmp_path)
    assert data_overrides(asked, recorded, learnt=["chair"])["classes"] == ["chair"]
