"""The check of the keys that every crop has."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from support.runs import config

from panollava.component import component_names, find_component
from panollava.run.config_check import checked
from panollava.run.sections import check_crop

CROP = {"type": "anyres_e2p", "view_size": None}


@pytest.mark.parametrize("covered", [None, [360, 180], [180.0, 60.5], [0.5, 1]])
def test_degrees_that_a_picture_may_cover(covered: object) -> None:
    assert check_crop({**CROP, "panorama_fov_deg": covered}) == []


WRONG: list[Any] = [
    pytest.param([0, 90], ["=[0, 90] is out of range: 0 < horizontal <= 360", "shows nothing"], id="zero"),
    pytest.param([361, 90], ["0 < horizontal <= 360", "the same twice"], id="round"),
    pytest.param([180, 200.5], ["=[180, 200.5]", "0 < vertical <= 180", "From pole to pole"], id="poles"),
    pytest.param([-10, 90], ["=[-10, 90]", "0 < horizontal"], id="negative"),
    pytest.param([180], ["panorama_fov_deg", "1"], id="one"),
    pytest.param([180, 90, 10], ["panorama_fov_deg", "3"], id="three"),
    pytest.param(["wide", 90], ['="wide"', "number"], id="word"),
    pytest.param([True, 90], ["=true", "number"], id="boolean"),
    pytest.param(180, ["panorama_fov_deg=180"], id="number"),
]


@pytest.mark.parametrize(("covered", "said"), WRONG)
def test_degrees_that_it_may_not(covered: object, said: list[str]) -> None:
    (problem,) = check_crop({**CROP, "panorama_fov_deg": covered})
    assert problem.startswith("crop.panorama_fov_deg")
    assert all(part in problem for part in said)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"device": "cuda"}, "crop.device=cuda needs crop.renderer=torch"),
        ({"device": "cuda", "renderer": "torch"}, "crop.device=cuda is not there"),
        ({"device": "gpu", "renderer": "torch"}, "crop.device=gpu: allowed are"),
        ({"device": 0, "renderer": "torch"}, "crop.device=0"),
        ({"device": "cuda", "renderer": "opengl"}, 'crop.renderer="opengl"'),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, keys: dict[str, object], said: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (problem,) = check_crop({**CROP, **keys})
    assert problem.startswith(said)


def test_what_other_sections_do_not_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    on_gpu = ("crop.renderer=torch", "crop.device=cuda")
    checked(config(*on_gpu, "trainer.num_workers=0"))
    with pytest.raises(ValueError, match=r"1 problem:\n  crop\.device=cuda needs trainer\.num_workers=0, not 2: "):
        checked(config(*on_gpu, "trainer.num_workers=2"))
    with pytest.raises(ValueError, match=r"1 problem:\n  crop\.panorama_fov_deg is for pictures .*data=world"):
        checked(config("crop.panorama_fov_deg=[180,60]"))
    files = [f"data.{split}_csv={split}.csv" for split in ("train", "val", "test")]
    assert checked(config("crop.panorama_fov_deg=[180,60]", "data=csv", *files)).crop.panorama_fov_deg == [180, 60]


ROOMS = [
    ("data", "Source"),
    ("crop.strategies", "Crop"),
    ("model.resampler", "Resampler"),
    ("model.position", "Position"),
    ("model.projector", "Projector"),
    ("losses.objective", "Objective"),
]


@pytest.mark.parametrize(("room", "suffix"), ROOMS)
def test_every_name_that_is_offered_is_a_component(room: str, suffix: str) -> None:
    names = component_names(room, suffix)
    assert names
    for name in names:
        assert inspect.isclass(find_component(room, name, suffix))


@pytest.mark.parametrize("name", ["csv", "dataset", "None", "../world", ""])
def test_what_is_no_component_is_told_with_those_there_are(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"there is no {name!r}\.( A class of .*:Class\.)? Available: annotated, files, world\."
    ):
        find_component("data", name, "Source")


@pytest.mark.parametrize("data", ["world", "small_world", "csv", "json", "quic360"])
def test_the_debugging_overlay_goes_with_every_data_set(data: str) -> None:
    cfg = checked(config("+debug=default", f"data={data}"))
    assert cfg.trainer.max_steps == 2
    assert cfg.data.get("train_scenes", 0) == {"world": 1600, "small_world": 16}.get(data, 0)


def test_the_debugging_overlay_alone_draws_few_scenes() -> None:
    assert checked(config("+debug=default")).data.train_scenes == 16
