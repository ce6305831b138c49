"""python -m panollava.compare on recorded runs: answers are reused or asked for, and the verdict is kept."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from support.picture_files import by_pillow, gradient
from support.runs import command

from panollava import compare
from panollava import eval as eval_command
from panollava.disk import read_document, write_json
from panollava.run import comparison
from panollava.run import evaluate as run_evaluate
from panollava.run.conditions import answer_conditions, recorded_inputs
from panollava.run_folder import METADATA

Capture = pytest.CaptureFixture[str]
QUIET = ("tracking=none", "num_workers=0", "device=cpu", "words=unicode")


@pytest.fixture
def runs(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with copies of the recorded run and its results."""
    for folder in ("runs", "results"):
        shutil.copytree(recorded / folder, tmp_path / folder, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compared(monkeypatch: pytest.MonkeyPatch, capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    assert command(monkeypatch, compare, *QUIET, *arguments) == 0
    return capsys.readouterr().err


@pytest.mark.usefixtures("runs")
def test_stages_of_a_run(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    stages = ("runs/recorded/finetune/anyres-e2p_mlp", "runs/recorded/resampler/anyres-e2p_mlp")
    said = compared(monkeypatch, capsys, *stages)
    assert "recorded/resampler has no answers to these questions yet" in said
    assert "recorded/finetune has no answers" not in said  # training left them
    assert "recorded/finetune and recorded/resampler are not distinguishable" in said
    for stage in ("finetune", "resampler"):
        assert f"recorded/{stage} was still learning when its training ended" in said
    assert "this ranks how fast, not how well" in said
    written = {path.name for path in Path("results/comparison").iterdir()}
    pictures = {f"{name}.{kind}" for name in ("scores", "trade_off") for kind in ("png", "svg")}
    assert written == {"comparison.md", "scores.csv", "pairs.csv"} | pictures
    assert Path("results/comparison/comparison.md").read_text() in said
    assert "The settings differ in stage" in said
    assert "about the settings nothing is shown: one seed each" in said
    assert "has no answers" not in compared(monkeypatch, capsys, *stages, "table=markdown")
    assert "| recorded/finetune† | " in Path("results/comparison/table.md").read_text()
    with Path("results/comparison/pairs.csv").open() as stream:
        (pair,) = csv.DictReader(stream)
    assert (pair["first"], pair["second"]) == ("recorded/finetune", "recorded/resampler")


@pytest.mark.usefixtures("runs")
def test_a_run_and_itself(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    said = compared(monkeypatch, capsys, "runs/recorded", "runs/recorded")
    assert "recorded and recorded (2) are not distinguishable: the same score on each of" in said


@pytest.mark.usefixtures("runs")
def test_seeds_with_other_training_records_are_named(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A second seed whose ``train.csv`` had been corrected; that of a stage which is not compared does not matter."""
    shutil.copytree("runs/recorded", "runs/second", symlinks=True)
    for stage in ("finetune", "resampler"):
        path = Path("runs/second", stage, "anyres-e2p_mlp", METADATA)
        metadata = read_document(path)
        metadata["inputs"]["train"]["texts"] = f"new for {stage}"
        write_json(path, metadata)
    said = compared(monkeypatch, capsys, "runs/recorded", "runs/second")
    digest = recorded_inputs(Path("runs/recorded/finetune/anyres-e2p_mlp"))["train"]["texts"]
    line = f"were not trained alike: train.texts is {digest} (recorded), new for finetune (second).\n"
    assert line in Path("results/comparison/comparison.md").read_text()
    assert said.count(line) == 1
    assert "has no answers" not in said


@pytest.mark.usefixtures("runs")
def test_another_test_set_is_asked_of_all(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    said = compared(monkeypatch, capsys, "runs/recorded", "runs/recorded/resampler/anyres-e2p_mlp", "world_seed=7")
    assert said.count("has no answers to these questions yet") == 2


@pytest.mark.usefixtures("runs")
def test_conditions_are_computed_once_and_unequal_ones_are_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    computed = []

    def counting(*given: Any, **options: Any) -> dict[str, Any]:
        computed.append(given[3])
        return answer_conditions(*given, **options)

    for module in (comparison, run_evaluate):
        monkeypatch.setattr(module, "answer_conditions", counting)
    monkeypatch.setattr(comparison, "unequal", lambda _: ["precision is not the same for all"])
    stages = ("runs/recorded/finetune/anyres-e2p_mlp", "runs/recorded/resampler/anyres-e2p_mlp")
    said = compared(monkeypatch, capsys, *stages, "world_seed=8", "max_samples=2")
    assert said.count("has no answers to these questions yet") == len(computed) == 2
    assert computed[0] is computed[1]  # one identity of files, so that a picture of both runs is read once
    for text in (said, Path("results/comparison/comparison.md").read_text()):
        assert text.count("precision is not the same for all.") == 1


@pytest.mark.usefixtures("runs")
def test_answers_of_other_conditions_are_asked_for_again(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Fewer new tokens, corrected references, another picture of the same name, a file that was edited by hand."""
    Path("pano.png").write_bytes(by_pillow(gradient(), "PNG"))
    rows = [f"pano.png,what is {number}?,red" for number in range(3)]

    def asks(*more: str) -> list[tuple[str, str, str]]:
        said = compared(monkeypatch, capsys, "runs/recorded", "runs/recorded", "csv_input=test.csv", *more)
        return re.findall(r"are not used: (.*)\.|(Reusing the answers in .*), given on 20|(was changed since)", said)

    Path("test.csv").write_text("\n".join(["image,question,answer", *rows]))
    evaluated = ("checkpoint=runs/recorded", "csv_input=test.csv", "blank=false", "max_samples=2", *QUIET)
    assert command(monkeypatch, eval_command, *evaluated, "max_new_tokens=1") == 0
    assert asks("max_samples=2") == [("generation.max_new_tokens: 1 there, 8 now", "", ""), ("", ANY, "")]
    assert asks() == [("max_samples: 2 there, null now", "", ""), ("", ANY, "")]
    Path("test.csv").write_text("\n".join(["image,question,answer", *rows[:-1], rows[-1] + "dish"]))
    assert asks() == [("other references", "", ""), ("", ANY, "")]
    Path("pano.png").write_bytes(by_pillow(gradient()[:, ::-1], "PNG"))
    assert asks() == [("other pictures", "", ""), ("", ANY, "")]
    assert [reused for _, reused, _ in asks()] == [ANY, ANY]
    newest = max(Path("results/eval_results/recorded").glob("predictions_*/predictions.csv"))
    newest.write_text(newest.read_text("utf-8-sig").replace('""red""', '""mauve""'), "utf-8-sig")
    assert asks()[0] == ("", "", "was changed since")


@pytest.mark.usefixtures("in_recorded")
def test_the_runs_of_an_mlflow_experiment(monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path) -> None:
    options = [one for one in QUIET if one != "tracking=none"]
    options += [f"results_dir={tmp_path}/results"]  # the recorded run's own are left to the other tests
    stage = "runs/recorded/resampler/anyres-e2p_mlp"
    assert command(monkeypatch, compare, *options, stage, "mlflow_experiment=panollava", f"out={tmp_path}/out") == 0
    assert "are not distinguishable" in capsys.readouterr().err
    assert command(monkeypatch, compare, *options, "mlflow_experiment=none") == 1
    assert "There are: " in capsys.readouterr().err


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a comparison needs two"),
        (["runs/recorded"], "a comparison needs two"),
        (["runs/recorded", "runs/none"], "no run"),
        (["runs/recorded", "runs/recorded/vision/anyres-e2p_mlp"], "stages without text give no answers"),
        (["runs/recorded", "runs/recorded", "measure=BLEU-4"], "measure"),
        (["mlflow_experiment=panollava"], "MLflow has none of that name"),
    ],
)
def test_what_cannot_be_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], message: str
) -> None:
    assert command(monkeypatch, compare, *QUIET, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
