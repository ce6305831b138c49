"""Numbers of boxes that were read with a wrong convention are told, and right ones are not."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from panollava.crop.boxes import PictureBoxes
from panollava.data.box_doubts import convention_doubts
from panollava.data.box_files import read_coco, write_coco
from panollava.data.boxes import BoxAnnotations, Conventions

RNG = np.random.default_rng(5)
BOXES = np.stack(
    [RNG.uniform(-180, 180, 60), RNG.uniform(-60, 40, 60), *RNG.uniform(5, 40, (2, 60)), np.zeros(60)], axis=1
)
KINDS = list(product(("deg", "rad", "mixed"), ("centre", "corner"), ("latitude", "colatitude")))


def doubts(path: Path, truth: Conventions, read_as: Conventions, boxes: np.ndarray = BOXES) -> dict[str, str]:
    annotations = BoxAnnotations(("chair",), {"a.jpg": PictureBoxes(boxes, np.zeros(len(boxes), int))})
    write_coco(path / "x.json", annotations, truth)
    found = read_coco(path / "x.json", read_as)
    return {doubt.field: doubt.way_out for doubt in convention_doubts(found, read_as)}


@pytest.mark.parametrize("kinds", KINDS)
def test_the_right_conventions_are_not_doubted(kinds: tuple[str, str, str], tmp_path: Path) -> None:
    truth = Conventions(*kinds)  # type: ignore[arg-type]
    assert doubts(tmp_path, truth, truth) == {}


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("field", ["angles", "origin", "pitch"])
def test_each_wrong_one_is_doubted(field: str, kinds: tuple[str, str, str], tmp_path: Path) -> None:
    truth = Conventions(*kinds)  # type: ignore[arg-type]
    right = getattr(truth, field)
    wrong = {"deg": "rad", "rad": "deg", "mixed": "deg"}.get(right) or {
        "centre": "corner",
        "corner": "centre",
        "latitude": "colatitude",
        "colatitude": "latitude",
    }[right]
    found = doubts(tmp_path, truth, replace(truth, **{field: wrong}))  # type: ignore[arg-type]
    assert field in found
    assert found[field].startswith("rad" if right == "mixed" else right)


def test_boxes_over_the_poles_are_doubted(tmp_path: Path) -> None:
    near = BOXES.copy()
    near[:40, 1] = np.where(near[:40, 1] > 0, 80, -80)
    near[:40, 3] = 40
    assert doubts(tmp_path, Conventions(), Conventions(), near) == {"pitch": "colatitude"}


def test_few_boxes_and_rectangles_are_not_doubted(tmp_path: Path) -> None:
    assert doubts(tmp_path, Conventions(), Conventions(pitch="colatitude"), BOXES[:4]) == {}
    assert doubts(tmp_path, Conventions(), Conventions(boxes="shares")) == {}


@pytest.mark.parametrize(
    ("rolls", "expected"), [((0, 1), {"angles": "rad"}), ((-1, 1), {}), ((0, 30), {}), ((0, 0), {})]
)
def test_rolls_that_may_be_scores_are_doubted(
    rolls: tuple[float, float], expected: dict[str, str], tmp_path: Path
) -> None:
    turned = BOXES.copy()
    turned[:, 4] = RNG.uniform(*rolls, 60)
    assert doubts(tmp_path, Conventions(), Conventions(), turned) == expected
