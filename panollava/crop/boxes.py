"""Boxes on the sphere, how far they overlap, and which of several detections of one thing is kept.

A box is a bounding field of view: what a camera at (yaw, pitch) sees within its horizontal and vertical extent,
rotated about its axis by the roll. A row is ``(yaw, pitch, horizontal, vertical, roll)`` in degrees; yaw to the right,
pitch up, roll from right to up (the roll of a camera has the opposite sign). Each side is a part of a great circle.
Legend: ``N`` boxes or pairs of boxes, ``S`` arcs of a polygon's border.
"""

import math
from dataclasses import dataclass

import numpy as np

FIELDS = ("yaw", "pitch", "horizontal", "vertical", "roll")
"""Columns of boxes."""
WIDEST_DEG = 180.0
"""Largest extent: a wider box is not convex, so that its intersection with another is not one polygon."""

_BLOCK = 2048  # pairs at once: their polygons fit into a processor's cache
_ON_SIDE = 1e-13  # distance to a side below which a point lies on it; rounding errors are below 1e-15
_TOUCHING = 1e-9  # distance to a side within which rounding errors are looked for
_NO_LENGTH = 1e-300  # below the length of any point; avoids dividing by 0
_CENTRE = 1e-9  # weight of the box's centre in the point from which triangles are measured


@dataclass(frozen=True, eq=False)
class PictureBoxes:
    """The boxes of one picture."""

    boxes: np.ndarray  # (N, 5), as above
    classes: np.ndarray  # (N,) int, position of each box's class among the names
    scores: np.ndarray | None = None  # (N,), of detections
    ignored: "IgnoredBoxes | None" = None  # beside true boxes

    def annotated(self) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``(N + M, 5)`` and their classes, those that are ignored last."""
        if self.ignored is None:
            return self.boxes, self.classes
        return np.concatenate([self.boxes, self.ignored.boxes]), np.concatenate([self.classes, self.ignored.classes])


@dataclass(frozen=True, eq=False)
class IgnoredBoxes:
    """Annotated boxes of one picture that are neither learnt nor to be found; a detection of one is not wrong."""

    boxes: np.ndarray  # (M, 5)
    classes: np.ndarray  # (M,) int
    are_regions: bool  # of several things each: a detection is of one if it lies within it, else if the two overlap


NOTHING, IGNORED = -1, -2
"""Classes of pixels: no class, and a pixel that is not annotated, which neither training nor a score counts."""


@dataclass(frozen=True, eq=False)
class Places:
    """What is where in one picture."""

    boxes: PictureBoxes
    pixels: np.ndarray | None = None  # (H, W) int16 of the equirectangular picture, a class, NOTHING or IGNORED


def as_boxes(values: object) -> np.ndarray:
    """Boxes ``(N, 5)`` float64 of rows with a roll, or ``(N, 4)`` without one.

    Raises:
        ValueError: another shape; a value is not finite; a pitch is not within [-90, 90] or an extent not within
            (0, 180].
    """
    boxes = np.asarray(values, dtype=np.float64)
    if boxes.size == 0:
        return np.zeros((0, len(FIELDS)))
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 5):
        raise ValueError(
            f"boxes have the shape {boxes.shape}: give a row of {', '.join(FIELDS[:4])} and, where the box is rotated, "
            "roll for each box."
        )
    if boxes.shape[1] == 4:
        boxes = np.concatenate([boxes, np.zeros((len(boxes), 1))], axis=1)
    for number, row in enumerate(boxes):
        if problem := box_problem(row):
            raise ValueError(f"box {number}: {problem}")
    return boxes


def box_problem(row: np.ndarray) -> str:
    """What is wrong with a box ``(5,)``: the field, its value and what is allowed; empty if nothing is."""
    _, pitch, horizontal, vertical, _ = (float(value) for value in row)
    for name, value in zip(FIELDS, row, strict=True):
        if not math.isfinite(value):
            return f"{name}={value:g} is not a finite number. Give degrees."
    if abs(pitch) > 90:
        return f"pitch={pitch:.10g} is not within [-90, 90]. 90 is straight up; check that it is a latitude in degrees."
    for name, value in (("horizontal", horizontal), ("vertical", vertical)):
        if not 0 < value <= WIDEST_DEG:
            return f"{name}={value:.10g} is not an extent within (0, 180] degrees. Split a wider box, or leave it out."
    return ""


def box_area(boxes: np.ndarray) -> np.ndarray:
    """Steradians ``(N,)`` of boxes ``(N, 5)``: the solid angle of a rectangular pyramid."""
    half = np.radians(boxes[:, 2:4]) / 2
    return 4 * np.arcsin(np.sin(half[:, 0]) * np.sin(half[:, 1]))


def box_frames(boxes: np.ndarray) -> np.ndarray:
    """Rotations ``(N, 3, 3)`` of boxes ``(N, 5)``; their rows are the unit vectors to the right, up and forward."""
    yaw, pitch, roll = np.radians(boxes[:, [0, 1, 4]]).T
    sin_yaw, cos_yaw, sin_pitch, cos_pitch = np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch)
    sin_roll, cos_roll = np.sin(roll), np.cos(roll)
    frames = np.empty((len(boxes), 3, 3))
    right = (cos_yaw, np.zeros(len(boxes)), -sin_yaw)
    up = (-sin_pitch * sin_yaw, cos_pitch, -sin_pitch * cos_yaw)
    for axis in range(3):
        frames[:, 0, axis] = cos_roll * right[axis] + sin_roll * up[axis]
        frames[:, 1, axis] = cos_roll * up[axis] - sin_roll * right[axis]
    frames[:, 2, 0], frames[:, 2, 1], frames[:, 2, 2] = cos_pitch * sin_yaw, sin_pitch, cos_pitch * cos_yaw
    return frames


def rotated(boxes: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Boxes ``(N, 5)`` after a rotation ``(3, 3)`` of the sphere, which acts on column vectors.

    Axes as in ``panollava.crop.sphere``. At a pole any yaw has the same direction; there it is 0 or 180, and the roll
    holds the rest.
    """
    frames = box_frames(boxes) @ rotation.T
    x, y, z = frames[:, 2].T
    yaw, pitch = np.arctan2(x, z), np.arctan2(y, np.hypot(x, z))
    level = box_frames(np.degrees(np.stack([yaw, pitch, yaw, yaw, np.zeros(len(boxes))], axis=1)))
    across, along = (frames[:, :1] * level[:, :2]).sum(axis=2).T
    yaw, pitch, roll = np.degrees([yaw, pitch, np.arctan2(along, across)])
    return np.stack([yaw, pitch, boxes[:, 2], boxes[:, 3], roll], axis=1)


def contains(boxes: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Whether each box of ``(N, 5)`` holds each unit vector of ``(P, 3)``: (N, P) bool."""
    local = np.einsum("nac,pc->anp", box_frames(boxes), directions)
    half = np.radians(boxes[:, 2:4]) / 2
    sin, cos = np.sin(half)[..., None], np.cos(half)[..., None]
    inside = [np.abs(local[axis]) * cos[:, axis] <= local[2] * sin[:, axis] for axis in (0, 1)]
    return inside[0] & inside[1]


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Exact intersection over union ``(N,)`` of boxes ``(N, 5)`` and ``(N, 5)``, pair by pair.

    The second box is clipped by the four sides of the first, half-space by half-space, and the rest is measured as
    triangles; all in the frame of the first box and in float64. It is exact up to rounding: about 1e-12 for boxes of
    0.1 degrees.

    Raises ValueError where the numbers of boxes differ; for boxes of files see ``as_boxes``.

    Source: Sutherland and Hodgman 1974, Reentrant polygon clipping; Van Oosterom and Strackee 1983, The solid angle of
        a plane triangle.
    """
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} boxes are compared with {len(second)}: give as many, or use iou_matrix.")
    found = np.empty(len(first))
    for start in range(0, len(first), _BLOCK):
        block = slice(start, start + _BLOCK)
        found[block] = _iou(first[block], second[block])
    return found


def iou_matrix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Exact intersection over union ``(N, M)`` of each of boxes ``(N, 5)`` with each of ``(M, 5)``.

    Boxes whose surrounding circles do not touch are 0 without being clipped.
    """
    rows, columns = np.nonzero(_may_touch(first, second))
    found = np.zeros((len(first), len(second)))
    found[rows, columns] = iou(first[rows], second[columns])
    return found


def sph_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sph-IoU ``(N,)`` of boxes ``(N, 5)``, pair by pair: an approximation, for comparison with published figures.

    Boxes are rectangles in a plane of yaw and pitch. It ignores the roll, and near the poles it is several times too
    low. Yaws are compared across the seam.

    Source: Zhao et al. 2020, Spherical criteria for fast and accurate 360° object detection.
    """
    return _planar_iou(first, second, 1.0)


def fov_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """FoV-IoU ``(N,)`` of boxes ``(N, 5)``, pair by pair: an approximation, for comparison with published figures.

    As Sph-IoU, with the difference in yaw multiplied by the cosine of the mean pitch.

    Source: Cao et al. 2022, Field-of-view IoU for object detection in 360° images.
    """
    return _planar_iou(first, second, np.cos(np.radians(first[:, 1] + second[:, 1]) / 2))


def nms(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, most: float = 0.5, *, count: int | None = None
) -> np.ndarray:
    """Positions of the boxes that remain, by descending score, after non-maximum suppression within each class.

    A box is dropped if its exact IoU with a remaining one of its class and a higher score is above `most`. Of equal
    scores the first counts as the higher one.

    Args:
        boxes: ``(N, 5)``.
        scores: ``(N,)``.
        classes: ``(N,)``, compared for equality.
        most: IoU up to which both boxes remain.
        count: keep at most so many, those of the highest scores.
    """
    order = np.argsort(-scores, kind="stable")
    is_kept = np.ones(len(boxes), bool)
    for name in np.unique(classes):
        own = order[classes[order] == name]
        kept = 0
        for place, at in enumerate(own):
            if not is_kept[at]:
                continue
            if kept == count:  # what follows is not among the best of all classes either
                is_kept[own[place:]] = False
                break
            kept += 1
            others = own[place + 1 :]
            others = others[is_kept[others]]
            others = others[_may_touch(boxes[at, None], boxes[others])[0]]
            if len(others):
                overlap = iou(np.broadcast_to(boxes[at], (len(others), len(FIELDS))), boxes[others])
                is_kept[others[overlap > most]] = False
    return order[is_kept[order]][:count]


def _may_touch(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which pairs (N, M) of boxes have circles around them that touch."""
    reach = [np.arctan(np.linalg.norm(np.tan(np.radians(boxes[:, 2:4]) / 2), axis=1)) for boxes in (first, second)]
    middle_1, middle_2 = box_frames(first)[:, 2], box_frames(second)[:, 2]
    # The chord, since the cosine of a small angle has lost its digits.
    chord = np.linalg.norm(middle_1[:, None] - middle_2[None], axis=2)
    return 2 * np.arcsin(np.minimum(chord / 2, 1.0)) <= reach[0][:, None] + reach[1][None] + 1e-9


def _planar_iou(first: np.ndarray, second: np.ndarray, shrink: np.ndarray | float) -> np.ndarray:
    turn = (second[:, 0] - first[:, 0] + 180) % 360 - 180
    shared = np.ones(len(first))
    for extent, distance in ((2, turn * shrink), (3, second[:, 1] - first[:, 1])):
        half_1, half_2 = first[:, extent] / 2, second[:, extent] / 2
        shared *= np.maximum(np.minimum(half_1, distance + half_2) - np.maximum(-half_1, distance - half_2), 0)
    return shared / (first[:, 2] * first[:, 3] + second[:, 2] * second[:, 3] - shared)


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """As ``iou``, of one block. Each side of a box is two arcs, because one might be half a circle."""
    starts = np.zeros((3, 16, len(first)))  # 4 sides of the second box, then one from each half-space
    ends = np.zeros_like(starts)
    _border(first, second, starts[:, :8], ends[:, :8])
    half = np.radians(first[:, 2:4].T) / 2
    sin, cos = np.sin(half), np.cos(half)
    for side, (axis, sign) in enumerate(((0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0))):
        used = 10 + 2 * side
        _clip(starts[:, :used], ends[:, :used], axis, sign * cos[axis], sin[axis])
    shared = _polygon_area(starts, ends)
    areas = box_area(first) + box_area(second)
    return np.clip(shared / (areas - shared), 0.0, 1.0)


def _border(first: np.ndarray, second: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    """Writes the arcs (3, 8, N) around the second boxes, counter-clockwise, in the frames of the first."""
    # Unit vectors (3, N) to the right, up and forward of the second boxes.
    right, up, forward = np.einsum("nac,nbc->ban", box_frames(first), box_frames(second))
    half = np.radians(second[:, 2:4].T) / 2
    (sin_h, sin_v), (cos_h, cos_v) = np.sin(half), np.cos(half)
    # A corner is (tan h, tan v, 1), multiplied so that it is finite for 180 degrees too, and normalised.
    corner = np.stack([sin_h * cos_v, cos_h * sin_v, cos_h * cos_v])
    corner /= np.linalg.norm(corner, axis=0)
    across, along, ahead = right * corner[0], up * corner[1], forward * corner[2]
    for place, (x, y) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        starts[:, 2 * place] = x * across + y * along + ahead
    starts[:, 1], starts[:, 5] = forward * cos_v + up * sin_v, forward * cos_v - up * sin_v
    starts[:, 3], starts[:, 7] = forward * cos_h - right * sin_h, forward * cos_h + right * sin_h
    ends[:, :-1], ends[:, -1] = starts[:, 1:], starts[:, 0]


def _clip(starts: np.ndarray, ends: np.ndarray, axis: int, cos: np.ndarray, sin: np.ndarray) -> None:
    """Clips convex polygons, arcs (3, S, N), in place by the half-spaces ``cos * p[axis] + sin * p[2] >= 0``.

    The last two arcs are free; they become the arc along the half-space's border. An arc outside becomes a point.
    """
    old_starts, old_ends = starts[:, :-2], ends[:, :-2]
    before = old_starts[axis] * cos + old_starts[2] * sin
    behind = old_ends[axis] * cos + old_ends[2] * sin
    within = np.full(starts.shape[2], _ON_SIDE)
    while True:
        start_in, end_in = before >= -within, behind >= -within
        leaves, enters = start_in & ~end_in, end_in & ~start_in
        # A convex border crosses a plane once each way. More often it does where it runs along the plane at just this
        # distance, by rounding errors, or touches it in opposite points, as half of the other half of the sphere does:
        # then what lies on it is outside.
        is_torn = leaves.sum(axis=0) > 1
        if not is_torn.any():
            break
        wider = 2 * within[is_torn]
        within[is_torn] = np.where(wider > _TOUCHING, -_ON_SIDE, wider)
    # A chord's points are directions of the arc above it, so the place where it crosses the plane is linear.
    share = np.divide(before, before - behind, out=np.zeros_like(before), where=leaves | enters)
    np.clip(share, 0.0, 1.0, out=share)
    crossing = old_starts + share * (old_ends - old_starts)
    exit_, entry = (np.einsum("csn,sn->cn", crossing, which.astype(np.float64)) for which in (leaves, enters))
    np.copyto(old_starts, crossing, where=enters)
    np.copyto(old_ends, crossing, where=~end_in)
    starts[:, -2], ends[:, -1] = exit_, entry
    starts[:, -1] = ends[:, -2] = _arc_middle(exit_, entry, axis, cos, sin)


def _arc_middle(exit_: np.ndarray, entry: np.ndarray, axis: int, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Middle (3, N) of the arc from `exit_` to `entry` (3, N) about the normal of a half-space, up to half a circle.

    Their sum and the cross product of the normal and their difference both have its direction; the first is long for
    a short arc, the second for a long one. Where there is no arc, all are 0.
    """
    exit_, entry = (point / np.maximum(np.linalg.norm(point, axis=0), _NO_LENGTH) for point in (exit_, entry))
    x, y, z = exit_ - entry
    turned = [-sin * y, sin * x - cos * z, cos * y] if axis == 0 else [cos * z - sin * y, sin * x, -cos * x]
    middle = exit_ + entry + np.stack(turned)
    return middle / np.maximum(np.linalg.norm(middle, axis=0), _NO_LENGTH)


def _polygon_area(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Steradians (N,) of convex polygons, arcs (3, S, N) in any order: triangles from a point within them."""
    chords = ends - starts
    lengths = np.abs(chords).sum(axis=0)
    middle = np.einsum("csn,sn->cn", starts + ends, lengths)
    middle[2] += _CENTRE  # a half of the sphere's arcs cancel out
    middle /= np.linalg.norm(middle, axis=0)
    apex = middle[:, None]
    norm_1, norm_2 = (np.sqrt(np.einsum("csn,csn->sn", side, side)) for side in (starts, ends))
    one = starts - apex
    volume = (
        apex[0] * (one[1] * chords[2] - one[2] * chords[1])
        + apex[1] * (one[2] * chords[0] - one[0] * chords[2])
        + apex[2] * (one[0] * chords[1] - one[1] * chords[0])
    )
    dot_1, dot_2 = (np.einsum("csn,cn->sn", side, middle) for side in (starts, ends))
    spread = norm_1 * norm_2 + dot_1 * norm_2 + np.einsum("csn,csn->sn", starts, ends) + dot_2 * norm_1
    return 2 * np.arctan2(volume, spread).sum(axis=0)
