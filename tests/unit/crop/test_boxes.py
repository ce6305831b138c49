"""Boxes on the sphere: IoU against values from elsewhere, against sampling and under rotations; suppression."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panollava.crop.boxes import (
    as_boxes,
    box_area,
    box_frames,
    contains,
    fov_iou,
    iou,
    iou_matrix,
    nms,
    rotated,
    sph_iou,
)

KNOWN = [
    ((40, 50, 35, 55), (35, 20, 37, 50), 0.232246),
    ((30, 60, 60, 60), (55, 40, 60, 60), 0.341317),
    ((50, -78, 25, 46), (30, -75, 26, 45), 0.620834),
    ((30, 75, 30, 60), (60, 40, 60, 60), 0.133201),
    ((40, 70, 25, 30), (60, 85, 30, 30), 0.282213),
    ((0, 0, 60, 60), (0, 0, 60, 60), 1),
    ((0, 0, 60, 60), (30, 0, 60, 60), 0.321364),
    ((179, 0, 20, 20), (-179, 0, 20, 20), 0.817373),
    ((0, 88, 30, 30), (180, 88, 30, 30), 0.762515),
    ((0, 0, 40, 40), (0, 0, 20, 20), 0.257222),
    ((0, 0, 90, 90), (90, 0, 90, 90), 0),
    ((0, 0, 180, 180), (180, 0, 180, 90), 0),  # touches its border in opposite points
    ((0, 90, 180, 180), (90, -90, 90, 180), 0),
    ((0, 0, 180, 90), (0, 0, 90, 90), 2 / 3),
    ((0, 0, 180, 180), (90, 0, 180, 180), 1 / 3),
    ((0, 0, 40, 40), (0, 10, 40, 20), 0.495327),
    ((0, 0, 0.1, 0.1), (0.05, 0, 0.1, 0.1), 0.3333333),
    ((0, 90, 60, 40), (90, 90, 40, 60), 1),
    ((12, -3, 31, 17), (15.5, 1.25, 28, 22), 0.5336307),
    ((10, 20, 30, 40, 15), (10, 20, 30, 40, -15), 0.731402),
    ((10, 20, 30, 40, 90), (10, 20, 40, 30, 0), 1),
    ((0, 0, 60, 30, 30), (10, 5, 50, 40, -20), 0.497433),
]

EXTENTS = st.one_of(st.floats(0.1, 180), st.floats(0.1, 1), st.sampled_from([0.1, 90.0, 180.0]))


@st.composite
def boxes(draw: st.DrawFn) -> np.ndarray:
    """A box (1, 5) anywhere."""
    yaw, pitch, roll = draw(st.floats(-180, 180)), draw(st.floats(-90, 90)), draw(st.floats(-180, 180))
    return np.array([[yaw, pitch, draw(EXTENTS), draw(EXTENTS), roll]])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two boxes (1, 5), most of which overlap; some share sides."""
    one = draw(boxes())
    share = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-1, 1)
    size = float(one[0, 2:4].min())
    other = one + np.array([[draw(share) * size, draw(share) * size, 0, 0, draw(share) * 90]])
    other[0, 1] = np.clip(other[0, 1], -90, 90)
    other[0, 2:4] = np.clip(one[0, 2:4] * [2 ** draw(share), 2 ** draw(share)], 0.05, 180)
    return one, other


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray:
    """A rotation (3, 3), of a random axis and angle."""
    x, y, z = (draw(st.floats(-1, 1)) for _ in range(3))
    length = math.hypot(x, y, z)
    x, y, z = (0.0, 0.0, 1.0) if length < 1e-3 else (x / length, y / length, z / length)
    cross, angle = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]), draw(st.floats(-math.pi, math.pi))
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def random_boxes(count: int, seed: int, extent: tuple[float, float] = (5, 170)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low, high = (-180, -90, *(extent[:1] * 2), -180), (180, 90, *(extent[1:] * 2), 180)
    return rng.uniform(low, high, (count, 5))


@pytest.mark.parametrize(("one", "other", "expected"), KNOWN)
def test_known_values(one: tuple[float, ...], other: tuple[float, ...], expected: float) -> None:
    first, second = as_boxes([one]), as_boxes([other])
    assert iou(first, second)[0] == pytest.approx(expected, abs=1e-6)
    assert iou(second, first)[0] == pytest.approx(expected, abs=1e-6)
    assert iou_matrix(first, second)[0, 0] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=150, deadline=None)
@given(pairs())
def test_symmetric_and_between_0_and_1(pair: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = iou(*pair)[0], iou(*pair[::-1])[0]
    assert one == pytest.approx(other, abs=1e-9)
    assert 0 <= one <= 1


@settings(max_examples=100, deadline=None)
@given(boxes())
def test_1_with_itself(box: np.ndarray) -> None:
    assert iou(box, box)[0] == pytest.approx(1, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(pairs(), rotations())
def test_unchanged_by_rotations(pair: tuple[np.ndarray, np.ndarray], rotation: np.ndarray) -> None:
    one, other = (rotated(box, rotation) for box in pair)
    assert iou(one, other)[0] == pytest.approx(iou(*pair)[0], abs=1e-9)


def test_a_part_is_the_ratio_of_areas() -> None:
    whole = random_boxes(300, 0)
    part = whole * [1, 1, 0.5, 0.25, 1]
    assert iou(whole, part) == pytest.approx(box_area(part) / box_area(whole), abs=1e-12)
    assert box_area(as_boxes([[0, 0, 180, 180], [0, 0, 90, 90], [0, 0, 180, 90]])) == pytest.approx(
        [2 * math.pi, 4 * math.pi / 6, math.pi]
    )


def test_sides_at_the_distance_that_counts_as_touching() -> None:
    """There, rounding errors decide for each point of a side whether it is inside."""
    rng = np.random.default_rng(0)
    first = random_boxes(20_000, 0, (10, 120))
    first[:, 3] = rng.uniform(0.1, 0.5, len(first))
    second = first.copy()
    second[:, 2] += np.degrees(2e-13) * rng.uniform(0.98, 1.02, len(first))
    assert np.abs(iou(first, second) - 1).max() < 1e-8
    assert np.abs(iou(second, first) - 1).max() < 1e-8
    beside = first * np.array([1, 0, 1, 1, 0])  # with a common side, from outside
    other = beside + np.array([1, 0, 0, 0, 0]) * (
        beside[:, 2:3] + np.degrees(1e-13) * rng.uniform(0.98, 1.02, (20_000, 1))
    )
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    assert iou(rotated(beside, turn), rotated(other, turn)).max() < 1e-8


@pytest.mark.parametrize("extent", [(5, 60), (30, 180)])
def test_agrees_with_sampling(extent: tuple[float, float]) -> None:
    """Within four standard errors, for points spread evenly on the sphere."""
    points = np.random.default_rng(1).normal(size=(200_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    first = random_boxes(12, 2, extent)
    second = first + np.random.default_rng(3).uniform(-12, 12, first.shape)
    second[:, 1], second[:, 2:4] = np.clip(second[:, 1], -90, 90), np.clip(second[:, 2:4], 3, 180)
    in_first, in_second = contains(first, points), contains(second, points)
    union = (in_first | in_second).sum(axis=1)
    share = (in_first & in_second).sum(axis=1) / union
    found = iou(first, second)
    assert (np.abs(found - share) < 4 * np.sqrt(found * (1 - found) / union)).all()
    assert (found > 0.05).sum() >= 10


def test_batch_is_the_loop_and_the_matrix_is_the_pairs() -> None:
    first, second = random_boxes(60, 4), random_boxes(50, 5)
    rows, columns = (index.ravel() for index in np.indices((60, 50)))
    batch = iou(first[rows], second[columns])  # more than one block
    loop = [iou(first[one, None], second[other, None])[0] for one, other in zip(rows[:300], columns[:300], strict=True)]
    assert batch[:300] == pytest.approx(loop, abs=1e-13)
    assert iou_matrix(first, second).ravel() == pytest.approx(batch, abs=1e-15)
    assert (batch == 0).sum() > 100
    assert iou_matrix(first[:0], second).shape == (0, 50)


@settings(max_examples=100, deadline=None)
@given(boxes(), rotations())
def test_rotated_frames(box: np.ndarray, rotation: np.ndarray) -> None:
    expected = box_frames(box) @ rotation.T
    assert np.abs(box_frames(rotated(box, rotation)) - expected).max() < 1e-12


def test_directions_of_a_box() -> None:
    """Forward is (yaw, pitch); a positive roll turns its right towards up."""
    right, up, forward = box_frames(as_boxes([[90, 0, 20, 20, 30]]))[0]
    assert forward == pytest.approx([1, 0, 0], abs=1e-12)
    assert right == pytest.approx([0, 0.5, -math.cos(math.radians(30))], abs=1e-12)
    assert up == pytest.approx([0, math.cos(math.radians(30)), 0.5], abs=1e-12)


def test_approximations_are_those_that_are_published() -> None:
    level = as_boxes([[0, 0, 60, 60]]), as_boxes([[30, 0, 60, 60]])
    assert sph_iou(*level)[0] == pytest.approx(1 / 3)
    assert fov_iou(*level)[0] == pytest.approx(1 / 3)
    high = as_boxes([[0, 60, 40, 40]]), as_boxes([[20, 60, 40, 40]])
    assert sph_iou(*high)[0] == pytest.approx(1 / 3)
    assert fov_iou(*high)[0] == pytest.approx(0.75 / 1.25)  # 20 degrees of yaw are 10 on this circle
    seam = as_boxes([[179, 0, 20, 20]]), as_boxes([[-179, 0, 20, 20]])
    assert sph_iou(*seam)[0] == pytest.approx(18 / 22)
    pole = as_boxes([[0, 88, 30, 30]]), as_boxes([[120, 88, 30, 30]])
    assert sph_iou(*pole)[0] == 0
    assert iou(*pole)[0] > 0.69


def test_suppression_within_classes() -> None:
    found = as_boxes([[0, 0, 20, 20], [2, 0, 20, 20], [2, 0, 20, 20], [60, 0, 20, 20], [4, 0, 20, 20]])
    scores, classes = np.array([0.5, 0.9, 0.8, 0.1, 0.9]), np.array([0, 0, 1, 0, 0])
    assert nms(found, scores, classes).tolist() == [1, 2, 3]  # of equal scores the first, and 4 overlaps it
    assert nms(found, scores, classes, most=0.7).tolist() == [1, 2, 3]
    assert nms(found, scores, classes, most=0.9).tolist() == [1, 4, 2, 0, 3]
    assert nms(found[:0], scores[:0], classes[:0]).tolist() == []


def test_suppression_is_that_of_a_loop() -> None:
    found = random_boxes(150, 6, (20, 90))
    rng = np.random.default_rng(7)
    scores, classes = rng.random(150), rng.integers(0, 3, 150)
    left, expected = sorted(range(150), key=lambda at: -scores[at]), []
    while left:
        at = left.pop(0)
        expected.append(at)
        left = [
            other
            for other in left
            if classes[other] != classes[at] or iou(found[at, None], found[other, None])[0] <= 0.2
        ]
    assert nms(found, scores, classes, most=0.2).tolist() == expected
    assert nms(found, scores, classes, most=0.2, count=20).tolist() == expected[:20]
    assert 50 < len(expected) < 140


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, 0, 181, 20]], r"box 0: horizontal=181 is not an extent within \(0, 180\] degrees"),
        ([[0, 0, 20, 20], [0, 0, 20, 0]], r"box 1: vertical=0 is not an extent"),
        ([[0, 91, 20, 20]], r"pitch=91 is not within \[-90, 90\]"),
        ([[math.nan, 0, 20, 20]], "yaw=nan is not a finite number"),
        ([[0, 0, 20, 20, math.inf]], "roll=inf is not a finite number"),
        ([[0, 0, 20]], r"boxes have the shape \(1, 3\): give a row of yaw, pitch, horizontal, vertical"),
        ([0, 0, 20, 20], "boxes have the shape"),
    ],
)
def test_what_is_no_box(values: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_boxes(values)


def test_numbers_of_boxes_that_differ() -> None:
    with pytest.raises(ValueError, match="2 boxes are compared with 3: give as many, or use iou_matrix"):
        iou(random_boxes(2, 0), random_boxes(3, 0))
