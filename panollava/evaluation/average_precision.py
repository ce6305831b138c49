"""Average precision and recall of detections, as COCO defines them, for boxes on the sphere.

Legend: ``P`` pictures, ``C`` classes, ``D`` detections, ``T`` thresholds of IoU, ``R`` sets of weights of pictures.

Equal scores have no order: a curve of precision over recall has a point only where all detections of one score are
counted, and among detections of one score those with the highest IoU are matched first. So the result does not depend
on the order of the detections. Where all scores differ it is COCO's.

Source: Lin et al. 2014, Microsoft COCO: common objects in context, and its evaluation server's 101 points of recall.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from panollava.crop.boxes import PictureBoxes, box_area, iou

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Least IoU of a match; AP is the mean over them."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which the precision is read off."""
ROUNDING = 1e-9
"""An IoU so far below a threshold reaches it."""
MOST = 100
"""Detections of a class that count in a picture: those with the highest scores, and any with the score of the last."""
_SMALL, _LARGE = (float(box_area(np.array([[0.0, 0.0, side, side, 0.0]]))[0]) for side in (10.0, 30.0))
SIZES = {"all": (0.0, np.inf), "small": (0.0, _SMALL), "medium": (_SMALL, _LARGE), "large": (_LARGE, np.inf)}
"""Steradians of the boxes of each size; the bounds are boxes of 10 x 10 and of 30 x 30 degrees."""

_BLOCK = 2_000_000  # entries of a curve's table at once


@dataclass(frozen=True, eq=False)
class Ranking:
    """The detections of one class and size in all pictures, by descending score."""

    pictures: np.ndarray  # (D,), position of the picture of each
    is_last: np.ndarray  # (D,), whether the next one has a lower score
    is_hit: np.ndarray  # (T, D), whether it matches a true box
    counts: np.ndarray  # (T, D); false for those of another size, which are neither right nor wrong
    positives: np.ndarray  # (P,), number of true boxes

    def curve(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average precision and final recall ``(R, T)`` where pictures count as often as weights ``(R, P)`` say.

        Both are NaN where there is no true box.
        """
        precision, recall = np.zeros((2, len(weights), len(THRESHOLDS)))
        step = max(1, _BLOCK // max(1, len(self.pictures)))
        for start in range(0, len(weights), step):
            block = slice(start, start + step)
            precision[block], recall[block] = self._curve(weights[block])
        return precision, recall

    def _curve(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positives = (weights @ self.positives)[:, None]
        precision, recall = np.zeros((2, len(weights), len(THRESHOLDS)))
        if len(self.pictures):
            times, ends = weights[:, self.pictures], np.flatnonzero(self.is_last)
            so_far = np.zeros_like(times)
            for at in range(len(THRESHOLDS)):
                if at == 0 or (self.counts[at] != self.counts[at - 1]).any():
                    so_far = (times * self.counts[at]).cumsum(axis=1)
                # A point where no hit was added has the recall of the one before it, and no higher precision.
                hits = np.flatnonzero(self.is_hit[at])
                if not len(hits):
                    continue
                group = np.searchsorted(ends, hits)
                is_point = np.append(np.diff(group) != 0, True)
                right = times[:, hits].cumsum(axis=1)[:, is_point]
                counted = so_far[:, ends[group[is_point]]]
                share = np.divide(right, counted, out=np.zeros_like(right), where=counted > 0)
                best = np.maximum.accumulate(share[:, ::-1], axis=1)[:, ::-1]  # at this recall or a higher one
                reached = np.divide(right, positives, out=np.zeros_like(right), where=positives > 0)
                points = np.searchsorted(RECALLS, reached, side="right")
                precision[:, at] = (best * np.diff(points, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
                recall[:, at] = reached[:, -1]
        has_truth = positives > 0
        return np.where(has_truth, precision, np.nan), np.where(has_truth, recall, np.nan)


class _Part(NamedTuple):
    """The detections of one class and size in one picture; fields as in `Ranking`."""

    picture: int
    scores: np.ndarray
    is_hit: np.ndarray
    counts: np.ndarray
    positives: int


def class_overlap(found: PictureBoxes, truth: PictureBoxes) -> np.ndarray:
    """IoU ``(D, N + M)`` of detections with the true boxes of a picture, then with those that are ignored.

    With an ignored region it is the share of the detection that lies within it, as COCO defines it for a crowd. 0 for
    boxes of different classes.
    """
    boxes, classes = truth.annotated()
    rows, columns = np.nonzero(found.classes[:, None] == classes)
    overlap = np.zeros((len(found.boxes), len(boxes)))
    overlap[rows, columns] = shared = iou(found.boxes[rows], boxes[columns])
    if truth.ignored is not None and truth.ignored.are_regions:
        is_region = columns >= len(truth.boxes)
        rows, columns, shared = rows[is_region], columns[is_region], shared[is_region]
        both = shared / (1 + shared) * (box_area(found.boxes[rows]) + box_area(boxes[columns]))
        overlap[rows, columns] = both / box_area(found.boxes[rows])
    return overlap


def rankings(
    truth: Sequence[PictureBoxes],
    found: Sequence[PictureBoxes],
    overlaps: Sequence[np.ndarray],
    classes: int,
    *,
    equal_scores: bool = False,
) -> dict[str, list[Ranking]]:
    """Rankings of each size of ``SIZES``, one for each class.

    Args:
        truth, found: boxes of the same pictures in the same order.
        overlaps: their ``class_overlap``.
        classes: ``C``.
        equal_scores: whether all scores count as the same, as they do where `found` has none.
    """
    parts: dict[str, list[list[_Part]]] = {size: [[] for _ in range(classes)] for size in SIZES}
    for picture, (true, got, overlap) in enumerate(zip(truth, found, overlaps, strict=True)):
        scores = np.zeros(len(got.boxes)) if equal_scores or got.scores is None else got.scores
        _, annotated = true.annotated()
        for number in np.union1d(true.classes, got.classes).tolist():
            own, chosen = np.flatnonzero(annotated == number), np.flatnonzero(got.classes == number)
            if len(chosen) > MOST:
                chosen = chosen[scores[chosen] >= np.sort(scores[chosen])[-MOST]]
            areas = box_area(got.boxes[chosen]), box_area(true.boxes[own[own < len(true.boxes)]])
            for size, (low, high) in SIZES.items():
                fits_found, fits_true = ((area >= low) & (area < high) for area in areas)
                is_matched, is_hit = matches(overlap[np.ix_(chosen, own)], scores[chosen], fits_true)
                counts = np.where(is_matched, is_hit, fits_found)
                parts[size][number].append(_Part(picture, scores[chosen], is_hit, counts, int(fits_true.sum())))
    return {size: [_joined(one, len(truth)) for one in of_class] for size, of_class in parts.items()}


def matches(overlap: np.ndarray, scores: np.ndarray, fits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matches detections ``(D)`` to the true boxes of one picture, at each threshold.

    Detections choose by descending score, those of equal score by descending IoU. Each takes the free box with the
    highest IoU that reaches the threshold; boxes of the size in question come first, and ignored ones stay free.

    Args:
        overlap: IoU ``(D, boxes)``, and with as many boxes as `overlap` has more columns, which are ignored.
        scores: ``(D,)``.
        fits: ``(boxes,)``, whether each true box has the size in question.

    Returns:
        Whether a detection is matched, and whether it is matched to a box of that size: (T, D) bool.
    """
    is_matched, is_hit = np.zeros((2, len(THRESHOLDS), len(scores)), bool)
    true, fits = len(fits), np.append(fits, np.zeros(overlap.shape[1] - len(fits), bool))
    is_taken = np.zeros((len(THRESHOLDS), len(fits)), bool)
    ones, others = np.nonzero(overlap >= THRESHOLDS[0] - ROUNDING)
    for at in np.lexsort((-overlap[ones, others], ~fits[others], -scores[ones])):
        one, other = ones[at], others[at]
        free = ~is_matched[:, one] & ~is_taken[:, other] & (overlap[one, other] >= THRESHOLDS - ROUNDING)
        is_matched[:, one] |= free
        is_taken[:, other] |= free & (other < true)
        is_hit[:, one] |= free & fits[other]
    return is_matched, is_hit


def _joined(parts: Sequence[_Part], pictures: int) -> Ranking:
    """The ranking of one class and size, out of the pictures in which the class occurs."""
    positives = np.zeros(pictures)
    for part in parts:
        positives[part.picture] = part.positives
    places = np.concatenate([np.zeros(0, int), *(np.full(len(part.scores), part.picture) for part in parts)])
    scores = np.concatenate([np.zeros(0), *(part.scores for part in parts)])
    none = np.zeros((len(THRESHOLDS), 0), bool)
    is_hit = np.concatenate([none, *(part.is_hit for part in parts)], axis=1)
    counts = np.concatenate([none, *(part.counts for part in parts)], axis=1)
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(np.diff(scores[order]) != 0, True)[: len(order)]
    return Ranking(places[order], is_last, is_hit[:, order], counts[:, order], positives)
