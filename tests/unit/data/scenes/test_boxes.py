"""The truth about scenes: boxes reach exactly as far as what is drawn, and oracles of both kinds score 1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.rays import directions

from panollava.crop.boxes import as_boxes, box_frames, contains
from panollava.data.scenes.boxes import CLASSES, scene_boxes, scene_classes
from panollava.data.scenes.paint import paint_with_ids
from panollava.data.scenes.scene import scene_at
from panollava.evaluation.detection import score_boxes, score_masks

HEIGHT = 512


def test_boxes_reach_as_far_as_what_is_drawn(level: int) -> None:
    """In the tangent plane of each thing, over the seam and the poles too."""
    rays, seen = directions(HEIGHT), set()
    for index in range(8):
        scene = scene_at(4, "test", index, level)
        _, ids = paint_with_ids(scene, HEIGHT)
        truth = scene_boxes(scene)
        assert as_boxes(truth.boxes).shape == (len(scene.things), 5)
        for number, (box, kind) in enumerate(zip(truth.boxes, truth.classes, strict=True)):
            shown = rays[ids == number]
            right, up, forward = (shown @ axis for axis in box_frames(box[None])[0])
            half = np.degrees([np.abs(np.arctan(right / forward)).max(), np.abs(np.arctan(up / forward)).max()])
            pixel = 180 / HEIGHT
            assert (half <= box[2:4] / 2 + pixel).all()
            assert (half >= box[2:4] / 2 - 2.5 * pixel).all()  # the tips of cones and diamonds are thin
            assert contains((box + np.array([0, 0, 2, 2, 0]) * pixel)[None], shown).all()
            seen.add(CLASSES[kind])
    assert len(seen) >= 6
    assert {"light", "mat"} <= seen


def test_classes_of_pixels_are_those_of_the_things_they_show() -> None:
    scene = scene_at(4, "test", 1)
    _, ids = paint_with_ids(scene, 64)
    classes = scene_classes(scene, 64)
    assert (classes[ids == -1] == -1).all()
    for number, thing in enumerate(scene.things):
        assert {CLASSES[kind] for kind in np.unique(classes[ids == number])} == {thing.shape}
    assert (classes >= 0).sum() == (ids >= 0).sum() > 0


def test_a_scene_without_things() -> None:
    scene = replace(scene_at(4, "test", 1), solids=(), discs=())
    assert scene_boxes(scene).boxes.shape == (0, 5)
    assert (scene_classes(scene, 32) == -1).all()


def test_the_truth_scores_1_and_turned_truth_does_not(level: int) -> None:
    scenes = {f"scene {index}": scene_at(4, "test", index, level) for index in range(6)}
    boxes = {name: scene_boxes(scene) for name, scene in scenes.items()}
    masks = {name: scene_classes(scene, 64) for name, scene in scenes.items()}
    scores = score_boxes(boxes, boxes, CLASSES)
    assert scores.with_scores.ap.value == scores.with_equal_scores.ap.value == 1
    assert scores.f1 is not None
    assert scores.f1.value == score_masks(masks, masks, CLASSES).by_solid_angle.value == 1
    turned = {name: scene_boxes(scene.turned(45)) for name, scene in scenes.items()}
    assert score_boxes(boxes, turned, CLASSES).with_scores.ap50.value < 0.7
    rolled = {name: np.roll(mask, 16, axis=1) for name, mask in masks.items()}  # 45 degrees
    assert score_masks(masks, rolled, CLASSES).by_solid_angle.value < 0.7
    together = {name: scene_classes(scene.turned(45), 64) for name, scene in scenes.items()}
    assert score_masks(together, rolled, CLASSES).by_solid_angle.value == pytest.approx(1, abs=0.06)
