"""Whether a stage was still learning when it ended: its learning curve, two measures and a verdict.

A schedule that ends at learning rate 0 flattens every loss, and a model that does not use the picture yet has a flat
loss too. So neither the end of a curve nor its slope alone shows that there is nothing left to learn.
"""

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from panollava.disk import csv_text

LIMIT = 128
"""Most points of a curve: where it is full, every two neighbours become one. An even number."""

IMAGE_GAIN = 0.15
"""``image_gain`` below which a model has hardly begun to use the pictures. In the built-in world it is 0.97 where three
of four answers are right, and 0.02 to 0.4 where most are guessed; the upper ones of these are found by their slope."""
SLOPE = 0.05
"""``remaining`` from which a loss counts as falling."""
FALL = 0.01
"""Nats per labelled token that twice the training must be likely to take off. In the built-in world a point of exact
match is some 0.003, so this lies between one point and five."""
ROOM = 0.035
"""Nats per labelled token below which a run has hardly anything to gain, whatever its earlier stages had: in the
built-in world some 96 % of its answers are right."""
FEWEST = 8
"""Points before the decay below which no slope is fitted."""
DECAYED = 0.5
"""Share of the highest learning rate below which the decay has begun."""
FITTED = 0.7
"""Share of the validation loss below which the training loss is that of a stage that fits its training data alone."""
DOUBLINGS = 2
"""Length of the fitted part, in doublings of the summed learning rate: one alone has too few steps for its noise."""
_TINY = 1e-9
"""Loss that stands for smaller ones, where a logarithm is taken."""

Verdict = Literal["yes", "no", "unknown"]


class Point(NamedTuple):
    """The end of an interval of optimiser steps, or a validation."""

    steps: int  # optimiser steps taken
    samples: float  # training samples seen
    lr_sum: float  # sum of the learning rates of these steps
    loss: float  # training loss, mean over the steps of the interval; or the validation loss


@dataclass
class LearningCurve:
    """Training and validation losses of a stage, in at most ``LIMIT`` points each, whatever its length.

    All intervals have the same number of steps, a power of two; the last one may have fewer. It depends on the losses
    alone, so a resumed run has the same curve as an uninterrupted one.
    """

    points: list[Point] = field(default_factory=list)
    validations: list[Point] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Optimiser steps that the curve has."""
        return self.points[-1].steps if self.points else 0

    def step(self, samples: float, lr: float, loss: float | None) -> None:
        """Adds an optimiser step; ``samples`` counts all that were seen up to its end.

        A step without a loss, of samples of which nothing counts, takes that of the interval before.
        """
        if loss is None:
            loss = self.points[-1].loss if self.points else 0.0
        width = self.points[0].steps if len(self.points) > 1 else 1
        begun = self.steps % width
        if not begun and len(self.points) == LIMIT:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points[:] = [last._replace(loss=(first.loss + last.loss) / 2) for first, last in pairs]
        lr_sum = (self.points[-1].lr_sum if self.points else 0.0) + lr
        mean, steps = loss, self.steps + 1
        if begun:
            last = self.points.pop()
            mean = last.loss + (loss - last.loss) / (begun + 1)
        self.points.append(Point(steps, samples, lr_sum, mean))

    def validation(self, loss: float) -> None:
        """Adds a validation after the last step."""
        if len(self.validations) == LIMIT:
            del self.validations[::2]
        if self.points:
            self.validations.append(self.points[-1]._replace(loss=loss))

    def smoothed(self) -> list[Point]:
        """The points, each with the mean training loss of the last sixteenth of the curve up to it."""
        width = max(1, len(self.points) // 16)
        return [
            point._replace(loss=sum(one.loss for one in part) / len(part))
            for place, point in enumerate(self.points, start=1)
            for part in [self.points[max(0, place - width) : place]]
        ]

    def csv(self) -> str:
        """A line a point, in the order of the steps, with either a training or a validation loss."""
        rows: list[list[Any]] = [[*point, ""] for point in self.points]
        rows += [[*point[:3], "", point.loss] for point in self.validations]
        rows.sort(key=lambda row: int(row[0]))
        return csv_text([[*Point._fields, "validation_loss"], *rows])

    @classmethod
    def of_json(cls, value: Any) -> Self:
        """Of the lists that JSON makes of it; a ValueError for anything else."""
        if not isinstance(value, dict) or value.keys() != {"points", "validations"}:
            raise ValueError(f"a learning curve has points and validations, not {str(value)[:100]}")
        return cls(*(_points(value[key]) for key in ("points", "validations")))


def _points(rows: Any) -> list[Point]:
    """Checked points of lists of four numbers."""
    if not isinstance(rows, list) or len(rows) > LIMIT:
        raise ValueError(f"a learning curve has a list of at most {LIMIT} points")
    for row in rows:
        is_four = isinstance(row, Sequence) and len(row) == 4 and type(row[0]) is int and row[0] > 0
        if not is_four or not all(type(number) in (int, float) and math.isfinite(number) for number in row):
            raise ValueError(f"a point of a learning curve is four numbers, not {str(row)[:100]}")
    found = [Point(*row) for row in rows]
    if any(later.steps <= earlier.steps for earlier, later in itertools.pairwise(found)):
        raise ValueError("the points of a learning curve are in the order of their steps")
    return found


def read_curve(path: Path) -> LearningCurve:
    """A curve that ``LearningCurve.csv`` wrote; empty where there is no file. Raises ValueError for another file."""
    if not path.is_file():
        return LearningCurve()
    found: dict[str, list[list[float]]] = {"points": [], "validations": []}
    try:
        for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            kind, loss = ("points", row["loss"]) if row["loss"] else ("validations", row["validation_loss"])
            found[kind].append([int(row["steps"]), float(row["samples"]), float(row["lr_sum"]), float(loss)])
        return LearningCurve.of_json(found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no learning curve ({error}). Remove the file; reports do without it.") from error


@dataclass(frozen=True)
class Learning:
    """Whether a stage was still learning when it ended, with its measures.

    Attributes:
        verdict: ``yes``: its score says how fast it learns, not how well.
        why: in one line.
        remaining: relative fall of the training loss per doubling of the summed learning rate, before the decay.
        remaining_low: the same less its standard error.
        image_gain: share of the loss with swapped pictures that the right ones take off.
        swapped_loss: validation loss where each record has the picture of another one.
    """

    verdict: Verdict
    why: str
    remaining: float | None = None
    remaining_low: float | None = None
    image_gain: float | None = None
    swapped_loss: float | None = None

    @property
    def measures(self) -> dict[str, float]:
        """The measures that are known, by name."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: float(value) for key, value in known.items() if key not in ("verdict", "why")}

    def record(self) -> dict[str, Any]:
        """For ``stage_state.json``."""
        return asdict(self)

    @classmethod
    def of_record(cls, value: Mapping[str, Any] | None) -> Self:
        """Of ``record``; None is that of a run of a version that recorded none."""
        if value is None:
            return cls("unknown", "its version recorded no learning curve")
        known: dict[str, Any] = {one.name: value.get(one.name) for one in fields(cls)}
        return cls(**known)


def judge(curve: LearningCurve | None, loss: float, swapped_loss: float | None) -> Learning:
    """Whether a stage was still learning, from its whole curve and two losses of its best weights.

    Args:
        curve: None where steps are missing, as after resuming a checkpoint of a version that recorded none.
        loss: validation loss.
        swapped_loss: the same where each record has the picture of another one; None where all pictures are the same.
    """
    fall = None if curve is None else remaining(curve)
    low = None if fall is None else fall.low
    gain = None if swapped_loss is None else image_gain(loss, swapped_loss)
    verdict, why = decide(loss, low, gain)
    overfits = "" if curve is None or gain is None or gain < IMAGE_GAIN else overfitted(curve, loss)
    if verdict == "yes" and overfits:
        verdict, why = "no", overfits
    if verdict == "unknown" and curve is None:
        why = "the learning curve lacks the first steps, which a version trained that recorded none"
    return Learning(verdict, why, None if fall is None else fall.value, low, gain, swapped_loss)


def decide(loss: float, low: float | None, gain: float | None) -> tuple[Verdict, str]:
    """The verdict on a validation loss with its ``remaining_low`` and ``image_gain``, and the reason in one line.

    A stage was still learning where the pictures are hardly used (``image_gain`` below ``IMAGE_GAIN``): the loss of
    such a model may be flat for long before it falls. Else it was where the loss fell by at least ``SLOPE`` with each
    doubling, and twice the training would take off at least ``FALL`` nats, ``remaining_low * loss``. So a model that
    answers everything has nothing left to gain, however steep its small loss falls, and one that does not is judged by
    its slope.
    """
    if gain is None:
        return "unknown", "all validation pictures are the same, so it is not known whether the model uses them"
    if gain < IMAGE_GAIN:
        return "yes", f"the right pictures lower the loss by {max(gain, 0):.1%} only: they are hardly used yet"
    if loss < FALL:
        return "no", f"the loss is {loss:.4f}: there is hardly anything left to learn"
    if low is None:
        return "unknown", f"the curve has fewer than {FEWEST} points before the decay of the learning rate"
    slope = (
        f"before the decay the loss fell by {max(low, 0):.1%} or more with each doubling of the summed learning rate"
    )
    left = f"twice the training may take {max(low, 0) * loss:.4f} off {loss:.4f}"
    return "yes" if low >= SLOPE and low * loss >= FALL else "no", f"{slope}: {left}"


def overfitted(curve: LearningCurve, loss: float) -> str:
    """Why more training would not lower a validation loss though the training loss falls; empty where it may.

    It would not where the training loss (its mean over the last sixteenth of the curve) is below ``FITTED`` of the
    validation loss, and the second half of the steps, with its decay, took off less than ``FALL`` nats. A curve with
    fewer than two validations in either half shows nothing.
    """
    first = [one.loss for one in curve.validations if 2 * one.steps <= curve.steps]
    second = [one.loss for one in curve.validations if 2 * one.steps > curve.steps]
    if min(len(first), len(second)) < 2:
        return ""
    fell, training = max(0.0, min(first) - min(second)), curve.smoothed()[-1].loss
    if training >= FITTED * loss or fell >= FALL:
        return ""
    return (
        f"the second half of the steps took {fell:.4f} off the validation loss, while the training loss is "
        f"{training:.4f}: more training would fit the training data alone"
    )


def judge_run(stages: Mapping[str, tuple[float, Learning]]) -> Learning:
    """Whether a run was still learning when it ended: its last stage was, or an earlier one of those that it runs.

    More training would lengthen all stages. An earlier one counts where the last one has at least ``ROOM`` left.

    Args:
        stages: validation loss and verdict of each stage that answers, in their order; not empty.
    """
    *earlier, (_, (loss, last)) = stages.items()
    for name, (_, one) in earlier:
        if one.verdict == "yes" and last.verdict != "yes" and loss >= ROOM:
            return replace(last, verdict="yes", why=f"stage {name}: {one.why}")
    return last


def image_gain(loss: float, swapped_loss: float) -> float:
    """Share of the loss with swapped pictures that the right ones take off: 0 where a model ignores them, up to 1."""
    return 1 - loss / max(swapped_loss, _TINY)


class Remaining(NamedTuple):
    """A fitted fall per doubling, with the lower end of its interval of one standard error."""

    value: float
    low: float


def remaining(curve: LearningCurve) -> Remaining | None:
    """Relative fall of the training loss per doubling of the summed learning rate, before the decay.

    A power law ``loss = a * S ** -b`` in the summed learning rate ``S`` is fitted to the last ``DOUBLINGS`` doublings
    of ``S`` before the learning rate is below ``DECAYED`` of its highest value, by least squares of the logarithms. The
    result, ``1 - 2 ** -b``, is the fall that the same schedule would give with twice the steps. The decay itself is
    left out: there the loss falls because the steps get smaller, while ``S`` hardly grows. None where the fitted part
    has fewer than ``FEWEST`` points.

    Source: Kaplan et al. 2020, Scaling Laws for Neural Language Models, section 3 (power laws of the loss in the length
        of training) and appendix D.6 (schedules compared by their summed learning rate); the fit is ours.
    """
    if len(curve.points) < FEWEST:
        return None
    steps, _, sums, losses = np.array(curve.points).T
    before = np.concatenate([[0.0], sums[:-1]])
    rates = (sums - before) / np.diff(steps, prepend=0)
    end = sums[np.flatnonzero(rates >= DECAYED * rates.max())[-1]]
    middle = (before + sums) / 2
    fitted = (middle > end / 2**DOUBLINGS) & (middle <= end)
    if fitted.sum() < FEWEST:
        return None
    x, y = np.log2(middle[fitted]), np.log2(np.maximum(losses[fitted], _TINY))
    slope, height = np.polyfit(x, y, 1)
    error = np.sqrt(((y - slope * x - height) ** 2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    return Remaining(float(1 - 2**slope), float(1 - 2 ** (slope + error)))
