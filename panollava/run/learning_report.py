"""What reports say of the learning of several runs: who was still learning, curves, and the way to a common loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from panollava.evaluation.comparison import FAST
from panollava.logs import counted
from panollava.run.conditions import FINISHED
from panollava.run.sweep_design import NUMBERS
from panollava.stages import registry
from panollava.training.learning import Learning, LearningCurve, judge_run

MOST_LABELS = 12
"""Settings up to which a legend names each."""
LOG_RANGE = 3
"""Ratio of the highest to the lowest loss from which their axis is logarithmic."""
FEW_POINTS = 3
"""Points below which each is marked."""


def run_learning(states: Mapping[str, Mapping[str, Any]], last: str) -> Learning | None:
    """Whether a run was still learning, from the states of its stages.

    Args:
        states: of ``stage_state.json``, by ``<stage>/<setting>``.
        last: key of the run's last stage; later ones, and those of other settings in the same folder, are left out.

    Returns:
        ``unknown`` for a stage that has not finished, or of a version that recorded no curve; None where the last stage
        gives no answers.
    """
    stage, _, setting = last.partition("/")
    if states.get(last, {}).get("status", FINISHED) != FINISHED:
        return Learning("unknown", f"stage {stage} has not finished")
    found, known = {}, list(registry.STAGES)  # the order of the states is that of the first starts of any setting
    own = [name for name, _, of in (key.partition("/") for key in states) if of == setting]
    of_packages = [name for name in own[: own.index(stage) if stage in own else 0] if name not in known]
    for name in [*(known[: known.index(stage)] if stage in known else known), *of_packages, stage]:
        state = states.get(f"{name}/{setting}", {})
        if state.get("learning") is not None and state.get("validation_loss") is not None:
            found[name] = (float(state["validation_loss"]), Learning.of_record(state["learning"]))
    if stage in found:
        return judge_run(found)
    return None if "learning" in states.get(last, {}) else Learning.of_record(None)


def is_learning(found: Learning | None) -> bool | None:
    """The verdict for a comparison: None where it is unknown."""
    return {"yes": True, "no": False}.get("unknown" if found is None else found.verdict)


def learning_notes(found: Mapping[str, Learning]) -> list[str]:
    """A sentence for each run, by name, that was still learning, or of which it is not known."""
    said = {
        "yes": "{name} was still learning when its training ended ({why}). So {FAST}; to rank how well, train longer "
        "(stage.<name>.epochs)",
        "unknown": "It is not known whether {name} was still learning when its training ended ({why})",
    }
    return [
        said[one.verdict].format(name=name, why=one.why, FAST=FAST)
        for name, one in found.items()
        if one.verdict in said
    ]


def learning_summary(found: Sequence[Learning]) -> list[str]:
    """The same for the jobs of a sweep, of which a table marks each: how many they are."""
    count = {verdict: sum(one.verdict == verdict for one in found) for verdict in ("yes", "unknown")}
    lines = []
    if count["yes"]:
        lines.append(
            f"Still learning when training ended: {count['yes']} of {counted(len(found), 'job')}. So {FAST}; to rank "
            f"how well, train longer (stage.<name>.epochs). {NUMBERS} has the reasons."
        )
    if count["unknown"]:
        lines.append(f"Of {count['unknown']} of {counted(len(found), 'job')} it is not known; {NUMBERS} says why.")
    return lines


def common_loss(curves: Sequence[LearningCurve]) -> float | None:
    """The highest of the training losses in which several runs ended: one that all have reached; None for fewer."""
    ends = [curve.smoothed()[-1].loss for curve in curves if curve.points]
    return max(ends) if len(ends) > 1 else None


def samples_to(curve: LearningCurve, loss: float) -> float | None:
    """Training samples after which the smoothed training loss is at most ``loss`` for the first time."""
    return next((point.samples for point in curve.smoothed() if point.loss <= loss), None)


def way_to_common_loss(
    curves: Mapping[str, LearningCurve], speeds: Mapping[str, float | None]
) -> dict[str, dict[str, float]]:
    """Samples and seconds to the ``common_loss``, by job; empty for a single one.

    Args:
        curves: of one stage, by job.
        speeds: training samples per second, validations left out.
    """
    loss = common_loss(list(curves.values()))
    found: dict[str, dict[str, float]] = {}
    for job, curve in curves.items():
        samples = None if loss is None else samples_to(curve, loss)
        if loss is not None and samples is not None:
            found[job] = {"common_loss": loss, "samples_to_common_loss": samples}
            if speed := speeds.get(job):
                found[job]["seconds_to_common_loss"] = samples / speed
    return found


def draw_curves(axes: Axes, stage: str, curves: Sequence[tuple[str, LearningCurve]]) -> None:
    """Draws training losses against samples, smoothed: a line a run, a colour a setting.

    Args:
        curves: setting and curve of each run.
    """
    settings = list(dict.fromkeys(setting for setting, _ in curves))
    for setting, curve in curves:
        points, place = curve.smoothed(), settings.index(setting)
        is_first = next(one for name, one in curves if name == setting) is curve
        axes.plot(
            [point.samples for point in points],
            [point.loss for point in points],
            color=f"C{place % 10}",
            linestyle=("-", "--", ":", "-.")[place // 10 % 4],
            linewidth=1,
            marker="." if len(points) < FEW_POINTS else "",
            label=setting if is_first and len(settings) <= MOST_LABELS else None,
        )
    loss = common_loss([curve for _, curve in curves])
    if loss is not None:
        axes.axhline(loss, color="grey", linewidth=0.8, linestyle=":", label="reached by all")
    axes.set_xlabel("training samples")
    axes.set_ylabel(f"{stage}: training loss")
    losses = [point.loss for _, curve in curves for point in curve.smoothed()]
    if losses and 0 < LOG_RANGE * min(losses) < max(losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if 1 < len(settings) <= MOST_LABELS:
        axes.legend(fontsize=7)
