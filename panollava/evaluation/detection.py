"""Scores of boxes and of masks on the sphere, with 95 % intervals over pictures.

Boxes: AP and AR as ``panollava.evaluation.average_precision`` defines them, with the given scores and with all scores
equal, because the scores are half of an AP; and what needs no scores. Masks: IoU by solid angle and by pixel.
Legend: ``P`` pictures, ``C`` classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from panollava.crop.boxes import IGNORED, NOTHING, PictureBoxes, box_frames
from panollava.evaluation.average_precision import ROUNDING, SIZES, THRESHOLDS, Ranking, class_overlap, rankings
from panollava.evaluation.statistics import FEWEST, LEVEL, Interval, interval_of, mean_interval, student

MATCH = 0.5
"""Least IoU of a box that counts as found, for precision, recall, F1 and the error of the centre."""
MOST_GROUPS = 200
"""Groups of pictures whose variance determines the interval of an AP, which is computed without each in turn."""
SWAPS = 2000
"""Random swaps of a test of up to 25 pairs, so that its p-value can reach a quarter of the smallest level."""
_BLOCK = 500  # swaps at once


@dataclass(frozen=True)
class Averages:
    """COCO's averages under one convention of scores. AP and AR are means over classes with true boxes.

    Intervals are over pictures, with the jackknife's variance. In a trial their coverage was that of the bootstrap or
    better (85 against 73 % with 30 pictures; 95 against 93 % with equal scores): given scores make the AP of few
    pictures too high, which no interval corrects. A size or class without true boxes has None.
    """

    ap: Interval  # mean over IoU .50 to .95
    ap50: Interval
    ap75: Interval
    ar: Interval  # final recall, mean over IoU .50 to .95
    ap_by_size: dict[str, float | None]
    ap_by_class: dict[str, float | None]
    ap50_by_class: dict[str, float | None]


@dataclass(frozen=True)
class BoxScores:
    """Scores of detections. None where a score is not defined: a precision without detections, say."""

    with_scores: Averages
    with_equal_scores: Averages
    precision: Interval | None  # at an IoU of ``MATCH``, as all below
    recall: Interval | None
    f1: Interval | None
    mean_iou: Interval | None  # of true boxes under the best matching; 0 for one that is not matched
    count_error: Interval  # difference of the numbers of boxes of a class, summed over classes, mean over pictures
    centre_error_deg: Interval | None  # mean over found boxes
    pictures: int
    true_boxes: int
    found_boxes: int


@dataclass(frozen=True)
class MaskScores:
    """IoU of masks, summed over all pictures; classes that neither occur nor are found have None."""

    by_solid_angle: Interval  # mean over classes
    by_pixel: Interval
    of_class: dict[str, float | None]  # by solid angle
    of_class_by_pixel: dict[str, float | None]


def score_boxes(
    truth: Mapping[str, PictureBoxes],
    found: Mapping[str, PictureBoxes],
    names: Sequence[str],
    *,
    least_score: float = -math.inf,
    groups: Sequence[str] | None = None,
) -> BoxScores:
    """Scores of detections in pictures.

    Args:
        truth: true boxes of each picture, also of pictures without any. A detection that matches none of them, but an
            ignored box, counts for nothing.
        found: detections of pictures, with scores; a picture that is missing has none.
        names: of the classes, ``(C,)``; boxes name a class by its position.
        least_score: detections below it count for AP and AR alone.
        groups: of each picture in `truth`, for intervals over groups of pictures that are not independent.

    Raises:
        ValueError: there are no true boxes; detections are of a picture that `truth` lacks; a class has no name.
    """
    pictures = list(truth)
    if unknown := sorted(set(found) - set(truth)):
        raise ValueError(f"{unknown[0]}: has detections but no entry in the truth. Give it one, empty if need be.")
    none = PictureBoxes(np.zeros((0, 5)), np.zeros(0, int), np.zeros(0))
    true, got = [truth[name] for name in pictures], [found.get(name, none) for name in pictures]
    for name, boxes in [*zip(pictures, true, strict=True), *zip(pictures, got, strict=True)]:
        classes = boxes.annotated()[1]
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(names):
            raise ValueError(
                f"{name}: a box has a class outside of 0 to {len(names) - 1}, the classes that have names."
            )
    if not sum(len(boxes.boxes) for boxes in true):
        raise ValueError("The truth has no boxes, so nothing can be found. Check the file of annotations.")
    overlaps = [class_overlap(*pair) for pair in zip(got, true, strict=True)]
    rows = np.array([_found_counts(*one, least_score, len(names)) for one in zip(true, got, overlaps, strict=True)])
    hits, overlap, angle, count_error, n_true, n_found = rows.T
    own = list(groups or pictures)
    return BoxScores(
        with_scores=_averages(rankings(true, got, overlaps, len(names)), own, names),
        with_equal_scores=_averages(rankings(true, got, overlaps, len(names), equal_scores=True), own, names),
        precision=_ratio_interval(hits, n_found, own),
        recall=_ratio_interval(hits, n_true, own),
        f1=_ratio_interval(2 * hits, n_true + n_found, own),
        mean_iou=_ratio_interval(overlap, n_true, own),
        count_error=mean_interval(count_error, own, top=math.inf),
        centre_error_deg=_ratio_interval(angle, hits, own, top=180.0),
        pictures=len(pictures),
        true_boxes=int(n_true.sum()),
        found_boxes=int(n_found.sum()),
    )


@dataclass(frozen=True)
class PlaceComparison:
    """Two detectors compared on the same pictures by one score."""

    score: str  # AP, AP50 or mIoU
    difference: Interval  # the second less the first
    p_value: float  # of a difference at least as large


def compare_boxes(
    truth: Mapping[str, PictureBoxes],
    first: Mapping[str, PictureBoxes],
    second: Mapping[str, PictureBoxes],
    classes: int,
    *,
    swaps: int = SWAPS,
) -> list[PlaceComparison]:
    """AP and AP50 of two detectors: a permutation test that swaps what both found in a picture.

    An AP is no mean over pictures, so it is computed anew for each swap. The 95 % interval of the difference is that of
    the jackknife over pictures, in ``MOST_GROUPS`` groups at most, with Student's quantile.

    Args:
        truth, first, second: boxes of the same pictures.
        classes: ``C``.
        swaps: number of random swaps.

    Raises:
        ValueError: they are of different pictures, or of none.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 11.5 and 15.2.
    """
    _check_same(truth, first, second)
    pictures = list(truth)
    true = [truth[name] for name in pictures] * 2
    found = [side[name] for side in (first, second) for name in pictures]
    overlaps = [class_overlap(*pair) for pair in zip(found, true, strict=True)]
    ranking = rankings(true, found, overlaps, classes)["all"]

    def scores(kept: np.ndarray) -> np.ndarray:
        """AP and AP50 (R, 2) of the kept pictures (R, 2P), of which the second half are the second detector's."""
        precision = _class_mean(np.stack([one.curve(kept)[0] for one in ranking]))
        return np.stack([precision.mean(axis=1), precision[:, 0]], axis=1)

    return _compared(("AP", "AP50"), len(pictures), scores, swaps)


def compare_masks(
    truth: Mapping[str, np.ndarray],
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    classes: int,
    *,
    swaps: int = SWAPS,
) -> PlaceComparison:
    """Mean IoU by solid angle of two detectors; as ``compare_boxes``."""
    _check_same(truth, first, second)
    counts = np.array(
        [
            _mask_counts(*_counted(true, side[name]), steradians(true.shape), classes)
            for side in (first, second)
            for name, true in truth.items()
        ]
    )
    (found,) = _compared(("mIoU",), len(truth), lambda kept: _mean_iou(kept @ counts)[:, None], swaps)
    return found


def _check_same(truth: Mapping[str, object], first: Mapping[str, object], second: Mapping[str, object]) -> None:
    """Refuses sides of different pictures: one that a side lacks would count as one in which nothing was found."""
    for side in (first, second):
        if set(side) != set(truth):
            name = sorted(set(side) ^ set(truth))[0]
            raise ValueError(f"{name}: is not on each side of the comparison. Give the truth and detections of it.")
    if not truth:
        raise ValueError("There are no pictures to compare on. Check the names of the pictures.")


def _compared(
    names: Sequence[str], pictures: int, scores: Callable[[np.ndarray], np.ndarray], swaps: int
) -> list[PlaceComparison]:
    """Compares by scores of the kept pictures (R, 2P) of both detectors."""

    def change_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Of what is kept (R, P) of what the first and the second found: by how much the other way round is better."""
        sides = [np.concatenate(pair, axis=1).astype(float) for pair in ((first, second), (second, first))]
        return scores(sides[1]) - scores(sides[0])

    rng, changes = np.random.default_rng(0), []
    for start in range(0, swaps, _BLOCK):  # all of them would not fit into memory
        chosen = rng.random((min(_BLOCK, swaps - start), pictures)) < 0.5
        chosen[: start == 0] = False  # nothing is swapped
        changes.append(change_of(~chosen, chosen))
    change = np.concatenate(changes)  # (swaps, scores)
    groups = min(pictures, MOST_GROUPS)
    left_out = np.arange(pictures) % groups != np.arange(groups)[:, None]
    error = np.sqrt((groups - 1) * change_of(left_out, np.zeros_like(left_out)).var(axis=0))  # of the jackknife
    quantile = student(LEVEL, groups - 1) if pictures >= FEWEST else None
    results = []
    for at, name in enumerate(names):
        value, difference = float(change[0, at]), Interval(float(change[0, at]), None, None)
        if quantile is not None:
            reach = quantile * float(error[at])
            difference = Interval(value, max(-1.0, value - reach), min(1.0, value + reach))
        p_value = float((np.abs(change[:, at]) >= abs(value) - 1e-12).mean())
        results.append(PlaceComparison(name, difference, p_value))
    return results


def best_matching(overlap: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column) of a one-to-one matching with the greatest sum of IoU ``(N, M)``; pairs of 0 are left out.

    Source: Kuhn 1955, The Hungarian method for the assignment problem.
    """
    from scipy.optimize import linear_sum_assignment  # here, as it takes long to import

    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if overlap[row, column] > 0]


def score_masks(truth: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], names: Sequence[str]) -> MaskScores:
    """IoU of masks on equirectangular pictures.

    Args:
        truth: class of each pixel ``(H, W)``, ``NOTHING`` where there is none, ``IGNORED`` where it does not count.
        found: the same of the same pictures, without ``IGNORED``.
        names: of the classes, ``(C,)``.

    Raises:
        ValueError: the pictures or their sizes differ, a class has no name, or there is no mask at all.
    """
    if set(truth) != set(found):
        name = sorted(set(truth) ^ set(found))[0]
        raise ValueError(f"{name}: there are masks of it on one side alone. Give those of the same pictures.")
    rows = []
    for name, true in truth.items():
        if true.shape != found[name].shape:
            raise ValueError(f"{name}: masks of {found[name].shape} and of {true.shape} pixels. Give one size.")
        true, got = _counted(true, found[name])
        lowest, highest = min(true.min(), got.min()), max(true.max(), got.max())
        if not NOTHING <= lowest <= highest < len(names):
            raise ValueError(f"{name}: classes from {lowest} to {highest}; allowed are -1 to {len(names) - 1}.")
        pixels = np.ones(true.shape)
        rows.append([_mask_counts(true, got, weight, len(names)) for weight in (steradians(true.shape), pixels)])
    counts = np.array(rows)  # (P, 2, 2C): intersections and unions
    if not counts.any():
        raise ValueError("There are no masks, neither true nor found ones. Check the names of the pictures.")
    of_class = _mask_ious(counts.sum(axis=0))
    values = [{name: _number(value) for name, value in zip(names, one, strict=True)} for one in of_class]
    means = [interval_of(counts[:, at], list(truth), _mean_iou) for at in (0, 1)]
    return MaskScores(means[0], means[1], values[0], values[1])


def _counted(true: np.ndarray, got: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks without the pixels that do not count."""
    return np.where(true == IGNORED, NOTHING, true), np.where(true == IGNORED, NOTHING, got)


def _averages(of_size: Mapping[str, Sequence[Ranking]], groups: Sequence[str], names: Sequence[str]) -> Averages:
    everything, number = np.ones((1, len(groups))), {name: at for at, name in enumerate(dict.fromkeys(groups))}
    sizes = {size: [one.curve(everything)[0][0] for one in of_class] for size, of_class in of_size.items()}
    by_class = np.array(sizes["all"])  # (C, T)
    at_50, at_75 = (int(np.argmin(np.abs(THRESHOLDS - value))) for value in (0.5, 0.75))
    tables: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def table(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall (R, T), means over classes; all four intervals ask for the same ones."""
        key = kept.tobytes()
        if key not in tables:
            curves = [one.curve(kept) for one in of_size["all"]]
            precision, recall = (_class_mean(np.stack(part)) for part in zip(*curves, strict=True))
            tables[key] = precision, recall
        return tables[key]

    def interval(read: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Interval:
        return interval_of(np.eye(len(groups)), own, lambda kept: read(*table(kept)))

    own = [str(number[name] % MOST_GROUPS) for name in groups]
    return Averages(
        ap=interval(lambda precision, _: precision.mean(axis=1)),
        ap50=interval(lambda precision, _: precision[:, at_50]),
        ap75=interval(lambda precision, _: precision[:, at_75]),
        ar=interval(lambda _, recall: recall.mean(axis=1)),
        ap_by_size={size: _mean(np.array(sizes[size])) for size in SIZES if size != "all"},
        ap_by_class={name: _mean(row) for name, row in zip(names, by_class, strict=True)},
        ap50_by_class={name: _mean(row[at_50]) for name, row in zip(names, by_class, strict=True)},
    )


def _class_mean(values: np.ndarray) -> np.ndarray:
    """Means (...) over classes of values (C, ...) that are NaN where a class does not occur; 0 without any."""
    is_there = ~np.isnan(values)
    return np.where(is_there, values, 0).sum(axis=0) / np.maximum(is_there.sum(axis=0), 1)


def _found_counts(
    true: PictureBoxes, got: PictureBoxes, overlap: np.ndarray, least_score: float, classes: int
) -> tuple[float, ...]:
    """Of a picture: hits, sums of IoU and of angles between centres of hits, error of counts, true and found boxes."""
    kept = np.ones(len(got.boxes), bool) if got.scores is None else got.scores >= least_score
    hits, shared, angle = 0, 0.0, 0.0
    # A detection of an ignored box counts if it is a hit, and else not at all.
    counts = kept & (overlap[:, len(true.boxes) :] < MATCH - ROUNDING).all(axis=1)
    found_centres, true_centres = box_frames(got.boxes)[:, 2], box_frames(true.boxes)[:, 2]
    for number in np.intersect1d(true.classes, got.classes[kept]):
        rows, columns = np.flatnonzero(kept & (got.classes == number)), np.flatnonzero(true.classes == number)
        for row, column in best_matching(overlap[np.ix_(rows, columns)]):
            one, other = rows[row], columns[column]
            shared += overlap[one, other]
            if overlap[one, other] >= MATCH - ROUNDING:
                hits, counts[one] = hits + 1, True
                chord = float(np.linalg.norm(found_centres[one] - true_centres[other]))
                angle += math.degrees(2 * math.asin(min(1.0, chord / 2)))
    numbers = [np.bincount(one, minlength=classes) for one in (true.classes, got.classes[counts])]
    return hits, shared, angle, int(np.abs(numbers[0] - numbers[1]).sum()), len(true.boxes), int(counts.sum())


def _ratio_interval(part: np.ndarray, whole: np.ndarray, groups: Sequence[str], top: float = 1.0) -> Interval | None:
    """Sum of a part over that of a whole, both ``(P,)``, with its interval; None where the whole is 0."""
    if not whole.sum():
        return None

    def ratio(sums: np.ndarray) -> np.ndarray:
        # Where all of the whole is in one picture, its share is unknown without it.
        return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), part.sum() / whole.sum()), where=sums[:, 1] > 0)

    return interval_of(np.stack([part, whole], axis=1), groups, ratio, top=top)


def steradians(size: tuple[int, ...]) -> np.ndarray:
    """Solid angle of each pixel ``(H, W)``, integrated between the edges of its row."""
    height, width = size
    edges = np.sin((0.5 - np.arange(height + 1) / height) * math.pi)
    return np.broadcast_to(((edges[:-1] - edges[1:]) * 2 * math.pi / width)[:, None], (height, width))


def _mask_counts(true: np.ndarray, got: np.ndarray, weight: np.ndarray, classes: int) -> np.ndarray:
    """Weights (2C,) of each class's intersection, then of its union."""
    both, one, other = (
        np.bincount(ids[kept], weights=weight[kept], minlength=classes)
        for ids, kept in ((true, (true == got) & (true >= 0)), (true, true >= 0), (got, got >= 0))
    )
    return np.concatenate([both, one + other - both])


def _mask_ious(sums: np.ndarray) -> np.ndarray:
    """IoU (R, C) of sums (R, 2C); NaN for a class without a union."""
    shared, union = np.split(sums, 2, axis=1)
    return np.divide(shared, union, out=np.full_like(shared, np.nan), where=union > 1e-12)


def _mean_iou(sums: np.ndarray) -> np.ndarray:
    """Mean IoU (R,) over classes of sums (R, 2C)."""
    return _class_mean(_mask_ious(sums).T)


def _mean(values: np.ndarray) -> float | None:
    """Mean of those that are defined."""
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
