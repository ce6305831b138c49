"""Scores of boxes and masks: against a plain reference, for oracles and for boxes shifted by a known amount."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from panollava.crop.boxes import (
    NOTHING,
    IgnoredBoxes,
    PictureBoxes,
    as_boxes,
    box_area,
    contains,
    iou,
    iou_matrix,
    rotated,
)
from panollava.evaluation.average_precision import SIZES, THRESHOLDS, class_overlap, matches, rankings
from panollava.evaluation.detection import (
    MOST_GROUPS,
    _compared,
    best_matching,
    compare_boxes,
    compare_masks,
    score_boxes,
    score_masks,
)

NAMES = ["chair", "lamp", "plant"]
Pictures = dict[str, PictureBoxes]


def some_pictures(count: int, seed: int = 0, jitter: float = 4.0) -> tuple[Pictures, Pictures]:
    """True boxes of all sizes, and detections of most of them, some doubled or of another class, and false ones."""
    rng = np.random.default_rng(seed)
    truth, found = {}, {}
    for number in range(count):
        size = int(rng.integers(0, 7))
        boxes = rng.uniform((-180, -85, 5, 5, -30), (180, 85, 45, 45, 30), (size, 5))
        boxes[rng.random(size) < 0.2, 2:4] = rng.uniform(6, 10)
        classes = rng.integers(0, 3, size)
        truth[f"p{number}"] = PictureBoxes(boxes, classes)
        chosen = np.flatnonzero(rng.random(size) < 0.8)
        chosen = np.concatenate([chosen, chosen[rng.random(len(chosen)) < 0.3]])
        got = boxes[chosen] + rng.normal(0, 1, (len(chosen), 5)) * (jitter / 4, jitter / 4, jitter, jitter, jitter)
        false = rng.uniform((-180, -85, 6, 6, -30), (180, 85, 45, 45, 30), (int(rng.integers(0, 3)), 5))
        kinds = np.where(rng.random(len(chosen)) < 0.1, rng.integers(0, 3, len(chosen)), classes[chosen])
        kinds = np.concatenate([kinds, rng.integers(0, 3, len(false))])
        got = np.concatenate([got, false])
        got[:, 1], got[:, 2:4] = got[:, 1].clip(-90, 90), got[:, 2:4].clip(3, 60)
        found[f"p{number}"] = PictureBoxes(got, kinds, rng.random(len(got)))
    return truth, found


def with_ignored(truth: Pictures, *, are_regions: bool, seed: int = 0) -> Pictures:
    """The same, some of the boxes ignored, and enlarged where they are regions."""
    rng, marked = np.random.default_rng(seed), {}
    for name, one in truth.items():
        is_marked = rng.random(len(one.boxes)) < 0.4
        others = one.boxes[is_marked] * ([1, 1, 2, 1.5, 1] if are_regions else 1)
        ignored = IgnoredBoxes(others, one.classes[is_marked], are_regions)
        marked[name] = PictureBoxes(one.boxes[~is_marked], one.classes[~is_marked], ignored=ignored)
    return marked


def share_within(box: np.ndarray, region: np.ndarray) -> float:
    """Share of a box's solid angle that lies within a region."""
    ratio = float(box_area(region[None])[0] / box_area(box[None])[0])
    shared = float(iou(box[None], region[None])[0])
    return shared * (1 + ratio) / (1 + shared)


def oracle(truth: Mapping[str, PictureBoxes], seed: int = 0) -> Pictures:
    rng = np.random.default_rng(seed)
    return {name: replace(boxes, scores=rng.random(len(boxes.boxes))) for name, boxes in truth.items()}


def plain_ap(
    truth: Pictures, found: Pictures, number: int, threshold: float, size: tuple[float, float]
) -> tuple[float, float]:
    """Average precision and recall of a class as COCO's definition reads, box by box; all scores differ."""
    detections = []
    positives = 0
    for name, true in truth.items():
        boxes = [box for box, kind in zip(true.boxes, true.classes, strict=True) if kind == number]
        fits = [size[0] <= box_area(box[None])[0] < size[1] for box in boxes]
        positives += sum(fits)
        certain = len(boxes)  # those after them are ignored, and may be found more than once
        if true.ignored is not None:
            boxes += [box for box, kind in zip(true.ignored.boxes, true.ignored.classes, strict=True) if kind == number]
            fits += [False] * (len(boxes) - certain)
        regions = certain if true.ignored is not None and true.ignored.are_regions else len(boxes)
        got = found[name]
        order = [at for at in np.argsort(-got.scores) if got.classes[at] == number]
        taken: set[int] = set()
        for at in order:
            best, best_key = None, (False, 0.0)
            for other, box in enumerate(boxes):
                overlap = float(iou(got.boxes[at, None], box[None])[0])
                if other >= regions:
                    overlap = share_within(got.boxes[at], box)
                is_free = other not in taken or other >= certain
                if is_free and overlap >= threshold and (fits[other], overlap) > best_key:
                    best, best_key = other, (fits[other], overlap)
            if best is not None:
                taken.add(best)
            counts = fits[best] if best is not None else size[0] <= box_area(got.boxes[at, None])[0] < size[1]
            detections.append((got.scores[at], best is not None and fits[best], counts))
    if not positives:
        return math.nan, math.nan
    right = wrong = 0
    points = []
    for _, is_right, counts in sorted(detections, key=lambda one: -one[0]):
        right += counts and is_right
        wrong += counts and not is_right
        if counts:
            points.append((right / positives, right / (right + wrong)))
    total = sum(max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101))
    return total / 101, right / positives


def value(one: object) -> float:
    return one.value  # type: ignore[attr-defined]


@pytest.mark.parametrize("ignored", ["none", "things", "regions"])
def test_agrees_with_a_plain_reference_in_each_size_and_class(ignored: str) -> None:
    truth, found = some_pictures(25)
    if ignored != "none":
        truth = with_ignored(truth, are_regions=ignored == "regions")
    plain = {
        size: [[plain_ap(truth, found, number, t, bounds) for t in THRESHOLDS] for number in range(3)]
        for size, bounds in SIZES.items()
    }
    precision = {size: np.array(rows)[..., 0] for size, rows in plain.items()}  # (C, T)
    got = score_boxes(truth, found, NAMES).with_scores
    assert value(got.ap) == pytest.approx(precision["all"].mean(), abs=1e-12)
    assert value(got.ap50) == pytest.approx(precision["all"][:, 0].mean(), abs=1e-12)
    assert value(got.ap75) == pytest.approx(precision["all"][:, 5].mean(), abs=1e-12)
    assert value(got.ar) == pytest.approx(np.array(plain["all"])[..., 1].mean(), abs=1e-12)
    assert list(got.ap_by_class.values()) == pytest.approx(precision["all"].mean(axis=1).tolist(), abs=1e-12)
    assert list(got.ap50_by_class.values()) == pytest.approx(precision["all"][:, 0].tolist(), abs=1e-12)
    for size in ("small", "medium", "large"):
        assert got.ap_by_size[size] == pytest.approx(np.nanmean(precision[size]), abs=1e-12)
    assert 0.1 < value(got.ap) < value(got.ap50) < 0.9


def test_an_overlap_with_a_region_is_a_share_of_the_detection() -> None:
    """Against directions within the detection; a true box beside the region has an IoU."""
    rng = np.random.default_rng(0)
    box, region = as_boxes([[10, 20, 30, 20, 15], [22, 24, 40, 30, -10]])
    truth = PictureBoxes(box[None], np.zeros(1, int), ignored=IgnoredBoxes(region[None], np.zeros(1, int), True))
    overlap = class_overlap(PictureBoxes(box[None], np.zeros(1, int)), truth)
    directions = rng.normal(size=(200_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    inside = contains(np.stack([box, region]), directions)
    assert overlap[0, 0] == pytest.approx(1)
    assert overlap[0, 1] == pytest.approx((inside[0] & inside[1]).sum() / inside[0].sum(), abs=0.03)
    assert 0.2 < overlap[0, 1] < 0.8


def test_with_equal_scores_a_curve_has_one_point() -> None:
    truth, found = some_pictures(25)
    got = score_boxes(truth, found, NAMES).with_equal_scores
    pictures = [*truth.values()], [*found.values()]
    overlaps = [class_overlap(other, one) for one, other in zip(*pictures, strict=True)]
    for number, ranking in enumerate(rankings(*pictures, overlaps, 3, equal_scores=True)["all"]):
        hits, positives = ranking.is_hit[0].sum(), ranking.positives.sum()
        expected = hits / len(ranking.pictures) * (np.linspace(0, 1, 101) <= hits / positives).sum() / 101
        assert got.ap50_by_class[NAMES[number]] == pytest.approx(expected, abs=1e-12)
    given = score_boxes(truth, found, NAMES).with_scores
    assert value(got.ar) == pytest.approx(value(given.ar), abs=0.02)
    assert value(got.ap50) != pytest.approx(value(given.ap50), abs=1e-3)


def test_the_order_of_boxes_changes_nothing() -> None:
    truth, found = some_pictures(12)
    found = {name: replace(boxes, scores=boxes.scores.round(1)) for name, boxes in found.items()}
    rng = np.random.default_rng(1)
    mixed = {}
    for name in rng.permutation(list(found)):
        order = rng.permutation(len(found[name].boxes))
        boxes = found[name]
        mixed[name] = PictureBoxes(boxes.boxes[order], boxes.classes[order], boxes.scores[order])
    one, other = score_boxes(truth, found, NAMES), score_boxes(truth, mixed, NAMES)
    assert (one.with_scores, one.with_equal_scores, one.f1) == (other.with_scores, other.with_equal_scores, other.f1)
    assert value(one.mean_iou) == pytest.approx(value(other.mean_iou), abs=1e-12)


def test_true_boxes_as_detections_score_1() -> None:
    truth, _ = some_pictures(20)
    got = score_boxes(truth, oracle(truth), NAMES)
    for averages in (got.with_scores, got.with_equal_scores):
        for one in (averages.ap, averages.ap50, averages.ap75, averages.ar):
            assert one.value == 1
            assert one.low is not None
            assert 0.5 < one.low < 1
        assert set(averages.ap_by_size.values()) == set(averages.ap_by_class.values()) == {1.0}
    assert [value(one) for one in (got.precision, got.recall, got.f1, got.mean_iou)] == pytest.approx([1.0] * 4)
    assert value(got.count_error) == 0
    assert value(got.centre_error_deg) == pytest.approx(0, abs=1e-6)
    assert (got.pictures, got.true_boxes) == (20, got.found_boxes)


def test_shifted_boxes_score_what_their_iou_says() -> None:
    """Boxes of 30 degrees, each shifted by as much: every AP is 1 or 0, by the threshold that the IoU reaches."""
    truth = {
        f"p{at}": PictureBoxes(as_boxes([[yaw, 0, 30, 30]]), np.zeros(1, int))
        for at, yaw in enumerate(range(-180, 180, 30))
    }
    for shift in (2.0, 4.0, 7.0, 12.0):
        overlap = iou(as_boxes([[0, 0, 30, 30]]), as_boxes([[shift, 0, 30, 30]]))[0]
        moved = {
            name: replace(one, boxes=one.boxes + np.array([shift, 0, 0, 0, 0])) for name, one in oracle(truth).items()
        }
        got = score_boxes(truth, moved, ["chair"])
        assert value(got.with_scores.ap) == pytest.approx(sum(overlap >= t for t in THRESHOLDS) / 10)
        assert value(got.with_scores.ap50) == value(got.f1) == float(overlap >= 0.5)
        assert value(got.mean_iou) == pytest.approx(overlap)
        if overlap >= 0.5:
            assert value(got.centre_error_deg) == pytest.approx(shift)
        else:
            assert got.centre_error_deg is None


def test_rotating_the_sphere_changes_nothing() -> None:
    truth, found = some_pictures(20)
    before = score_boxes(truth, found, NAMES)
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    after = score_boxes(
        *(
            {name: replace(one, boxes=rotated(one.boxes, turn)) for name, one in side.items()}
            for side in (truth, found)
        ),
        NAMES,
    )
    assert after.with_scores == before.with_scores
    assert after.with_equal_scores == before.with_equal_scores
    assert value(after.mean_iou) == pytest.approx(value(before.mean_iou), abs=1e-12)
    assert value(after.centre_error_deg) == pytest.approx(value(before.centre_error_deg), abs=1e-9)


def test_counts_and_ratios() -> None:
    boxes = as_boxes([[0, 0, 20, 20], [60, 0, 20, 20], [120, 0, 20, 20]])
    truth = {"a": PictureBoxes(boxes, np.array([0, 0, 1])), "b": PictureBoxes(boxes[:0], np.zeros(0, int))}
    found = {
        "a": PictureBoxes(boxes[[0, 0, 2, 1]], np.array([0, 0, 0, 0]), np.array([0.9, 0.8, 0.7, 0.2])),
        "b": PictureBoxes(boxes[:1], np.array([2]), np.array([0.6])),
    }
    got = score_boxes(truth, found, NAMES, least_score=0.5)
    assert [value(one) for one in (got.precision, got.recall, got.f1)] == pytest.approx([1 / 4, 1 / 3, 2 / 7])
    assert value(got.mean_iou) == pytest.approx(1 / 3)
    assert value(got.count_error) == pytest.approx((1 + 1 + 1) / 2)  # one chair too many, no lamp, one plant too many
    assert got.precision.low is None  # fewer pictures than an interval needs
    assert got.with_scores.ap_by_class == {"chair": pytest.approx((51 + 50 * 0.5) / 101), "lamp": 0.0, "plant": None}
    assert score_boxes(truth, {}, NAMES).precision is None
    assert value(score_boxes(truth, {}, NAMES).with_scores.ap) == 0


def test_boxes_of_the_size_in_question_are_matched_first() -> None:
    is_matched, is_hit = matches(np.array([[0.9, 0.62]]), np.array([1.0]), np.array([False, True]))
    assert is_hit[:, 0].tolist() == [True] * 3 + [False] * 7  # from .65 on only the other one is left
    assert is_matched[:, 0].tolist() == [True] * 9 + [False]


def test_only_so_many_boxes_of_a_class_count_in_a_picture() -> None:
    truth = {"a": PictureBoxes(as_boxes([[0, 0, 20, 20]]), np.zeros(1, int))}
    many = as_boxes([[90, 0, 20, 20]] * 100 + [[0, 0, 20, 20]])
    scores = np.append(np.linspace(1, 0.5, 100), 0.1)
    assert (
        value(score_boxes(truth, {"a": PictureBoxes(many, np.zeros(101, int), scores)}, ["chair"]).with_scores.ar) == 0
    )
    scores[99] = 0.1  # now the last two are equal, and neither may be preferred
    assert (
        value(score_boxes(truth, {"a": PictureBoxes(many, np.zeros(101, int), scores)}, ["chair"]).with_scores.ar) == 1
    )


def test_best_matching_is_that_of_all_permutations() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        count, width = rng.integers(1, 6, 2)
        overlap = rng.random((count, width)) * (rng.random((count, width)) < 0.6)
        few, many = sorted((int(count), int(width)))
        table = overlap if count <= width else overlap.T
        best = max(sum(table[range(few), list(order)]) for order in itertools.permutations(range(many), few))
        pairs = best_matching(overlap)
        assert sum(overlap[pair] for pair in pairs) == pytest.approx(best)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert best_matching(np.zeros((0, 3))) == []


def test_intervals_cover_the_truth() -> None:
    """Of 20 sets of pictures, about 95 % of the intervals hold the AP50 of all pictures together."""
    truth, found = some_pictures(600, seed=5)
    found = {name: replace(boxes, scores=None) for name, boxes in found.items()}
    expected = value(score_boxes(truth, found, NAMES).with_scores.ap50)
    held = 0
    for start in range(0, 600, 30):
        part = list(truth)[start : start + 30]
        got = score_boxes({name: truth[name] for name in part}, {name: found[name] for name in part}, NAMES)
        held += got.with_scores.ap50.low < expected < got.with_scores.ap50.high
    assert 16 <= held <= 20
    assert got.with_scores.ap50.high - got.with_scores.ap50.low < 0.3


@pytest.mark.parametrize(
    ("found", "names", "message"),
    [
        ({"z": PictureBoxes(np.zeros((0, 5)), np.zeros(0, int))}, NAMES, "z: has detections but no entry in the truth"),
        ({}, ["chair"], "a: a box has a class outside of 0 to 0"),
    ],
)
def test_refusals(found: Pictures, names: Sequence[str], message: str) -> None:
    truth = {"a": PictureBoxes(as_boxes([[0, 0, 20, 20]]), np.array([1]))}
    with pytest.raises(ValueError, match=message):
        score_boxes(truth, found, names)
    with pytest.raises(ValueError, match="The truth has no boxes"):
        score_boxes({"a": PictureBoxes(np.zeros((0, 5)), np.zeros(0, int))}, {}, NAMES)


def some_masks(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"p{at}": np.kron(rng.integers(-1, 3, (8, 16)), np.ones((4, 4), int)) for at in range(6)}


def test_true_masks_score_1_and_others_what_counting_says() -> None:
    truth = some_masks(0)
    got = score_masks(truth, truth, NAMES)
    assert got.by_solid_angle.value == got.by_pixel.value == 1
    assert set(got.of_class.values()) == set(got.of_class_by_pixel.values()) == {1.0}
    found = some_masks(1)
    got = score_masks(truth, found, NAMES)
    true, other = (np.stack(list(side.values())) for side in (truth, found))
    rows = np.cos((0.5 - (np.arange(32) + 0.5) / 32) * math.pi)[:, None] * np.ones((1, 64))
    for number, name in enumerate(NAMES):
        both, either = (true == number) & (other == number), (true == number) | (other == number)
        assert got.of_class_by_pixel[name] == pytest.approx(both.sum() / either.sum())
        assert got.of_class[name] == pytest.approx((both * rows).sum() / (either * rows).sum(), abs=1e-12)
    assert got.by_pixel.value == pytest.approx(np.mean(list(got.of_class_by_pixel.values())))
    assert got.by_solid_angle.low < got.by_solid_angle.value < got.by_solid_angle.high


def test_a_mask_shifted_along_a_row_loses_what_it_leaves() -> None:
    true = np.full((64, 128), NOTHING)
    true[20:40, 120:] = true[20:40, :12] = 1  # 20 columns, over the seam
    got = score_masks({"a": true}, {"a": np.roll(true, 5, axis=1)}, NAMES)
    assert got.of_class == {"chair": None, "lamp": pytest.approx(15 / 25), "plant": None}
    assert got.by_pixel.value == pytest.approx(15 / 25)


def test_near_a_pole_solid_angle_counts_less_than_pixels() -> None:
    true, found = np.full((64, 128), NOTHING), np.full((64, 128), NOTHING)
    true[:32], found[8:32] = 0, 0  # the cap above 67.5 degrees is missing: a quarter of the pixels
    got = score_masks({"a": true}, {"a": found}, NAMES)
    assert got.by_pixel.value == pytest.approx(0.75)
    assert got.by_solid_angle.value == pytest.approx(math.sin(math.radians(67.5)))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "a: there are masks of it on one side alone"),
        ({"a": np.zeros((4, 4), int)}, r"a: masks of \(4, 4\) and of \(4, 8\) pixels"),
        ({"a": np.full((4, 8), 3)}, "a: classes from -1 to 3; allowed are -1 to 2"),
        ({"a": np.full((4, 8), -1)}, "There are no masks"),
    ],
)
def test_masks_that_cannot_be_compared(found: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_masks({"a": np.full((4, 8), NOTHING)}, found, NAMES)


def test_iou_of_classes_is_never_mixed() -> None:
    """Detections of another class never match, however well they lie."""
    truth, _ = some_pictures(10)
    other = {name: replace(one, classes=(one.classes + 1) % 3) for name, one in oracle(truth).items()}
    got = score_boxes(truth, other, NAMES)
    same = sum(iou_matrix(one.boxes, one.boxes)[one.classes[:, None] != one.classes].sum() for one in truth.values())
    assert value(got.with_scores.ap) <= same / 10
    assert value(got.recall) <= same / 10


def _pictures(count: int, shift: float, seed: int = 0) -> dict[str, PictureBoxes]:
    """Boxes of two classes in pictures, the same for the same seed but for a shift in yaw."""
    rng = np.random.default_rng(seed)
    found = {}
    for picture in range(count):
        number = 4
        boxes = np.stack(
            [
                np.linspace(-150, 150, number) + rng.uniform(-5, 5, number) + shift,
                rng.uniform(-40, 40, number),
                rng.uniform(15, 30, number),
                rng.uniform(15, 30, number),
                np.zeros(number),
            ],
            axis=1,
        )
        found[str(picture)] = PictureBoxes(boxes, rng.integers(0, 2, number), rng.random(number))
    return found


def test_a_detector_does_not_differ_from_itself() -> None:
    truth, found = _pictures(12, 0.0), _pictures(12, 2.0)
    for one in compare_boxes(truth, found, found, 2, swaps=200):
        assert one.difference.value == 0.0
        assert one.p_value == 1.0


def test_a_shifted_detector_is_worse_and_both_orders_agree() -> None:
    truth, near, far = (_pictures(12, shift) for shift in (0.0, 1.0, 6.0))
    ap, ap50 = compare_boxes(truth, near, far, 2, swaps=400)
    back, _ = compare_boxes(truth, far, near, 2, swaps=400)
    expected = [score_boxes(truth, side, ("one", "other")).with_scores.ap.value for side in (near, far)]
    assert ap.difference.value == pytest.approx(expected[1] - expected[0])
    assert ap.difference.value == pytest.approx(-back.difference.value)
    assert ap.difference.value < -0.2
    assert ap.p_value < 0.01
    assert ap.difference.high is not None
    assert ap.difference.high < 0
    assert ap50.score == "AP50"


@pytest.mark.parametrize(("pictures", "groups"), [(60, 60), (450, MOST_GROUPS)])
def test_many_pictures_are_left_out_in_groups(pictures: int, groups: int) -> None:
    """A score that is a mean over pictures has the standard error of the mean; swaps are computed in blocks."""
    values, asked = np.random.default_rng(3).random((2, pictures)), []

    def scores(kept: np.ndarray) -> np.ndarray:
        asked.append(len(kept))
        return (kept @ values.ravel() / kept.sum(axis=1).clip(1))[:, None]

    (found,) = _compared(("mean",), pictures, scores, 1200)
    assert asked == [500, 500, 500, 500, 200, 200, groups, groups]
    own = values[1] - values[0]
    assert found.difference.value == pytest.approx(own.mean())
    assert found.difference.high is not None
    half = 1.98 * own.std() / math.sqrt(pictures)
    assert found.difference.high - found.difference.value == pytest.approx(half, rel=0.15)


def test_masks_are_compared_by_solid_angle() -> None:
    rng = np.random.default_rng(1)
    truth = {str(one): rng.integers(-1, 2, (8, 16)).astype(np.int16) for one in range(10)}
    noisy = {name: np.where(rng.random(mask.shape) < 0.3, NOTHING, mask) for name, mask in truth.items()}
    found = compare_masks(truth, truth, noisy, 2, swaps=300)
    expected = score_masks(truth, noisy, ("one", "other")).by_solid_angle.value - 1.0
    assert found.difference.value == pytest.approx(expected)
    assert found.p_value < 0.01


def test_detectors_are_compared_on_the_same_pictures_alone() -> None:
    """A picture that a side lacks, or has under another name, is not one in which it found nothing."""
    truth, found = _pictures(6, 0.0), _pictures(6, 2.0)
    renamed = {f"../{name}": one for name, one in found.items()}
    for first, second in ((found, renamed), (renamed, found), (renamed, renamed)):
        with pytest.raises(ValueError, match="is not on each side of the comparison"):
            compare_boxes(truth, first, second, 2)
    masks = some_masks(0)
    with pytest.raises(ValueError, match="p5: is not on each side"):
        compare_masks(masks, masks, {name: one for name, one in masks.items() if name != "p5"}, 3)
    with pytest.raises(ValueError, match="no pictures to compare on"):
        compare_boxes({}, {}, {}, 2)


@pytest.mark.parametrize("count", [1, 4])
def test_few_pictures_are_compared_without_intervals(count: int) -> None:
    truth, near, far = (_pictures(count, shift) for shift in (0.0, 1.0, 6.0))
    for one in compare_boxes(truth, near, far, 2, swaps=50):
        assert (one.difference.low, one.difference.high) == (None, None)
        assert one.p_value >= 0.05
