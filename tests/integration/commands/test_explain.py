"""``python -m panollava.explain`` draws a run, a checkpoint, a stage-1 run and an export, or says why not."""

from __future__ import annotations

from pathlib import Path

import cv2
import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.runs import UNTRACKED, command, config

from panollava import explain
from panollava.data.world import WorldSource
from panollava.evaluation.explain import CAVEAT, SPEECHLESS, explain_picture
from panollava.model.api import PanoLlava, VisionPart

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment's folder, seen from an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return recorded / "runs" / "recorded"


def stage(run: Path, name: str) -> Path:
    (folder,) = (run / name).iterdir()
    return folder


def opened(path: str) -> np.ndarray:
    """A PNG file as (H, W, 3) uint8 RGB."""
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def test_a_run_alone_is_enough(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Of the built-in world, with the question that its first scene asks, tracked in MLflow."""
    assert command(monkeypatch, explain, f"checkpoint={run}") == 0
    said = capsys.readouterr().err
    scene = WorldSource(split="test", scenes=1, height=1024)
    panorama, question = scene.panorama(0), next(one.question for one in scene.questions() if not one.history)
    part = VisionPart.from_pretrained(run)
    assert part.pano is not None
    answer = part.pano.generate(panorama, question)
    assert f"Question: {question}" in said
    assert f"Answer: {answer}" in said
    assert CAVEAT in said
    expected, _ = explain_picture(
        panorama, part.crop.views(panorama), **vars(part), asked=(question, answer), yaw_deg=0, pitch_deg=0
    )
    picture = opened("explain.png")
    assert (picture == expected).all()
    assert Path("explain.png").stat().st_size < 400_000
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    (tracked,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert tracked.info.run_name == "explain recorded"
    kept = mlflow.artifacts.download_artifacts(run_id=tracked.info.run_id, artifact_path="explain.png")
    assert (opened(kept) == picture).all()


def test_a_picture_question_and_answer_of_ones_own(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    cv2.imwrite("photo.jpg", WorldSource(split="train", scenes=1, height=512).panorama(0)[..., ::-1])
    own = [f"checkpoint={run}", "image=photo.jpg", UNTRACKED, "out=a/b.png"]
    asked = ["question=was ist das, (bitte)?", "answer=a cube, or two", "yaw=-170", "pitch=-30", "layers=[1]"]
    assert command(monkeypatch, explain, *own, *asked) == 0
    said = capsys.readouterr().err
    assert "Question: was ist das, (bitte)?" in said
    assert "Answer: a cube, or two" in said
    assert [path.name for path in sorted(Path().rglob("*"))] == ["a", "b.png", "photo.jpg"]
    picture = opened("a/b.png")
    assert command(monkeypatch, explain, *own, *asked[:-1], "layers=[2]") == 0
    other = opened("a/b.png")
    half = picture.shape[1] // 2
    assert (picture[100:, :half] == other[100:, :half]).all()  # the panorama and the features are the same,
    assert (picture[100:500, half:] != other[100:500, half:]).any()  # the attention is not


def test_a_stage_1_run_shows_what_it_sees(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    folder = stage(run, "vision")
    assert command(monkeypatch, explain, f"checkpoint={folder}", UNTRACKED) == 0
    assert SPEECHLESS in capsys.readouterr().err
    part = VisionPart.from_pretrained(folder)
    assert part.pano is None
    assert part.name == "recorded"
    trained = load_file(folder / "best.ckpt" / "trained.safetensors")
    own = {name: value for name, value in part.vision.named_parameters() if f"vision.{name}" in trained}
    assert own
    assert all(torch.equal(value, trained[f"vision.{name}"]) for name, value in own.items())
    assert {f"vision.{name}" for name in own} == {name for name in trained if not name.startswith("head.")}


def test_an_export_and_a_checkpoint_show_what_the_run_does(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pano = PanoLlava.from_pretrained(run)
    pano.merge_lora_weights()
    pano.save_pretrained("export")
    pictures = []
    for source in ("export", stage(run, "finetune") / "best.ckpt"):
        assert command(monkeypatch, explain, f"checkpoint={source}", UNTRACKED, "answer=a cube") == 0
        pictures.append(opened("explain.png").astype(int))
    below = slice(70, None)  # the title names another experiment
    assert np.abs(pictures[0][below] - pictures[1][below]).mean() < 1


def test_the_config_names_every_option() -> None:
    keys = set(config("checkpoint=x", root="explain")) - {"fetch", "generation", "tracking"}
    assert keys == set(explain.ExplainOptions.__dataclass_fields__)


WRONG = [
    pytest.param([], ["checkpoint is missing"], id="none"),
    pytest.param(["checkpoint=nowhere"], ["nowhere is no run"], id="no-run"),
    pytest.param(["checkpoint=RUN", "image=nowhere.jpg"], ["nowhere.jpg", "there is no such file"], id="no-image"),
    pytest.param(["checkpoint=RUN", "out=x.jpg"], ["out=x.jpg", "ends in .png"], id="suffix"),
    pytest.param(["checkpoint=RUN", "pitch=91"], ["pitch=91", "90"], id="pitch"),
    pytest.param(["checkpoint=RUN", "layers=[7]"], ["layers=[7]", "1 to 2"], id="layer"),
    pytest.param(["checkpoint=RUN", "layers=last"], ['layers="last"', "array"], id="layers"),
    pytest.param(["checkpoint=RUN", "yaww=3"], ["yaww", "Did you mean yaw"], id="key"),
    pytest.param(["checkpoint=RUN", "device=warp"], ["warp", "cuda"], id="device"),
]


@pytest.mark.parametrize(("typed", "said"), WRONG)
def test_wrong_input_is_one_message(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, typed: list[str], said: list[str]
) -> None:
    assert command(monkeypatch, explain, *(one.replace("RUN", str(run)) for one in typed), UNTRACKED) == 1
    captured = capsys.readouterr()
    message = captured.out + captured.err
    for part in said:
        assert part in message
    assert "Traceback" not in message
    assert list(Path().iterdir()) == []
