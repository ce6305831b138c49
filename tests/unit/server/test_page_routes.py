"""What the page asks: pictures, views, streams, attention, similarity, boxes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests
import torch
from support.served import events, listening, panorama, png, served, talkative

from panollava.crop.boxes import PictureBoxes
from panollava.crop.crop import Crop
from panollava.evaluation.explain import answer_attention, attention_values
from panollava.model.api import PanoLlava
from panollava.model.detector import Detections
from panollava.server.guard import RefusedError
from panollava.server.overlays import boxes_document, mask_png, views_document
from panollava.server.pictures import Offered, Pictures, file_pictures

Backbone = Callable[[str], Path]


@pytest.fixture(scope="module")
def pano(backbone: Backbone) -> PanoLlava:
    return talkative(backbone)


@pytest.fixture(scope="module")
def address(pano: PanoLlava) -> Iterator[str]:
    with listening(served(pano), served(pano, "other")) as address:
        yield address


def get(url: str, **params: Any) -> requests.Response:
    return requests.get(url, params=params, timeout=60)


def ask(address: str, **body: Any) -> requests.Response:
    document = {"model": "model", "picture": "seed-0", "question": "what?", **body}
    return requests.post(f"{address}/api/ask", json=document, timeout=60, stream=True)


def test_info_names_models_and_pictures(address: str) -> None:
    info = get(f"{address}/api/info").json()
    assert [one["id"] for one in info["models"]] == ["model", "other"]
    assert info["models"][0] | {"summary": ""} == {
        "id": "model",
        "name": "model",
        "summary": "",
        "answers": True,
        "detects": False,
        "explains": True,
    }
    assert info["pictures"] == [{"id": "seed-0", "name": "noise", "question": "what?"}]
    assert not info["key_needed"]


def test_a_picture_is_taken_shown_and_asked_about(pano: PanoLlava, address: str) -> None:
    pixels = panorama(5)
    sent = requests.post(f"{address}/api/pictures", data=png(pixels), timeout=60).json()
    assert (sent["width"], sent["height"]) == (128, 64)
    shown = get(f"{address}/api/pictures/{sent['id']}")
    assert shown.headers["content-type"] == "image/jpeg"
    assert cv2.imdecode(np.frombuffer(shown.content, np.uint8), cv2.IMREAD_COLOR).shape == (64, 128, 3)
    *pieces, last = events(ask(address, picture=sent["id"]))
    assert last["answer"] == "".join(piece["text"] for piece in pieces) == pano.generate(pixels, "what?")
    again = events(ask(address, picture=sent["id"], question="where?", history=[["what?", last["answer"]]]))[-1]
    assert again["answer"] == pano.generate(pixels, "where?", history=[("what?", last["answer"])])
    assert events(ask(address, max_tokens=1))[-1]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"picture": "0123456789abcdef"}, 404, "Send it again"),
        ({"model": "third"}, 404, "there is model, other"),
        ({"question": ""}, 400, "question"),
        ({"question": "  "}, 400, "empty"),
        ({"history": [["a"]]}, 400, "history"),
        ({"question": "x" * 200_000}, 413, "more than"),
    ],
)
def test_what_is_wrong_is_said(body: dict[str, Any], status: int, words: str, address: str) -> None:
    answer = ask(address, **body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_what_is_no_panorama_is_refused_when_it_is_sent(address: str) -> None:
    def sent(content: bytes) -> str:
        answer = requests.post(f"{address}/api/pictures", data=content, timeout=60)
        assert answer.status_code == 400
        return answer.json()["error"]["message"]

    assert "empty" in sent(b"")
    assert "neither a JPEG nor a PNG" in sent(b"hello")
    whole = png(panorama(0))
    assert "damaged" in sent(whole[:300] + bytes(40) + whole[340:])
    assert "2:1" in sent(png(panorama(0)[:, :100]))


def test_views_have_borders_in_degrees(pano: PanoLlava, address: str) -> None:
    views = get(f"{address}/api/pictures/seed-0/views", model="model").json()["views"]
    assert len(views) == len(pano.crop.cameras)
    assert views[0]["whole"]
    assert views[0]["border"] == []
    for view, camera in zip(views, pano.crop.cameras, strict=True):
        assert view["yaw"] == pytest.approx(np.degrees(camera.yaw_rad), abs=1e-3)
        for curve in view["border"]:
            assert curve[0][1] == pytest.approx(curve[-1][1])
            assert np.abs(np.diff(np.array(curve)[:, 0])).max() < 180  # continuous across the seam
    assert get(f"{address}/api/pictures/seed-0/views").status_code == 400


def test_attention_is_that_of_explain_to_the_pixel(pano: PanoLlava, address: str) -> None:
    body = {"model": "model", "picture": "seed-0", "question": "what?", "answer": "red", "history": [["a?", "b"]]}
    answer = requests.post(f"{address}/api/attention", json=body, timeout=60)
    low, high = map(float, answer.headers["x-range"].split())
    found = answer_attention(pano, pano.views(panorama()), "what?", "red", history=[("a?", "b")])
    overlays = served(pano).overlays
    grid = pano.model.vision.token_grid
    assert grid is not None
    values = attention_values(found, overlays._map(grid, pano.crop.camera_rows))
    assert low == 0
    assert high == pytest.approx(max(float(values.nan_to_num().max()), 1.0), rel=1e-2)
    picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert (picture[..., 3] == 0).tolist() == values.isnan().tolist()
    brightest = np.unravel_index(int(values.nan_to_num().argmax()), values.shape)
    assert (
        picture[brightest][:3].tolist()
        == cv2.applyColorMap(np.array([[255]], np.uint8), cv2.COLORMAP_INFERNO)[0, 0].tolist()
    )


def test_similarity_is_one_where_it_was_clicked(address: str) -> None:
    answer = get(f"{address}/api/pictures/seed-0/similar", model="model", yaw=10, pitch=5)
    assert answer.headers["x-range"].split()[1] == "1"
    picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    row, column = round((90 - 5) / 180 * picture.shape[0]), round((10 + 180) / 360 * picture.shape[1])
    assert (
        picture[row, column, :3].tolist()
        == cv2.applyColorMap(np.array([[255]], np.uint8), cv2.COLORMAP_VIRIDIS)[0, 0].tolist()
    )
    assert get(f"{address}/api/pictures/seed-0/similar", model="model", yaw="x", pitch=5).status_code == 400
    assert "no view" in get(f"{address}/api/pictures/seed-0/similar", model="model", yaw="nan", pitch=5).text


def test_boxes_need_a_detection_stage(address: str) -> None:
    answer = get(f"{address}/api/pictures/seed-0/boxes", model="model")
    assert answer.status_code == 400
    assert "stage=detect" in answer.json()["error"]["message"]


def test_the_outline_of_a_box_across_the_seam_and_of_a_mask() -> None:
    boxes = PictureBoxes(np.array([[178.0, 5.0, 20.0, 10.0, 0.0]]), np.array([1]), np.array([0.9]))
    mask = np.full((4, 8), -1, np.int16)
    mask[1, 2] = 1
    found = Detections(boxes, mask, ("light", "ring"))
    (box,) = boxes_document(found)["boxes"]
    assert (box["name"], box["score"], box["width"], box["height"]) == ("ring", 0.9, 20.0, 10.0)
    outline = np.array(box["outline"])
    assert np.abs(np.diff(outline[:, 0])).max() < 5
    assert outline[:, 0].min() == pytest.approx(168, abs=0.2)
    assert outline[:, 0].max() == pytest.approx(188, abs=0.2)
    assert outline[0] == pytest.approx(outline[-1])
    picture = cv2.imdecode(np.frombuffer(mask_png(found), np.uint8), cv2.IMREAD_UNCHANGED)
    assert (picture[..., 3] == 255).sum() == 1
    assert picture[1, 2, 3] == 255


def test_views_of_every_crop_can_be_outlined() -> None:
    for spec in ({"type": "cubemap", "poles": True}, {"type": "sliding_window"}, {"type": "resize"}):
        crop = Crop.from_spec(spec, view_size=(32, 32))
        for view in views_document(crop.cameras)["views"]:
            assert np.isfinite(np.array(view["border"])).all()


def test_pictures_are_forgotten_when_memory_is_used_up(pano: PanoLlava) -> None:
    pictures = Pictures([pano.crop], [Offered("seed-0", "noise", None, panorama)], limit=60_000)
    names = [pictures.add(png(panorama(seed))).id for seed in range(4)]
    assert pictures.get(names[-1]).content == png(panorama(3))
    with pytest.raises(RefusedError, match="Send it again"):
        pictures.get(names[0])
    assert torch.equal(pictures.get("seed-0").views(pano.crop).views, pano.views(panorama()))


def test_what_was_found_in_a_picture_counts_as_memory(pano: PanoLlava) -> None:
    """A small file may be of many pixels, and so is its mask."""
    boxes = PictureBoxes(np.zeros((0, 5)), np.zeros(0, int), np.zeros(0))
    found = Detections(boxes, np.zeros((512, 1024), np.int16), ("a",))
    pictures = Pictures([pano.crop], [], limit=found.mask.nbytes)
    first = pictures.add(png(panorama(0)))
    assert first.once("detections", lambda: found) is found
    pictures.add(png(panorama(1)))
    with pytest.raises(RefusedError, match="Send it again"):
        pictures.get(first.id)


def test_an_offered_file_that_changes_or_goes(pano: PanoLlava, tmp_path: Path) -> None:
    """The link holds; answers are about the content that is there."""
    path, gone = tmp_path / "a.png", tmp_path / "b.png"
    path.write_bytes(png(panorama(1)))
    gone.write_bytes(png(panorama(1)))
    offered = file_pictures([path, gone, tmp_path / os.fsdecode(b"\xff.png")])
    pictures = Pictures([pano.crop], offered, limit=1)
    first = pictures.get(offered[0].id)
    path.write_bytes(png(panorama(2)))
    pictures.add(png(panorama(3)))  # the first is forgotten
    second = pictures.get(offered[0].id)
    assert (first.id, first.digest == second.digest) == (second.id, False)
    gone.unlink()
    with pytest.raises(RefusedError, match=r"b\.png cannot be read") as error:
        pictures.get(offered[1].id)
    assert error.value.status == 404
    assert str(tmp_path) not in error.value.message
    assert offered[2].name.endswith(".png")


def test_large_pictures_are_decoded_one_after_the_other(pano: PanoLlava, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = [], []
    original = Crop.read

    def slow(crop: Crop, source: Any) -> np.ndarray:
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        return original(crop, source)

    monkeypatch.setattr(Crop, "read", slow)
    pictures = Pictures([pano.crop], [])
    known = [pictures.add(png(panorama(seed))) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda one: one.views(pano.crop), known))
    assert max(most) == 2
