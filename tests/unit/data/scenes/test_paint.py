"""Panoramas: things lie where the scene says, over the seam and the poles too, and turn with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.rays import directions

from panollava.data.scenes.paint import BACKGROUND_ID, PAINTS, _stamp, paint, paint_with_ids
from panollava.data.scenes.scene import Disc, Scene, Solid, scene_at

HEIGHT = 128


def axis(thing: Solid | Disc) -> np.ndarray:
    yaw, pitch = np.radians([thing.yaw_deg, thing.pitch_deg])
    return np.array([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)])


def thing_masks(scene: Scene, height: int) -> np.ndarray:
    """Masks on the sphere of ``scene.things``: (things, H, W) bool, true where the thing covers the pixel."""
    masks = np.zeros((len(scene.things), height, 2 * height), bool)
    for mask, thing in zip(masks, scene.things, strict=True):
        rows, columns, alpha, _ = _stamp(thing, height)
        mask[np.ix_(rows, columns)] = alpha > 0.5
    return masks


@pytest.mark.parametrize("index", range(6))
def test_masks_lie_within_the_radius_and_are_centred(index: int, level: int) -> None:
    scene = scene_at(3, "test", index, level)
    rays = directions(HEIGHT)
    weights = np.sqrt(1 - rays[..., 1] ** 2)
    for thing, mask in zip(scene.things, thing_masks(scene, HEIGHT), strict=True):
        assert mask.any()
        angle = np.degrees(np.arccos(np.clip(rays[mask] @ axis(thing), -1, 1)))
        # A cube's corners reach out of the circle that its radius names.
        assert angle.max() < 1.25 * thing.radius_deg + 1.5
        centre = (rays[mask] * weights[mask][:, None]).sum(axis=0)
        assert np.degrees(np.arccos(centre @ axis(thing) / np.linalg.norm(centre))) < 5.0


def test_a_disc_at_the_pole_is_a_cap() -> None:
    scene = scene_at(0, "test", 0)
    disc = Disc(colour="red", pole="overhead", yaw_deg=77.0, pitch_deg=90.0, radius_deg=25.0)
    (mask,) = thing_masks(replace(scene, solids=(), discs=(disc,)), HEIGHT)
    expected = directions(HEIGHT)[..., 1] > np.cos(np.radians(24.5))
    assert (mask == expected).mean() > 0.99


def test_a_solid_on_the_seam_is_the_same_as_one_ahead() -> None:
    scene = scene_at(0, "test", 0)
    ahead = Solid("red", "cube", 0, "level", yaw_deg=3.0, pitch_deg=2.0, radius_deg=14.0)
    behind = replace(ahead, sector=4, yaw_deg=-177.0)
    (front,) = thing_masks(Scene((ahead,), (), scene.backdrop), HEIGHT)
    (back,) = thing_masks(Scene((behind,), (), scene.backdrop), HEIGHT)
    assert (np.roll(front, HEIGHT, axis=1) == back).all()
    assert back[:, 0].any()
    assert back[:, -1].any()


def test_ids_are_the_masks(level: int) -> None:
    """Nothing hides a thing, also no decoy, which is background."""
    for number in range(20):
        scene = scene_at(3, "test", number, level)
        _, ids = paint_with_ids(scene, HEIGHT)
        masks = thing_masks(scene, HEIGHT)
        for index, mask in enumerate(masks):
            assert (ids[mask] == index).all()
        assert (ids[~masks.any(axis=0)] == BACKGROUND_ID).all()


def test_decoys_stand_behind_the_things_and_have_no_colour_of_theirs() -> None:
    for number in range(10):
        scene = scene_at(3, "test", number, 3)
        with_decoys, ids = paint_with_ids(scene, HEIGHT)
        without = paint(replace(scene, decoys=()), HEIGHT)
        changed = (with_decoys != without).any(axis=-1)
        assert len(scene.decoys) >= 3
        assert changed.sum() > 20 * len(scene.decoys)
        assert (changed & (ids != BACKGROUND_ID)).mean() < 0.001  # at borders, where a thing is transparent
        for decoy in scene.decoys:
            paints = np.array(list(PAINTS.values()))
            assert np.abs(paints - np.array(decoy.paint)).max(axis=-1).min() > 75
            assert max(decoy.paint) - min(decoy.paint) < 30 < min(paints.max(axis=-1)) - max(decoy.paint)


@pytest.mark.parametrize("turn_deg", [90.0, 180.0, -45.0])
def test_turning_rolls_the_picture(turn_deg: float, level: int) -> None:
    scene = scene_at(3, "test", 2, level)
    rolled = np.roll(paint(scene, HEIGHT), round(turn_deg / 360 * 2 * HEIGHT), axis=1)
    difference = np.abs(rolled.astype(int) - paint(scene.turned(turn_deg), HEIGHT))
    assert difference.max() <= 3


def test_colours_can_be_told_from_the_backdrop(level: int) -> None:
    for index in range(10):
        scene = scene_at(3, "test", index, level)
        panorama, ids = paint_with_ids(scene, HEIGHT)
        for number in range(len(scene.things)):
            mask = ids == number
            ring = np.roll(mask, 9, axis=1) & (ids == BACKGROUND_ID)
            if ring.any():
                assert np.abs(panorama[mask].mean(axis=0) - panorama[ring].mean(axis=0)).max() > 25
