"""CLIP-score against transformers called directly, on a small random CLIP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support.hub_folders import SIZE as SIDE
from support.hub_folders import small_clip
from support.runs import command
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from panollava import score
from panollava.evaluation.captions import ClipScore
from panollava.evaluation.clip import Clip, read_picture
from panollava.evaluation.metrics import AnswerSet
from panollava.evaluation.predictions import Scored

PANORAMA = (40, 80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small_clip(tmp_path_factory.mktemp("clip") / "clip 모델")


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(0)
    return {f"{name}.png": drawn.integers(0, 256, (*PANORAMA, 3), np.uint8) for name in "abc"}


SCORED = [
    Scored("a.png", "what", "text", "a red cone", ("a red cone", "the cone is red and stands on the left")),
    Scored("b.png", "what", "text", "빨간 원뿔", ("a blue ball",)),
    Scored("b.png", "where", "text", "", ("left",)),
    Scored("c.png", "what", "text", "one of the words of a very long answer " * 5, ("a green cube", "a cube")),
]


def by_hand(folder: Path, pictures: dict[str, np.ndarray]) -> tuple[list[float], list[float]]:
    """Each answer's CLIP-score and RefCLIP-score, one at a time."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)

    def text(words: str) -> torch.Tensor:
        ids = tokenizer("A photo depicts " + words, truncation=True, max_length=24, return_tensors="pt")
        return model.get_text_features(input_ids=ids["input_ids"]).pooler_output[0]

    def picture(name: str) -> torch.Tensor:
        pixels = processor(
            Image.fromarray(pictures[name]),
            size={"height": SIDE, "width": SIDE},
            do_center_crop=False,
            return_tensors="pt",
        )
        return model.get_image_features(**pixels).pooler_output[0]

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return max(0.0, float(torch.cosine_similarity(a.double(), b.double(), dim=0)))

    fits, both = [], []
    with torch.inference_mode():
        for one in SCORED:
            said = text(one.prediction)
            fit = 2.5 * cosine(picture(one.image_id), said)
            best = max(cosine(text(reference), said) for reference in one.references)
            fits.append(fit)
            both.append(2 * fit * best / (fit + best) if fit + best else 0.0)
    return fits, both


def test_scores_are_those_of_transformers(folder, pictures) -> None:
    found = ClipScore().scores(AnswerSet(SCORED, pictures=lambda name: pictures[name], clip=Clip(str(folder))))
    fits, both = by_hand(folder, pictures)
    assert max(fits) > 0  # a random CLIP may see no likeness anywhere
    assert found["CLIP-score"].value == pytest.approx(np.mean(fits), abs=1e-5)
    assert found["RefCLIP-score"].value == pytest.approx(np.mean(both), abs=1e-5)
    assert {interval.low for interval in found.values()} == {None}  # too few pictures
    more = [replace(one, image_id=f"{copy}-{one.image_id}") for copy in range(2) for one in SCORED]
    many = AnswerSet(more, pictures=lambda name: pictures[name.partition("-")[2]], clip=Clip(str(folder)))
    wide = ClipScore().scores(many)
    for name, interval in wide.items():
        assert interval.value == pytest.approx(found[name].value, abs=1e-5)
        assert interval.low < interval.value < interval.high


def test_the_whole_panorama_counts_not_its_middle(folder, pictures) -> None:
    clip = Clip(str(folder))
    whole = pictures["a.png"]
    edge = whole.copy()
    edge[:, :10] = 0
    assert not torch.allclose(clip.pictures([whole]), clip.pictures([edge]), atol=1e-3)


@pytest.fixture
def predictions(tmp_path, pictures) -> Path:
    (tmp_path / "pictures").mkdir()
    for name, picture in pictures.items():
        cv2.imwrite(str(tmp_path / "pictures" / name), picture[..., ::-1])
    path = tmp_path / "predictions.csv"
    rows = [f'{one.image_id},{one.question},{one.prediction},"{one.references[0]}"' for one in SCORED]
    path.write_text("\n".join(["image,question,prediction,reference", *rows]), encoding="utf-8")
    return path


def test_the_command_takes_a_clip_and_a_folder_of_pictures(folder, predictions, monkeypatch, capsys) -> None:
    images = f"images={predictions.parent / 'pictures'}"
    assert command(monkeypatch, score, str(predictions), f"clip={folder}", images, "meteor=false", "device=cpu") == 0
    record = json.loads((predictions.parent / "predictions_scores.json").read_text(encoding="utf-8"))
    assert record["scores"].keys() >= {"CLIP-score", "RefCLIP-score", "BLEU-4", "exact match"}
    assert record["clip"] == str(folder)
    assert "| CLIP-score |" in capsys.readouterr().err

    assert command(monkeypatch, score, str(predictions), f"clip={folder}", "meteor=false") == 1
    assert "3 of 3 pictures are not there" in capsys.readouterr().err

    assert command(monkeypatch, score, str(predictions), "meteor=false") == 0
    record = json.loads((predictions.parent / "predictions_scores.json").read_text(encoding="utf-8"))
    assert record["scores"]["CLIP-score"] is None
    assert record["unavailable"]["CLIP-score"] == "needs a CLIP, and none is named (clip=<folder>)"


def test_what_is_no_clip_is_refused(backbone, tmp_path) -> None:
    with pytest.raises(ValueError, match="is a siglip; CLIP-score is defined with a CLIP"):
        Clip(str(backbone("siglip")))
    with pytest.raises(ValueError, match=r"clip=.* lacks its tokenizer"):
        Clip(str(backbone("clip")))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        read_picture(tmp_path / "broken.png")
