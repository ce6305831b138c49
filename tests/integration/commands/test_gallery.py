"""``python -m panollava.gallery`` writes one picture, or says in one message why not; a training run draws the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.runs import QUICK, Recorder, backbones, command, run_train

from panollava import gallery
from panollava.crop.crop import Crop
from panollava.crop.strategies import AnyresE2pCrop, CubemapCrop, ResizeCrop
from panollava.data.world import WorldSource
from panollava.evaluation.gallery import gallery_picture

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A panorama file, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    cv2.imwrite("photo (1).jpg", WorldSource(split="train", scenes=1, height=512).panorama(0)[..., ::-1])
    return Path("photo (1).jpg")


def opened(path: str) -> np.ndarray:
    """A PNG file as (H, W, 3) uint8 RGB."""
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def started(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    line = [sys.executable, "-m", "panollava.gallery", *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def test_the_real_command_needs_nothing(tmp_path: Path) -> None:
    done = started("crop=anyres_e2p", "crop.overlap=0.25", "out=pictures/gallery.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "anyres_e2p: 7 views of 256x256 pixels, effective overlap 0.333" in done.stderr
    assert "pictures/gallery.png" in done.stderr.replace("\\", "/")
    assert [path.name for path in tmp_path.rglob("*")] == ["pictures", "gallery.png"]
    panorama = WorldSource(split="train", scenes=1, height=1024).panorama(0)
    crop = Crop(AnyresE2pCrop(overlap=0.25), view_size=(256, 256))
    title = "anyres_e2p: 7 views of 256x256 pixels, effective overlap 0.333"
    expected = gallery_picture(panorama, crop.views(panorama), crop.cameras, title=title)
    assert (opened(str(tmp_path / "pictures/gallery.png")) == expected).all()


def test_a_picture_of_ones_own(photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    arguments = [f"image={photo}", "crop=cubemap", "crop.poles=true", "crop.view_size=48", "out=a, b.png"]
    assert command(monkeypatch, gallery, *arguments) == 0
    assert "6 views of 48x48 pixels" in capsys.readouterr().err
    picture = opened("a, b.png")
    crop = Crop(CubemapCrop(poles=True), view_size=(48, 48))
    whole = cv2.imread(str(photo))[..., ::-1]
    title = f"cubemap: {crop.summary}"
    expected = gallery_picture(whole, crop.views(crop.read(photo)), crop.cameras, title=title)
    assert (picture == expected).all()


def test_a_picture_of_a_part_of_the_sphere(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = cv2.imread(str(photo))[128:384, 256:768]
    cv2.imwrite("part.png", cut)
    typed = ["crop=resize", "crop.view_size=64", "crop.panorama_fov_deg=[180,90]"]
    assert command(monkeypatch, gallery, *typed, "image=part.png") == 0
    picture = opened("gallery.png")
    whole = np.zeros((512, 1024, 3), np.uint8)
    whole[128:384, 256:768] = cut[..., ::-1]
    crop = Crop(ResizeCrop(), view_size=(64, 64))
    expected = gallery_picture(whole, crop.views(whole), crop.cameras, title=f"resize: {crop.summary}")
    assert np.abs(picture.astype(int) - expected).mean() < 0.2
    assert command(monkeypatch, gallery, *typed, "out=world.png") == 1
    assert not Path("world.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("crop=sliding_window", "crop.fov_deg=120"),
        ("crop=anyres", "crop.max_tiles=18"),
        ("crop=resize",),
        ("crop=e2p", "crop.pitch_rows_deg=[-45,0,45]", "crop.overlap=0.25"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_any_crop(photo: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    assert command(monkeypatch, gallery, *arguments, f"image={photo}") == 0
    assert opened("gallery.png").shape[1] == 1600


def test_help_and_config(tmp_path: Path) -> None:
    shown = started("--help", cwd=tmp_path)
    assert shown.returncode == 0
    for part in (
        "crop: adaptive, anyres, anyres_e2p, anyres_max, cubemap, e2p",
        "image: null",
        "out: gallery.png",
        "Examples",
    ):
        assert part in shown.stdout
    shown = started("crop=cubemap", "--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0
    lines = shown.stdout.split("\n")
    assert {"crop:", "  type: cubemap", "  poles: false", "image: null", "out: gallery.png"} <= set(lines)
    assert list(tmp_path.iterdir()) == []


WRONG = [
    pytest.param(["image=nowhere.jpg"], ["nowhere.jpg", "there is no such file"], id="missing"),
    pytest.param(["image="], ["there is no such file"], id="no-name"),
    pytest.param(["image=text.jpg"], ["text.jpg", "neither a JPEG nor a PNG"], id="no-picture"),
    pytest.param(["image=cut.jpg"], ["cut.jpg", "cut short"], id="cut"),
    pytest.param(["image=square.png"], ["square.png", "twice as wide as high"], id="shape"),
    pytest.param(["out=text.jpg/x.png"], ["cannot be written", "Choose another folder"], id="unwritable"),
    pytest.param(["out=folder.png"], ["out=folder.png is a folder"], id="folder"),
    pytest.param(["out=x.jpg"], ["out=x.jpg", "ends in .png"], id="suffix"),
    pytest.param(["image=good.png", "out=./good.png"], ["good.png is the panorama itself"], id="itself"),
    pytest.param(["out=null"], ["out=null"], id="no-out"),
    pytest.param(["crop.overlp=0.3"], ["crop.overlp", "Did you mean crop.overlap"], id="key"),
    pytest.param(["imgae=x.jpg"], ["imgae", "Did you mean image"], id="top-key"),
    pytest.param(["+size=3"], ["size is not a key here", "image, index, out"], id="added-key"),
    pytest.param(["crop.overlap=0.95"], ["crop.overlap=0.95", "<= 0.9"], id="range"),
    pytest.param(["crop=cubemap", "crop.poles=3"], ["crop.poles=3", "boolean"], id="type"),
    pytest.param(["crop.view_size=0"], ["crop.view_size=0", "1 to 4096"], id="view-size"),
    pytest.param(["crop.view_size=100000"], ["crop.view_size=100000", "1 to 4096"], id="huge-views"),
    pytest.param(["crop.renderer=opengl"], ['crop.renderer="opengl"', "'cv2'"], id="renderer"),
    pytest.param(["image=square.png", "crop.panorama_fov_deg=[90,60]"], ["square.png", "=[90, 60]"], id="part"),
    pytest.param(["crop.panorama_fov_deg=[90,60]"], ["panorama_fov_deg", "image=<file>"], id="part-of-world"),
    pytest.param(["crop.panorama_fov_deg=[400,60]"], ["[400, 60]", "<= 360", "twice"], id="round-twice"),
    pytest.param(["crop.device=cuda"], ["crop.device=cuda", "crop.renderer=torch"], id="renderer-device"),
    pytest.param(["crop=cubmap"], ["cubmap", "cubemap", "sliding_window"], id="option"),
    pytest.param(["-m", "crop=cubemap,resize"], ["-m: only panollava.train sweeps"], id="sweep"),
]


@pytest.mark.parametrize(("typed", "said"), WRONG)
def test_wrong_input_is_one_message(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, typed: list[str], said: list[str]
) -> None:
    Path("text.jpg").write_text("no picture " * 20)
    Path("cut.jpg").write_bytes(photo.read_bytes()[:4000])
    Path("folder.png").mkdir()
    for name, size in (("square.png", (64, 64)), ("good.png", (64, 128))):
        cv2.imwrite(name, np.zeros((*size, 3), np.uint8))
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert command(monkeypatch, gallery, *typed) == 1
    captured = capsys.readouterr()
    message = captured.out + captured.err
    for part in said:
        assert part in message
    assert "Traceback" not in message
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_the_real_command_prints_no_traceback(tmp_path: Path) -> None:
    done = started("image=nowhere.jpg", cwd=tmp_path)
    assert done.returncode == 1
    assert "FileNotFoundError: nowhere.jpg" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


class Album(Recorder):
    """A tracker that keeps pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[tuple[str, np.ndarray]] = []

    def image(self, picture: np.ndarray | Path, name: str) -> None:
        """Keeps it under its name."""
        assert isinstance(picture, Path)
        self.pictures.append((name, opened(str(picture))))


def test_a_run_of_several_stages_tracks_the_gallery_once(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    album = Album()
    monkeypatch.setattr("panollava.run.run.open_tracker", lambda *args, **options: album)
    quick = [*backbones(backbone), *QUICK, "trainer.max_steps=1", "evaluation.enabled=false"]
    run_train(*quick, "stage.run=[vision,resampler]", "experiment_name=x")
    ((name, picture),) = album.pictures
    assert name == "views.png"
    panorama = WorldSource(split="train", scenes=1).panorama(0)
    crop = Crop(AnyresE2pCrop(overlap=0.0), view_size=(32, 32))
    expected = gallery_picture(panorama, crop.views(panorama), crop.cameras, title=f"anyres_e2p: {crop.summary}")
    assert (picture == expected).all()
    assert (opened("runs/x/views.png") == expected).all()
