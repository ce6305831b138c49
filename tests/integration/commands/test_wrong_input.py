"""Whatever is wrong is one message, before training starts: the thing, and the way out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file
from support.runs import QUICK, UNTRACKED, backbones, command, run_train

from panollava import eval as evaluation
from panollava import train
from panollava.tracking.location import absolute_uri

Backbone = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def arguments(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quick run that would do well, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return [*backbones(backbone), *QUICK, UNTRACKED, "experiment_name=x", "trainer.max_steps=1"]


@pytest.fixture
def refused(refused: Callable[..., str]) -> Callable[..., str]:
    """``refused(*arguments)``: the message with which a command ends before it trains, and leaves nothing."""

    def run(*typed: str, module: object = train) -> str:
        before = sorted(Path().rglob("*"))
        said = refused(module, *typed)
        assert "validation loss" not in said
        assert sorted(Path().rglob("*")) == before
        return said

    return run


CONFIG = [
    pytest.param(["trainer.wrokers=2"], ["trainer.wrokers", "trainer.num_workers"], id="key"),
    pytest.param(["sead=1"], ["sead", "seed"], id="top-key"),
    pytest.param(["+crop.fov=90"], ["crop.fov", "fov_deg"], id="added-key"),
    pytest.param(["stage.vision.loss.varianc=1"], ["stage.vision.loss.variance"], id="deep-key"),
    pytest.param(["stage.vision.epochs=many"], ['stage.vision.epochs="many"', "integer"], id="type"),
    pytest.param(["trainer.compile=3"], ["trainer.compile=3", "boolean"], id="boolean"),
    pytest.param(["crop.overlap=0.95"], ["crop.overlap=0.95", "<= 0.9", "80 views a ring"], id="range"),
    pytest.param(["crop.pitch_rows_deg=[0,30]"], ["crop.pitch_rows_deg=[0, 30]", "Add -30"], id="rows"),
    pytest.param(["crop.fov_deg=180"], ["crop.fov_deg=180", "180"], id="open-range"),
    pytest.param(["crop.renderer=opengl"], ['crop.renderer="opengl"', "'cv2'"], id="choice"),
    pytest.param(["resampler=bimambo"], ["bimambo", "mlp", "bimamba"], id="option"),
    pytest.param(["model.resampler.type=bimambo"], ["bimambo", "Did you mean 'bimamba'", "mlp"], id="component"),
    pytest.param(["stage=visoin"], ["visoin", "vision", "finetune"], id="stage"),
    pytest.param(["stage.run=[finetune,vision]"], ["stage.run", "order"], id="order"),
    pytest.param(["stage.run=[]"], ["stage.run", "vision, resampler, finetune"], id="no-stage"),
    pytest.param(["stage.vision.lr=0"], ["stage.vision.lr=0", "greater than 0"], id="rate"),
    pytest.param(["data.val_scenes=0"], ["data.val_scenes=0", "greater than or equal to 1"], id="empty-world"),
    pytest.param(["tracking.uri=file:./mlruns", "tracking.type=mlflow"], ["tracking.uri", "sqlite"], id="uri"),
    pytest.param(["trainer.device=cuda:7"], ["trainer.device=cuda:7", "trainer.device=cpu"], id="device"),
    pytest.param(["trainer.device=tpu"], ["trainer.device=tpu"], id="no-device"),
    pytest.param(["trainer.precision=fp16"], ["trainer.precision=fp16", "bf16"], id="precision"),
    pytest.param(["stage=vision", "init_from=runs/none"], ["init_from=runs/none", "a run's folder"], id="init"),
    pytest.param(["stage=resampler", "init_from=runs/no"], ["init_from=runs/no", "auto, none"], id="init-later"),
    pytest.param(["stage=vision", "resume=runs/none"], ["runs/none", "No checkpoint"], id="resume"),
    pytest.param(["vision.feature_layer=-9"], ["model.vision.feature_layer=-9", "-3"], id="layer"),
    pytest.param(["stage.finetune.max_text_length=500"], ["stage.finetune.max_text_length", "512 pos"], id="too-long"),
    pytest.param(["position=fourier", "model.latent_width=20"], ["position.bands=4", "lower it to 2"], id="narrow"),
    pytest.param(["crop.view_size=4"], ["smaller than one patch of (8, 8)"], id="view-size"),
]
"""What the command line alone can get wrong, and what the message must say."""


@pytest.mark.parametrize(("typed", "said"), CONFIG)
def test_the_command_line(arguments: list[str], refused: Callable[..., str], typed: list[str], said: list[str]) -> None:
    if any(word.startswith(("trainer.device", "crop.overlap")) for word in typed):
        keys = tuple(word.partition("=")[0] for word in typed)
        arguments = [argument for argument in arguments if not argument.startswith(keys)]
    message = refused(*arguments, *typed)
    for part in said:
        assert part in message


def test_all_problems_are_reported_together(arguments: list[str], refused: Callable[..., str]) -> None:
    message = refused(*arguments, "crop.fov_deg=270", "resampler.depth=0", "optim.schedule=sawtooth", "init_from=")
    assert "4 problems" in message
    assert all(key in message for key in ("crop.fov_deg", "model.resampler.depth", "optim.schedule", 'init_from=""'))


def test_stage_one_alone_that_cannot_run(arguments: list[str], refused: Callable[..., str]) -> None:
    whole = [argument for argument in arguments if not argument.startswith("crop.")]
    message = refused(*whole, "stage=vision", "crop=resize")
    assert "no view of this crop has a neighbour" in message
    assert "Choose another crop" in message


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., list[str]]:
    """``table(rows)``: the arguments of a CSV data set of one good picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "good.jpg"), pixels)

    def write(rows: str, split: str = "train") -> list[str]:
        good = "url,query,annotation\n" + "good.jpg,what is there,a room\n" * 8
        for name in ("train", "val", "test"):
            Path(tmp_path, f"{name}.csv").write_text(rows if name == split else good, encoding="utf-8")
        return ["data=csv", *(f"data.{name}_csv={tmp_path / f'{name}.csv'}" for name in ("train", "val", "test"))]

    return write


def without_scenes(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if "_scenes" not in argument]


HEADER = "url,query,annotation\n"
TABLES = [
    pytest.param("train", "url,query\ngood.jpg,what\n", ["train.csv", "no column for the annotation"], id="column"),
    pytest.param("val", HEADER, ["val.csv", "no rows below the header"], id="empty"),
    pytest.param("test", "", ["test.csv", "file is empty", "url,query,annotation"], id="zero-bytes"),
    pytest.param("train", HEADER + "gone.jpg,a,b\n", ["train.csv", "row 2, column url", "gone.jpg"], id="picture"),
    pytest.param("val", HEADER + "good.jpg,,b\n", ["row 2, column query", "empty"], id="cell"),
    pytest.param("train", HEADER + "empty.jpg,a,b\n", ["row 2", "empty.jpg", "empty"], id="empty-picture"),
    pytest.param("train", HEADER + "cut.jpg,a,b\n", ["row 2", "cut.jpg"], id="cut-picture"),
    pytest.param("train", HEADER + "square.jpg,a,b\n", ["row 2", "square.jpg", "2:1"], id="shape"),
    pytest.param("train", HEADER + "text.jpg,a,b\n", ["row 2", "text.jpg"], id="no-picture"),
]


@pytest.mark.parametrize(("split", "rows", "said"), TABLES)
def test_data_sets(
    arguments: list[str],
    refused: Callable[..., str],
    table: Callable[..., list[str]],
    tmp_path: Path,
    split: str,
    rows: str,
    said: list[str],
) -> None:
    good = table("x", "none") and (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "cut.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.jpg").write_text("not a picture " * 20)
    cv2.imwrite(str(tmp_path / "square.jpg"), np.zeros((64, 64, 3), np.uint8))
    message = refused(*without_scenes(arguments), *table(rows, split))
    for part in said:
        assert part in message


def test_a_missing_table_is_named(arguments: list[str], refused: Callable[..., str]) -> None:
    message = refused(*without_scenes(arguments), "data=quic360", "data.dir=nowhere")
    assert "nowhere/test.csv" in message.replace("\\", "/")


def broken(backbone: Backbone, family: str, folder: Path, change: Callable[[Path], object]) -> Path:
    """A copy of a family's folder with something wrong in it."""
    shutil.copytree(backbone(family), folder)
    change(folder)
    return folder


def without_a_weight(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in sorted(weights) if name.startswith(("vision_model.", "model."))))
    save_file(weights, file, metadata={"format": "pt"})


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN = [
    pytest.param(without_a_weight, ["weights are missing"], id="lacks-a-weight"),
    pytest.param(pickled_only, ["safetensors", "convert"], id="pickled"),
    pytest.param(lambda folder: (folder / "config.json").unlink(), ["config.json"], id="no-config"),
]


@pytest.mark.parametrize(("change", "said"), BROKEN)
@pytest.mark.parametrize("part", ["vision", "language"])
def test_backbones(
    arguments: list[str],
    refused: Callable[..., str],
    backbone: Backbone,
    tmp_path: Path,
    change: Callable[[Path], object],
    said: list[str],
    part: str,
) -> None:
    folder = broken(backbone, "siglip" if part == "vision" else "qwen3", tmp_path / "broken", change)
    message = refused(*arguments, f"{part}.name={folder}")
    assert f"model.{part}.name=" in message
    assert all(text in message for text in said)


def test_a_language_model_in_place_of_an_encoder_and_the_reverse(
    arguments: list[str], refused: Callable[..., str], backbone: Backbone
) -> None:
    assert "'qwen3' is not a supported encoder" in refused(*arguments, f"vision.name={backbone('qwen3')}")
    assert "model.language.name=" in refused(*arguments, f"language.name={backbone('siglip')}")


@pytest.mark.parametrize(
    ("targets", "said"), [("query_key_value", "not found among"), ("", "selects no layer"), ("lm_head", "merging")]
)
def test_adapters_on_layers_that_cannot_have_them(
    arguments: list[str], refused: Callable[..., str], backbone: Backbone, targets: str, said: str
) -> None:
    message = refused(*arguments, f"language.name={backbone('qwen2')}", f"lora.target_modules=[{targets}]")
    assert "lora.target_modules" in message
    assert said in message
    assert "q_proj" in message


@pytest.mark.parametrize("key", ["resampler.vision", "finetune.vision", "finetune.language"])
def test_more_blocks_than_a_backbone_has(arguments: list[str], refused: Callable[..., str], key: str) -> None:
    assert f"stage.{key}_trainable_blocks=99: " in refused(*arguments, f"stage.{key}_trainable_blocks=99")


def test_texts_that_are_cut_to_nothing(arguments: list[str], refused: Callable[..., str], backbone: Backbone) -> None:
    vicuna = [f"language.name={backbone('llama')}", "stage=resampler", "stage.resampler.max_text_length=8"]
    assert "stage.resampler.max_text_length=8" in refused(*arguments, *vicuna)


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="the kernels are installed")
def test_attention_kernels_that_are_not_installed(arguments: list[str], refused: Callable[..., str]) -> None:
    message = refused(*arguments, "vision.attn_implementation=flash_attention_2")
    assert "model.vision.attn_implementation" in message


def test_a_tracking_server_that_does_not_answer(
    arguments: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "tracking.uri" in refused(*arguments, "tracking=mlflow", "tracking.uri=http://127.0.0.1:9")


def test_a_refused_start_leaves_no_record_either(
    arguments: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a run in a new store nor one beside those of a run that trained."""
    tracked = [argument for argument in arguments if argument != UNTRACKED]
    gone = without_scenes(tracked)
    assert "nowhere" in refused(*gone, "data=quic360", "data.dir=nowhere")
    assert "one patch" in refused(*tracked, "crop.view_size=4")
    assert command(monkeypatch, train, *tracked, "stage=vision") == 0
    client = MlflowClient(absolute_uri())
    key = client.get_experiment_by_name("panollava").experiment_id
    before = [(run.info.run_id, run.info.status) for run in client.search_runs([key], run_view_type=ViewType.ALL)]
    assert "another config" in refused(*tracked, "stage=vision", "model.latent_width=48")
    assert "none of its" in refused(
        *tracked, "stage=vision", "init_from=runs/x", "experiment_name=y", "model.latent_width=48", "resampler.width=20"
    )
    assert [
        (run.info.run_id, run.info.status) for run in client.search_runs([key], run_view_type=ViewType.ALL)
    ] == before


def test_a_refused_sweep_leaves_nothing(arguments: list[str], refused: Callable[..., str]) -> None:
    message = refused(*without_scenes(arguments), "data=quic360", "data.dir=nowhere", "-m", "seed=0,1")
    assert "2 jobs started, 2 failed" in message


def test_checkpoints_of_another_shape(arguments: list[str], refused: Callable[..., str], capsys: Capture) -> None:
    run_train(*arguments, "stage=vision", "experiment_name=wide", "model.latent_width=48", "resampler.width=20")
    message = refused(*arguments, "stage=vision", "init_from=runs/wide")
    for part in ("init_from=", "none of its", "(20, 32) -> (", "runs/wide/vision", "init_from=none"):
        assert part in message
    (last,) = Path("runs/wide/vision").glob("*/last.ckpt")
    message = refused(*arguments, "stage=vision", f"resume={last}")
    for part in ("another config", "model.latent_width: 48 there, 32 now", "init_from="):
        assert part in message
    (last.parent / "config.yaml").unlink()
    message = refused(*arguments, "stage=vision", f"resume={last}")
    assert "holds other weights" in message
    assert "init_from=" in message
    (last / "state.json").write_text("")
    assert "state.json is not JSON" in refused(*arguments, "stage=vision", f"resume={last}")


def test_evaluation(arguments: list[str], refused: Callable[..., str]) -> None:
    def asked(*typed: str) -> str:
        return refused(*typed, module=evaluation)

    assert "checkpoint is missing" in asked(UNTRACKED)
    run_train(*arguments, "stage=resampler", "evaluation.enabled=false")
    message = asked("checkpoint=runs/y", UNTRACKED)
    assert "runs/y is no run" in message
    assert "runs/x/resampler" in message.replace("\\", "/")
    assert "batch_size=0" in asked("checkpoint=runs/x", UNTRACKED, "batch_size=0")
    assert "splti is not a key" in asked("checkpoint=runs/x", UNTRACKED, "splti=val")
    (metadata,) = Path("runs/x/resampler").glob("*/checkpoint_metadata.json")
    whole = metadata.read_text("utf-8")
    metadata.write_text(json.dumps({**json.loads(whole), "format_version": 99}), encoding="utf-8")
    assert "format 1" in asked("checkpoint=runs/x", UNTRACKED)
    metadata.write_text(whole, encoding="utf-8")
    (best,) = Path("runs/x/resampler").glob("*/best.ckpt")
    (best / "trained.safetensors").write_bytes(b"")
    message = asked("checkpoint=runs/x", UNTRACKED)
    assert "trained.safetensors is not a readable safetensors file" in message


@pytest.mark.parametrize("module", ["train", "eval"])
def test_the_real_command_prints_no_traceback(tmp_path: Path, module: str) -> None:
    typed = {"train": ["crop.overlap=1.2"], "eval": ["checkpoint=runs/none", "tracking=none"]}[module]
    done = subprocess.run(
        [sys.executable, "-m", f"panollava.{module}", *typed], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 1
    assert {"train": "crop.overlap=1.2", "eval": "runs/none is no run"}[module] in done.stderr
    assert "Traceback" not in done.stderr
    assert "HYDRA_FULL_ERROR=1" in done.stderr
    assert list(tmp_path.iterdir()) == []
