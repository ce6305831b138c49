"""Evaluations of a recorded run: where its settings come from, what counts, and what goes on where it was stopped."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from support.hub_folders import small_clip
from support.runs import command, metrics, predictions, stage_folder

from panollava import eval as evaluation
from panollava.data.world import WorldSource
from panollava.evaluation.clip import Clip
from panollava.model.api import PanoLlava
from panollava.run import evaluate as pipeline
from panollava.tracking.tracker import NullTracker

QUIET = ("tracking=none", "results_dir=results", "num_workers=0", "device=cpu", "blank=false")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def copy(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the recorded run that may be spoilt, as the working directory; its last stage's folder is returned."""
    shutil.copytree(recorded / "runs", tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return stage_folder("recorded", "finetune")


def evaluated(monkeypatch: pytest.MonkeyPatch, capsys: Capture, *arguments: str) -> str:
    """What ``python -m panollava.eval`` said."""
    capsys.readouterr()
    assert command(monkeypatch, evaluation, *QUIET, *arguments) == 0
    return capsys.readouterr().err


def refused(monkeypatch: pytest.MonkeyPatch, capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    assert command(monkeypatch, evaluation, *QUIET, *arguments) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_folder_is_enough_and_is_told(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    said = evaluated(monkeypatch, capsys, "runs/recorded")
    assert f"Checkpoint: {copy}/" in said
    assert "(stage finetune, with its LoRA adapter)" in said
    assert "Crop: anyres_e2p (fov_deg 90.0, overlap 0.0" in said
    settings = metrics("recorded")["settings"]
    assert settings["checkpoint"] == (copy / "best.ckpt").resolve().name
    assert (settings["split"], settings["crop"]["overlap"]) == ("test", 0.0)


def test_decoding_is_recorded_and_of_older_runs_taken_from_their_evaluation(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    said = evaluated(monkeypatch, capsys, "runs/recorded", "generation.num_beams=2", "max_samples=2")
    assert "Decoding of world-test: 2 beams, at most 8 new tokens." in said
    assert metrics("recorded")["settings"]["conditions"]["generation"]["num_beams"] == 2
    path = copy / "checkpoint_metadata.json"
    metadata = json.loads(path.read_text("utf-8"))
    assert metadata.pop("generation")["max_new_tokens"] == 8
    metadata["evaluation"]["max_new_tokens"] = 5
    path.write_text(json.dumps(metadata), encoding="utf-8")
    said = evaluated(monkeypatch, capsys, "runs/recorded", "max_samples=2", "results_dir=older")
    assert "Decoding of world-test: greedy, at most 5 new tokens." in said


def test_without_metadata_a_config_is_enough(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    before = evaluated(monkeypatch, capsys, "runs/recorded")
    expected = predictions("recorded")
    shutil.rmtree("results")
    (copy / "checkpoint_metadata.json").unlink()
    said = evaluated(monkeypatch, capsys, f"checkpoint={copy}")
    assert "its settings are those of" in said
    assert predictions("recorded") == expected
    (copy / "config.yaml").rename("elsewhere.yaml")
    assert "neither checkpoint_metadata.json nor config.yaml" in refused(monkeypatch, capsys, f"checkpoint={copy}")
    shutil.rmtree("results")
    said = evaluated(monkeypatch, capsys, f"checkpoint={copy}", "config=elsewhere.yaml")
    assert predictions("recorded") == expected
    assert "Crop: anyres_e2p" in said
    assert "Crop: anyres_e2p" in before


def test_with_a_config_alone_the_checkpoint_is_found(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    shutil.copy(copy / "config.yaml", "some.yaml")
    assert f"Checkpoint: {copy}/" in evaluated(monkeypatch, capsys, "config=some.yaml")
    shutil.rmtree("runs")
    assert "No checkpoint of this config in runs/recorded" in refused(monkeypatch, capsys, "config=some.yaml")


def test_the_command_line_counts_before_metadata_and_metadata_before_config(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["crop"]["overlap"] = 0.25
    Path("other.yaml").write_text(yaml.safe_dump(config))
    said = evaluated(monkeypatch, capsys, f"checkpoint={copy}", "config=other.yaml")
    assert "crop.overlap is 0.25 in other.yaml and 0.0 in the metadata, which is used" in said
    assert "overlap 0.0" in said
    said = evaluated(monkeypatch, capsys, f"checkpoint={copy}", "crop.overlap=0.5")
    assert "crop.overlap: 0.0 in training, 0.5 in this evaluation" in said
    assert metrics("recorded")["settings"]["crop"]["overlap"] == 0.5
    said = evaluated(monkeypatch, capsys, f"checkpoint={copy}", "crop=cubemap")
    assert "crop.type: 'anyres_e2p' in training, 'cubemap' in this evaluation" in said


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"resampler": {"type": "bimamba"}}, ["config=other.yaml"], "model.resampler.type=bimamba.*'?mlp"),
        ({"vision": {"name": "someone/else"}}, ["config=other.yaml"], "model.vision.name=someone/else"),
        (None, ["crop.overlap=2.0"], "crop.overlap"),
        (None, ["crop.overlapp=0.5"], "overlapp"),
        (None, ["crop=cubism"], "cubism.*cubemap"),
        (None, ["config=none.yaml"], "there is no such file"),
        (None, ["resampler=mlp"], "model/resampler"),
        (None, ["batchsize=3"], "batchsize"),
    ],
)
def test_what_contradicts_the_run_is_refused(
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    change: dict[str, Any] | None,
    arguments: list[str],
    message: str,
) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    for section, values in (change or {}).items():
        config["model"][section].update(values)
    Path("other.yaml").write_text(yaml.safe_dump(config))
    assert re.search(message, refused(monkeypatch, capsys, f"checkpoint={copy}", *arguments), re.DOTALL)


def test_nothing_at_all_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert "checkpoint is missing" in refused(monkeypatch, capsys)
    assert "no run" in refused(monkeypatch, capsys, "checkpoint=nowhere")


@pytest.mark.parametrize("stage", ["resampler", "finetune"])
def test_the_validation_loss_is_that_of_training(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, stage: str
) -> None:
    folder = stage_folder("recorded", stage)
    evaluated(monkeypatch, capsys, f"checkpoint={folder}", "loss=true", "max_samples=1")
    (measures,) = Path("results/eval_results/recorded").glob("measures_*.json")
    found = json.loads(measures.read_text())["measures"]["loss"]
    recorded = json.loads((folder / "checkpoint_metadata.json").read_text())["validation_loss"]
    assert found == pytest.approx(recorded, abs=1e-6)
    assert copy.is_dir()


@pytest.fixture
def table(copy: Path) -> Path:
    """A data file of two questions about one picture, in the working directory of ``copy``."""
    Image.fromarray(np.full((64, 128, 3), 90, np.uint8)).save("a.png")
    path = Path("t.csv")
    path.write_text("url,query,annotation\na.png,what is it?,red\na.png,where?,ahead\n")
    return path


def test_the_loss_of_a_data_file_is_of_its_own_answers(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    said = evaluated(monkeypatch, capsys, "runs/recorded", f"csv_input={table}", "loss=true")
    assert "Stage finetune on test: loss " in said
    assert len(predictions("recorded")) == 2


def test_what_the_model_cannot_be_asked_is_named_by_file_and_row(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with table.open("a") as file:
        file.write(f"a.png,{'left of it ' * 300},red\n")
    said = refused(monkeypatch, capsys, "runs/recorded", f"csv_input={table}")
    assert re.search(r"t\.csv: .*\n  row 4: \d+ tokens \(80 of them the panorama's\) and up to 8 new ones", said)
    assert "more than the language model's 512 positions" in said
    assert not Path("results").exists()
    said = refused(monkeypatch, capsys, "runs/recorded", "max_samples=1", "crop.overlap=0.85")
    assert re.search(r"world-test: .*\n  .*: \d+ tokens \(\d+ of them the panorama's\)", said)
    said = refused(monkeypatch, capsys, "runs/recorded", "crop.panorama_fov_deg=[180,90]")
    assert "crop.panorama_fov_deg=[180.0, 90.0] is for pictures in files" in said
    assert not Path("results").exists()


def test_a_stage_1_run_is_measured_by_its_own_measures(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    folder = stage_folder("recorded", "vision")
    said = evaluated(monkeypatch, capsys, f"checkpoint={folder}", "split=val")
    (measures,) = Path("results/eval_results/recorded").glob("measures_*.json")
    found = json.loads(measures.read_text())["measures"]
    recorded = json.loads((folder / "checkpoint_metadata.json").read_text())["validation_loss"]
    assert found["loss"] == pytest.approx(recorded, abs=1e-6)
    assert {"overlap/neighbour_cosine", "overlap/retrieval", "overlap/effective_rank"} <= set(found)
    assert "overlap/retrieval" in said
    assert copy.is_dir()


def test_a_clip_scores_the_answers(
    copy: Path, backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    asked = [f"checkpoint={copy}", "max_samples=3"]
    assert "clip='nowhere'" in refused(monkeypatch, capsys, *asked, "clip=nowhere")
    assert "is a siglip; CLIP-score is defined with a CLIP" in refused(
        monkeypatch, capsys, *asked, f"clip={backbone('siglip')}"
    )
    clip = small_clip(copy / "a clip")
    evaluated(monkeypatch, capsys, *asked, f"clip={clip}")
    captions = metrics("recorded")["captions"]
    assert captions["clip"] == str(clip)
    rows, measure = predictions("recorded"), Clip(str(clip))
    assert len({row["image_id"] for row in rows}) == 1
    panorama = WorldSource(split="test", scenes=1).panorama(0)
    cosines = measure.texts([row["prediction"] for row in rows]) @ measure.pictures([panorama])[0]
    expected = 2.5 * float(cosines.clamp(min=0).mean())
    assert captions["scores"]["CLIP-score"]["value"] == pytest.approx(expected, abs=1e-5)
    assert "RefCLIP-score" in captions["scores"]


METRIC = '''"""A metric of another package."""

import numpy as np

from panollava.evaluation.metrics import Metric


class Length(Metric):
    """Characters of an answer."""

    name, top = "length", 1000.0

    def per_answer(self, answers):
        return np.array([float(len(one.prediction)) for one in answers.scored])
'''


def test_a_metric_of_another_package_is_evaluated(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """It is in the files and in the tracker beside the listed ones of ours; the record says which were listed."""
    (tmp_path / "my_lengths.py").write_text(METRIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PANOLLAVA_ALLOW", "")
    asked, tracked = [f"checkpoint={copy}", "max_samples=3"], {}
    monkeypatch.setattr(NullTracker, "metrics", lambda _, values, step: tracked.update(values))
    evaluated(monkeypatch, capsys, *asked, "metrics=[BLEU,my_lengths:Length]")
    record, said = metrics("recorded"), [len(row["prediction"]) for row in predictions("recorded")]
    assert record["captions"]["scores"]["length"]["value"] == tracked["test/length"] == pytest.approx(np.mean(said))
    assert "CIDEr" not in {**record["captions"]["scores"], **record["captions"]["unavailable"]}
    assert record["settings"]["scores"]["metrics"] == ["BLEU", "my_lengths:Length"]
    assert record["settings"]["scores"]["packages"]["my_lengths"].startswith("unknown, code ")
    evaluated(monkeypatch, capsys, *asked, "results_dir=others")
    assert "metrics" not in metrics("recorded", "others")["settings"]["scores"]
    assert "metrics: there is no 'length'" in refused(monkeypatch, capsys, *asked, "metrics=[length]")


def test_a_stopped_evaluation_goes_on(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    evaluated(monkeypatch, capsys, f"checkpoint={copy}", "batch_size=4")
    expected = predictions("recorded")
    shutil.rmtree("results")
    whole, asked = PanoLlava.answer, []

    def dying(self: PanoLlava, batch: Any, **options: Any) -> list[str]:
        if len(asked) == 2:
            raise OSError("the power is off")
        asked.append(batch.sample_ids)
        return whole(self, batch, **options)

    monkeypatch.setattr(PanoLlava, "answer", dying)
    assert "the power is off" in refused(monkeypatch, capsys, f"checkpoint={copy}", "batch_size=4")
    assert not list(Path("results").rglob("predictions.csv"))
    (kept,) = Path("results").rglob("*.jsonl")
    kept.write_text(kept.read_text() + '{"sample_id": "cut sho')  # the last line was being written

    def counted(self: PanoLlava, batch: Any, **options: Any) -> list[str]:
        asked.append(batch.sample_ids)
        return whole(self, batch, **options)

    monkeypatch.setattr(PanoLlava, "answer", counted)
    said = evaluated(monkeypatch, capsys, f"checkpoint={copy}", "batch_size=4")
    assert "8 answers are there from an evaluation that was stopped" in said
    assert predictions("recorded") == expected
    assert sorted(one for batch in asked for one in batch) == sorted(row["sample_id"] for row in expected)
    assert not list(Path("results").rglob("*.jsonl"))


def test_answers_of_other_weights_are_not_taken_over(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_results", broken)
        refused(patch, capsys, f"checkpoint={copy}")
    assert list(Path("results").rglob("*.jsonl"))
    resampler = stage_folder("recorded", "resampler")
    assert "answers are there" not in evaluated(monkeypatch, capsys, f"checkpoint={resampler}")
    assert "answers are there" in evaluated(monkeypatch, capsys, f"checkpoint={copy}")
