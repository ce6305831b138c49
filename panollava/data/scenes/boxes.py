"""The truth about a scene for detection and segmentation: the box of each thing, and the class of each pixel."""

import math

import numpy as np

from panollava.crop.boxes import PictureBoxes
from panollava.data.scenes.paint import BACKGROUND_ID, paint_with_ids
from panollava.data.scenes.scene import POLES, SHAPES, Disc, Scene, Solid

CLASSES = (*SHAPES, *POLES.values())
"""Classes of things: their shapes. Colours are not part of a class."""
REACH = {
    "ball": (0.95, 0.95),
    "cube": (0.84, 0.84),
    "cone": (0.9, 0.95),
    "cylinder": (0.45, 1.0),
    "ring": (1.0, 1.0),
    "diamond": (0.8, 1.0),
    "light": (0.98, 0.98),
    "mat": (0.98, 0.98),
}
"""How far each form reaches from its centre, to the side and up or down, in the tangent plane in which it is drawn; the
unit is the tangent of the thing's radius."""


def scene_boxes(scene: Scene) -> PictureBoxes:
    """The boxes of ``scene.things``, in that order, with classes of ``CLASSES``."""
    classes = np.array([CLASSES.index(thing.shape) for thing in scene.things], dtype=int)
    return PictureBoxes(np.array([thing_box(thing) for thing in scene.things]).reshape(-1, 5), classes)


def thing_box(thing: Solid | Disc) -> np.ndarray:
    """The box ``(5,)`` of a thing, as in ``panollava.crop.boxes``.

    A thing is drawn in the tangent plane of its direction, so that its box has no roll and the extents 2 atan(a tan r)
    and 2 atan(b tan r), for a reach (a, b) and a radius r.
    """
    unit = math.tan(math.radians(thing.radius_deg))
    extents = (2 * math.degrees(math.atan(reach * unit)) for reach in REACH[thing.shape])
    return np.array([thing.yaw_deg, thing.pitch_deg, *extents, 0.0])


def scene_classes(scene: Scene, height: int = 256) -> np.ndarray:
    """Class of ``CLASSES`` that each pixel (H, W) of the painted panorama shows, -1 where it is the background.

    Args:
        height: rows of the panorama; it has twice as many columns.
    """
    ids = paint_with_ids(scene, height)[1].astype(int)
    of_thing = np.array([*(CLASSES.index(thing.shape) for thing in scene.things), BACKGROUND_ID])
    return of_thing[ids]  # the background's id, -1, is the last
