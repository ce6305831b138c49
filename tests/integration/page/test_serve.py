"""The page on the real server: in this process with random weights, and as ``python -m panollava.serve``."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from support.browser import Tab
from support.runs import command
from support.served import complete, listening, panorama, png, said, served, talkative

from panollava import PanoLlava, serve
from panollava.crop.boxes import PictureBoxes
from panollava.evaluation.drawing import palette
from panollava.model.api import VisionPart
from panollava.model.detector import Detections

Open = Callable[..., Tab]
Backbone = Callable[[str], Path]


class FoundBehind:
    """Finds a ring across the seam, with a mask, in every panorama."""

    def __init__(self, pano: PanoLlava) -> None:
        self.crop = pano.crop

    def detect(self, image: np.ndarray) -> Detections:
        mask = np.full((64, 128), -1, np.int16)
        mask[24:40, -8:] = mask[24:40, :8] = 1
        boxes = PictureBoxes(np.array([[180.0, 0.0, 20.0, 16.0, 0.0]]), np.array([1]), np.array([0.875]))
        return Detections(boxes, mask, ("light", "ring"))


@pytest.fixture(scope="module")
def pano(backbone: Backbone) -> PanoLlava:
    return talkative(backbone)


@pytest.fixture(scope="module")
def address(pano: PanoLlava) -> Iterator[str]:
    first, second = served(pano), served(pano, "other")
    detector: object = FoundBehind(pano)
    first.part = VisionPart("model", pano.model.vision, pano.crop, pano, detector)  # type: ignore[arg-type]
    with listening(first, second) as address:
        yield address


def eventually(condition: Callable[[], bool]) -> None:
    """Waits until it holds; the page's policy forbids the evaluation that playwright would wait with."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_page_asks_the_model(pano: PanoLlava, address: str, tab: Open) -> None:
    page = tab(address)
    page.open()
    pixels = panorama(5)
    page.drop("own.png", png(pixels), "image/png")
    eventually(lambda: page.page.evaluate("panollava.state.picture.id") != "seed-0")
    page.ask("what?")
    assert page.answers() == [pano.generate(pixels, "what?")] * 2
    page.check()


def test_borders_boxes_masks_and_heat(address: str, tab: Open) -> None:
    page = tab(address)
    page.open()
    page.page.check("#show-views")
    page.page.check("#show-boxes")
    page.page.wait_for_selector("#boxes button")
    assert "ring" in page.page.locator("#boxes button").first.inner_text()
    page.page.click("#boxes button")
    eventually(lambda: abs(page.yaw() - 180) < 1)
    before = np.array(page.pixel(), float)
    page.page.uncheck("#show-views")
    page.page.uncheck("#show-boxes")
    page.page.check("#show-mask")
    ring = np.array(palette(2)[1])
    # The mask lies over the panorama with an opacity: the pixel moves towards the colour of its class.
    eventually(lambda: np.abs(np.array(page.pixel()) - ring).sum() < np.abs(before - ring).sum() - 10)
    page.page.uncheck("#show-mask")
    page.look(0)
    before = np.array(page.pixel(), float)
    page.ask("what?")
    page.page.check("input[name=heat][value=attention]")
    eventually(lambda: np.abs(np.array(page.pixel()) - before).sum() > 10)
    page.check()


def test_the_screenshots_of_the_readme(address: str, tab: Open, tmp_path: Path) -> None:
    """Pictures of the page; of a run of one's own with ``PANOLLAVA_PAGE=<address of its server>``.

    ``PANOLLAVA_SCREENSHOTS=experiments/pictures`` says where they are written.
    """
    url, folder = os.environ.get("PANOLLAVA_PAGE", address), Path(os.environ.get("PANOLLAVA_SCREENSHOTS", tmp_path))
    wide = tab(url, viewport={"width": 1280, "height": 800})
    wide.open()
    question = wide.page.evaluate("panollava.state.picture.question")
    wide.page.check("#show-boxes")
    wide.page.wait_for_selector("#boxes button")
    wide.ask(question)
    wide.ask("what?" if url == address else "what is behind?")
    wide.page.check("input[name=heat][value=attention]")
    eventually(lambda: "Attention from" in wide.page.inner_text("#heat-note"))
    wide.look(165.0, -5.0)
    wide.page.wait_for_timeout(1000)  # the overlay is drawn with the next pictures of the viewer
    wide.page.screenshot(path=folder / "page.png")
    assert (folder / "page.png").stat().st_size > 20_000
    wide.check()


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "mine"
    pano = PanoLlava.from_backbones("panollava/tiny-siglip", "panollava/tiny-qwen3")
    pano.save_pretrained(folder)
    return folder


def test_the_command_serves_and_ends(export: Path, tmp_path: Path) -> None:
    typed = [sys.executable, "-m", "panollava.serve", f"checkpoint={export}", f"beside={export}", "port=0"]
    process = subprocess.Popen(
        typed, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "PANOLLAVA_API_KEY": "geheim"}
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "Serving" in line)
        assert "mine and mine (beside)" in line
        found = re.search(r"(http://127\.0\.0\.1:\d+) \(the page\)", line)
        assert found
        address = found[1]
        assert "<title>panollava" in requests.get(address, timeout=30).text
        assert requests.get(f"{address}/v1/models", timeout=30).status_code == 401
        key = {"authorization": "Bearer geheim"}
        assert len(requests.get(f"{address}/api/info", headers=key, timeout=30).json()["pictures"]) > 1
        listed = requests.get(f"{address}/v1/models", headers=key, timeout=30).json()
        assert [one["id"] for one in listed["data"]] == ["mine", "mine (beside)"]
        assert "geheim" not in line
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (130, 0)  # 0 where the tests run in the background, whose processes ignore SIGINT


def test_wrong_settings_end_the_command_at_once(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def message(*arguments: str) -> str:
        assert command(monkeypatch, serve, *arguments) == 1
        said = capfd.readouterr().err
        assert "Traceback" not in said
        return said

    assert "checkpoint is missing" in message()
    assert "port=70000" in message(f"checkpoint={export}", "port=70000")
    assert "no such file or folder" in message(f"checkpoint={export}", "pictures=nowhere", "port=0")
    assert "runs/none" in message("checkpoint=runs/none", "port=0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Choose another port" in message(f"checkpoint={export}", f"port={taken.getsockname()[1]}")


def test_a_server_of_an_export_answers_as_python(export: Path) -> None:
    pano = PanoLlava.from_pretrained(export)
    with listening(served(pano)) as address:
        assert said(complete(address, png(panorama(1)), "what?")) == pano.generate(panorama(1), "what?")
