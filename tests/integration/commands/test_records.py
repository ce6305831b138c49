"""What a finished run leaves: its folder, its logs, its MLflow run, and a model that answers as it did in training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.runs import assert_same_bits, checkpoint_tensors, command, metrics, predictions, stage_folder

from panollava import eval as evaluation
from panollava import train
from panollava.checkpoint import BEST, LAST, follow
from panollava.data.world import WorldSource
from panollava.model.api import PanoLlava
from panollava.run_folder import CURVE
from panollava.tracking.location import absolute_uri
from panollava.training.learning import Learning, read_curve

STAGES = ("vision", "resampler", "finetune")


def mlflow_run() -> tuple[Any, Any]:
    """The client and the run of the recorded experiment."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(absolute_uri())
    found = client.search_runs(
        [client.get_experiment_by_name("panollava").experiment_id], "attributes.run_name = 'recorded'"
    )
    assert len(found) == 1
    return client, found[0]


@pytest.mark.usefixtures("in_recorded")
def test_every_stage_leaves_its_folder() -> None:
    for name in STAGES:
        folder = stage_folder("recorded", name)
        assert folder.name == "anyres-e2p_mlp"
        best, last = follow(folder / BEST), follow(folder / LAST)
        assert best is not None
        assert last is not None
        named = re.fullmatch(r"siglip_mlp_anyres-e2p_world_epoch\d\d_loss(\d+\.\d{4})\.ckpt", best.name)
        assert named
        assert {path.name for path in folder.glob("*.ckpt")} == {BEST, LAST, best.name, last.name}
        final = load_file(folder / "model_final.safetensors")
        assert_same_bits(final, load_file(best / "trained.safetensors"))
        metadata = json.loads((folder / "checkpoint_metadata.json").read_text("utf-8"))
        assert (metadata["experiment_name"], metadata["stage"]) == ("recorded", name)
        assert metadata["model_config"].keys() >= {"vision_name", "language_model_name", "resampler_type"}
        assert metadata["model_config"]["latent_dimension"] == 32
        assert metadata["training_config"]["overlap_ratio"] == 0.0
        assert metadata["dataset"]["dataset_name"] == "world"
        assert metadata["validation_loss"] == pytest.approx(float(named[1]), abs=1e-4)
    assert (stage_folder("recorded", "finetune") / "lora_weights" / "adapter_config.json").is_file()
    assert not (stage_folder("recorded", "resampler") / "lora_weights").exists()


@pytest.mark.usefixtures("in_recorded")
def test_every_stage_has_its_learning_curve_and_those_that_answer_a_verdict() -> None:
    stages = json.loads(Path("runs/recorded/stage_state.json").read_text("utf-8"))["stages"]
    _, tracked = mlflow_run()
    for name in STAGES:
        folder = stage_folder("recorded", name)
        curve, state = read_curve(folder / CURVE), stages[f"{name}/{folder.name}"]
        assert curve.points[-1][:2] == ((6, 24) if name == "vision" else (3, 12))
        assert min(point.loss for point in curve.validations) == state["validation_loss"]
        if name == "vision":
            assert state["learning"] is None
            continue
        learning = Learning.of_record(state["learning"])
        # A few steps of four pictures: what the pictures show is not learnt yet.
        assert learning.verdict == "yes"
        assert learning.swapped_loss == pytest.approx(state["validation_loss"], rel=0.05)
        assert learning.swapped_loss != state["validation_loss"]
        assert tracked.data.tags[f"panollava.learning.{name}"] == "yes"
        assert tracked.data.metrics[f"{name}/image_gain"] == pytest.approx(learning.image_gain)


@pytest.mark.usefixtures("in_recorded")
def test_every_stage_has_a_log_and_the_run_one_of_all() -> None:
    timed = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [DIW] ", re.MULTILINE)
    for name in STAGES:
        (log,) = (stage_folder("recorded", name) / "logs").iterdir()
        assert re.fullmatch(rf"{name}_\d{{8}}_\d{{6}}\.log", log.name)
        text = log.read_text("utf-8")
        assert timed.search(text)
        assert re.search(rf"Stage {name} trains [\d,]+ of [\d,]+ parameters \([\d.]+ %\)", text)
        step = rf"{name} epoch 0 step 1: loss [\d.]+ lr [\d.e+-]+ [\d.]+ samples/s [\d.]+ GB, \d\d:\d\d left"
        assert re.search(step, text)
        assert re.search(rf"Stage {name}: [\d.]+ s, [\d.]+ samples/s, peak [\d.]+ GB, best validation loss", text)
        assert "\r" not in text  # no progress bar
    (whole,) = Path("runs/recorded/logs").iterdir()
    assert re.fullmatch(r"full_pipeline_\d{8}_\d{6}\.log", whole.name)
    text = whole.read_text("utf-8")
    assert all(f"Stage {name} trains" in text for name in STAGES)
    assert "Test split, 18 questions" in text


@pytest.mark.usefixtures("in_recorded")
def test_mlflow_has_the_run() -> None:
    client, run = mlflow_run()
    assert run.info.status == "FINISHED"
    assert run.data.params["crop.overlap"] == "0.0"
    assert run.data.params["model.lora.rank"] == "4"
    assert run.data.params["stage.vision.epochs"] == "2"
    steps = {name: 6 if name == "vision" else 3 for name in STAGES}
    for name in STAGES:
        for key in ("loss", "lr", "grad_norm", "samples_per_second", "memory_gb"):
            history = client.get_metric_history(run.info.run_id, f"{name}/{key}")
            assert [point.step for point in history] == list(range(1, steps[name] + 1)), f"{name}/{key}"
        epochs = client.get_metric_history(run.info.run_id, f"{name}/val_loss")
        assert [point.step for point in epochs] == list(range(3, steps[name] + 1, 3))
        assert run.data.metrics[f"{name}/best_val_loss"] == pytest.approx(min(point.value for point in epochs))
        by_samples = client.get_metric_history(run.info.run_id, f"{name}/loss_by_samples")
        assert [point.step for point in by_samples] == [4 * step for step in range(1, steps[name] + 1)]
        assert client.get_metric_history(run.info.run_id, f"{name}/val_loss_by_samples")[0].step == 12
    assert "test/exact_match" in run.data.metrics
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "views.png", "sample_answers.json", "evaluation"} <= files
    folder = Path(client.download_artifacts(run.info.run_id, ""))
    for picture in ("views.png", "evaluation/answers.png"):
        assert min(Image.open(folder / picture).size) > 50
    assert (folder / "views.png").read_bytes() == Path("runs/recorded/views.png").read_bytes()
    table = json.loads((folder / "sample_answers.json").read_text("utf-8"))
    asked = {row["question"] for row in predictions("recorded")}
    assert {dict(zip(table["columns"], row, strict=True))["question"] for row in table["data"]} <= asked
    assert len(table["data"]) > 5
    assert "overlap: 0.0" in (folder / "config.yaml").read_text("utf-8")
    assert "${" not in (folder / "config.yaml").read_text("utf-8")


@pytest.mark.usefixtures("in_recorded")
def test_the_opened_run_answers_as_the_model_in_memory_did() -> None:
    rows = predictions("recorded")
    assert len({row["prediction"] for row in rows}) > 3
    pano = PanoLlava.from_pretrained("runs/recorded")
    world = WorldSource(split="test", scenes=2)
    asked = {one.sample_id: one for one in world.questions()}
    for row in rows[::3]:
        one = asked[row["sample_id"]]
        panorama = world.question_panorama(one)
        answer = pano.generate(panorama, one.question, history=one.history, max_new_tokens=8)
        assert answer == row["prediction"], row["sample_id"]
    best = load_file(stage_folder("recorded", "finetune") / BEST / "trained.safetensors")
    assert_same_bits({name: p for name, p in pano.model.named_parameters() if name in best}, best)
    assert any(".lora_B." in name and tensor.any() for name, tensor in best.items())


@pytest.mark.usefixtures("in_recorded")
def test_evaluating_the_folder_gives_the_scores_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = ["tracking=none", "results_dir=again", "num_workers=0", "device=cpu"]
    assert command(monkeypatch, evaluation, "checkpoint=runs/recorded", *quiet) == 0
    assert predictions("recorded", "again") == predictions("recorded")
    one, other = metrics("recorded"), metrics("recorded", "again")
    scores = [key for key in one if key not in ("settings", "created", "latency")]
    assert len(scores) > 1
    for key in scores:
        assert without_times(one[key]) == without_times(other[key]), key


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if "latency" not in key and "time" not in key}
    return value


@pytest.mark.usefixtures("in_recorded")
def test_other_scenes_and_fewer_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["checkpoint=runs/recorded", "tracking=none", "results_dir=other", "num_workers=0", "blank=false"]
    assert command(monkeypatch, evaluation, *asked, "world_seed=7", "world_scenes=3", "max_samples=5") == 0
    rows = predictions("recorded", "other")
    assert len(rows) == 5
    assert all(row["sample_id"].startswith("world-test-7-") for row in rows)
    asked[2] = "results_dir=level"
    assert command(monkeypatch, evaluation, *asked, "world_level=2", "world_scenes=1", "max_samples=2") == 0
    assert all(row["sample_id"].startswith("world-level2-test-0-") for row in predictions("recorded", "level"))


@pytest.mark.usefixtures("in_recorded")
def test_starting_a_finished_run_again_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, recorded_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: checkpoint_tensors(stage_folder("recorded", name) / BEST) for name in STAGES}
    count = len(list(Path("results/eval_results/recorded").iterdir()))
    assert command(monkeypatch, train, *recorded_arguments) == 0
    assert "Every stage of this config is finished already" in capsys.readouterr().err
    for name in STAGES:
        assert_same_bits(checkpoint_tensors(stage_folder("recorded", name) / BEST), before[name])
    assert len(list(Path("results/eval_results/recorded").iterdir())) == count
    mlflow_run()  # still one


@pytest.mark.usefixtures("in_recorded")
def test_an_export_answers_as_the_run_does(tmp_path: Path) -> None:
    pano = PanoLlava.from_pretrained("runs/recorded")
    world = WorldSource(split="test", scenes=2)
    panorama, questions = world.panorama(1), world.questions()[9:12]
    pano.merge_lora_weights()
    answers = [pano.generate(panorama, one.question, max_new_tokens=8) for one in questions]
    pano.save_pretrained(tmp_path / "export")
    export = PanoLlava.from_pretrained(tmp_path / "export")
    assert [export.generate(panorama, one.question, max_new_tokens=8) for one in questions] == answers
    assert not any(".lora_" in name for name, _ in export.model.named_parameters())
    assert all(torch.isfinite(parameter).all() for parameter in export.model.parameters())
