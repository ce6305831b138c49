"""crop=adaptive by the command line: from training to an export, and what cannot use it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from support.runs import QUICK, UNTRACKED, backbones, command, run_train
from transformers import AutoModelForImageTextToText, AutoProcessor

from panollava import eval as evaluation
from panollava import explain, export, predict, train
from panollava.crop.cameras import camera_tensor
from panollava.data.world import WorldSource
from panollava.model.api import PanoLlava
from panollava.server.overlays import Overlays
from panollava.server.pictures import Panorama
from panollava.store.catalogue import kept_stores

Backbone = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def arguments(backbone: Backbone) -> list[str]:
    quick = [one for one in QUICK if not one.startswith("crop.")]
    return [*backbones(backbone), *quick, UNTRACKED, "crop=adaptive", "experiment_name=x"]


@pytest.fixture(scope="module")
def trained(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of all language stages, and what it has stored and evaluated."""
    folder = tmp_path_factory.mktemp("adaptive")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_train(*arguments, "trainer.max_steps=1")
    return folder


@pytest.fixture(autouse=True)
def in_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)


def answers(folder: str) -> list[list[str]]:
    (path,) = Path(folder).glob("**/predictions*.csv")
    with path.open(encoding="utf-8") as file:
        return [row[:-1] for row in csv.reader(file)]  # the last is the time


def test_stored_features_are_answered_as_fresh_ones(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(Path("runs/x").glob("vision/*/best.ckpt")), "stage 1 found pairs of views"
    (kept,) = kept_stores("cache")
    assert "adaptive" in kept.folder.name
    quiet = ("checkpoint=runs/x", "tracking=none", "device=cpu", "num_workers=0")
    assert command(monkeypatch, evaluation, *quiet, "results_dir=stored") == 0
    assert command(monkeypatch, evaluation, *quiet, "results_dir=fresh", "store.enabled=false") == 0
    assert answers("stored") == answers("fresh")


def test_an_export_answers_as_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pano = PanoLlava.from_pretrained("runs/x")
    picture = WorldSource(split="test", scenes=1).panorama(0)
    answer = pano.generate(picture, "what is there?", max_new_tokens=4)
    with pytest.raises(ValueError, match="crop=adaptive chooses the cameras"):
        pano.batch([pano.views(picture)], [pano.encode("what?")])
    assert command(monkeypatch, export, "checkpoint=runs/x", "out=exported") == 0
    assert PanoLlava.from_pretrained("exported").generate(picture, "what is there?", max_new_tokens=4) == answer
    model: Any = AutoModelForImageTextToText.from_pretrained("exported")
    processor = AutoProcessor.from_pretrained("exported")
    inputs = processor(images=picture, text="what is there?")
    assert torch.equal(inputs["cameras"][0], camera_tensor(pano.crop.cameras_of(picture)))
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == answer


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"join": "stitch"}, "model.join=stitch drops the columns"),
        ({"resampler": {"type": "bimamba", "scan": "ring"}}, "model.resampler.scan=ring reads the tiles"),
    ],
)
def test_a_model_that_needs_a_ring_is_refused_in_python_too(
    backbone: Backbone, typed: dict[str, Any], said: str
) -> None:
    """There its tokens would not be read in the order that scan=ring promises, without a word."""
    names = str(backbone("siglip")), str(backbone("qwen3"))
    with pytest.raises(ValueError, match=said):
        PanoLlava.from_backbones(*names, crop={"type": "adaptive"}, **typed)


def test_layout_llava_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    typed = ("checkpoint=runs/x", "layout=llava", "merge=true", "out=stock")
    assert command(monkeypatch, export, *typed) == 1
    assert "crop.type=adaptive: the layout has no place for the cameras of each panorama" in capsys.readouterr().err


def test_pictures_are_answered_and_explained(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    folder = Path("pictures")
    folder.mkdir()
    source = WorldSource(split="test", scenes=2)
    for index in range(2):
        cv2.imwrite(f"pictures/{index}.png", source.panorama(index)[..., ::-1])
    typed = ("checkpoint=runs/x", "image=pictures", "question=what?", "generation.max_new_tokens=2", "device=cpu")
    assert command(monkeypatch, predict, *typed) == 0
    assert capsys.readouterr().out.count("\n") >= 2
    assert (
        command(monkeypatch, explain, "checkpoint=runs/x", "image=pictures/0.png", "tracking=none", "device=cpu") == 0
    )
    assert Path("explain.png").is_file()


def test_the_page_shows_the_views_of_each_panorama() -> None:
    pano = PanoLlava.from_pretrained("runs/x")
    pictures = [
        Panorama(f"{index}", "", WorldSource(split="test", scenes=2).panorama(index), (256, 512)) for index in (0, 1)
    ]
    cameras = [one.cameras(pano.crop) for one in pictures]
    assert cameras[0] != cameras[1]
    assert torch.equal(pictures[0].views(pano.crop).cameras, camera_tensor(cameras[0]))
    overlays = Overlays(pano.model.vision, pano.crop)
    drawn = [overlays.similar(one.views(pano.crop), 0.0, 0.0).png for one in pictures]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["model.join=stitch"], "model.join=stitch drops the columns"),
        (["model.join=stitch_nearest"], "model.join=stitch_nearest drops the columns"),
        (
            ["resampler=bimamba", "model.resampler.scan=ring"],
            "model.resampler.scan=ring reads the tiles of a closed ring",
        ),
        (["objective=vicreg"], "stage.vision.loss.pairing=columns pairs neighbours of a ring"),
        (["stage=vision", "crop.views=1"], "crop.views=1 of crop=adaptive is one tile"),
        (["stage=detect", "stage.detect.global_view=false"], "crop=adaptive chooses tiles by their detail"),
        (["crop.views=99"], "crop.views=99 is out of range"),
    ],
)
def test_what_cannot_use_it_is_refused_before_training(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture, typed: list[str], said: str
) -> None:
    assert command(monkeypatch, train, *arguments, "experiment_name=other", *typed) == 1
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert not Path("runs/other").exists() or not list(Path("runs/other").glob("*/*/*.ckpt"))
