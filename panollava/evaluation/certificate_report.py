"""What the answers say of each certificate: verdicts, sentences, a table and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from panollava.data.scenes.questions import turn_words
from panollava.evaluation.certificates import MEANT, NAMES, Name, Plan, Planned
from panollava.evaluation.changes import Change
from panollava.evaluation.comparison import INK, PAPER, drawn, markdown_lines
from panollava.evaluation.exact_match import is_correct
from panollava.evaluation.statistics import Comparison, compare_pairs, sign_detectable
from panollava.evaluation.words import normalise

Verdict = Literal["passes", "fires", "cannot tell", "not applicable"]
LEAST_EFFECT = 0.05
"""Share of right answers: a certificate passes where an effect of this size would have been seen and is excluded."""
_OF_A_BOUND = "greying a tile, beyond the part of the circle that it shows,"
_OF_ODD_TILES = "a thing on the seam and half a step further in the tiles, against the same thing in the centre,"
TESTS = (
    "Differences of exact match, question by question: after the change less before it. Two-sided permutation tests "
    "that swap before and after for all questions about a picture, and Holm's correction for the number of "
    "certificates, at 5 %. A certificate fires where the difference is significant. It passes where none was found, "
    "the interval lies within {least:g} points of 0, and the smallest effect that would have been seen with a power of "
    "80 % is no larger than that and than the share of right answers before; else there is too little to tell."
)


@dataclass(frozen=True)
class Certificate:
    """One certificate of a set of answers; without ``found`` it is not applicable, for a ``reason``."""

    name: Name
    verdict: Verdict
    questions: int = 0
    before: float = 0.0  # share of right answers before the change, weighted as the plan says
    after: float = 0.0
    found: Comparison | None = None
    detectable: float = 1.0  # smallest difference that would have been seen with a power of 80 %
    agreement: float | None = None  # share of questions with the same answer before and after; of texts alone
    changes: tuple[tuple[str, float], ...] = ()  # each change with the difference of its own questions
    reason: str = ""
    is_bound: bool = False  # ``before`` is the least that ``after`` may be, see ``certificates.Planned``
    shifts_tiles: bool = False  # see there too

    def sentence(self) -> str:
        """What was found, in words."""
        meant = _OF_A_BOUND if self.is_bound else _OF_ODD_TILES if self.shifts_tiles else MEANT[self.name]
        if self.found is None:
            return f"{self.name} is not applicable: {self.reason}."
        value = 100 * self.found.difference.value
        ends = _ends(self.found, -1 if value < 0 else 1)
        seen = f"{100 * self.detectable:.1f} points would have been seen"
        if self.detectable >= 1:
            seen = "the pictures are too few for any effect to be seen"
        elif self.detectable > self.before:
            seen += f", and before the change only {100 * self.before:.1f} % of the answers are right"
        if self.is_bound and self.found.is_distinguishable and value > 0:
            return f"{meant} costs nothing; {seen}."
        if self.verdict == "fires":
            return f"{meant} {'costs' if value < 0 else 'gains'} {abs(value):.1f} points{ends}."
        if self.found.p_value is None:
            return f"{meant} changes the score of no picture; {seen}."
        begin = f"{meant} has an effect of {value:+.1f} points{_ends(self.found, 1)}, which may be chance"
        return f"{begin}; {seen}."

    def record(self) -> dict[str, Any]:
        """The same as plain values, as ``certificates.json`` has it."""
        common = {"name": self.name, "verdict": self.verdict, "sentence": self.sentence()}
        if self.found is None:
            return {**common, "reason": self.reason}
        difference = self.found.difference
        return {
            **common,
            "questions": self.questions,
            "pictures": self.found.groups,
            "before": self.before,
            "after": self.after,
            "difference": difference.value,
            "low": difference.low,
            "high": difference.high,
            "p": self.found.p_value,
            "adjusted_p": self.found.adjusted_p,
            "detectable": self.detectable,
            "agreement": self.agreement,
            "changes": dict(self.changes),
        }


def _ends(found: Comparison, sign: int) -> str:
    low, high = found.difference.low, found.difference.high
    if low is None or high is None:
        return ""
    ends = sorted((100 * sign * low, 100 * sign * high))
    return f" ({ends[0]:.1f} to {ends[1]:.1f})"


def _largest(found: Comparison, is_bound: bool) -> float:
    """The largest effect in the interval, of a bound the largest loss; 0 where the interval has no ends."""
    low, high = found.difference.low, found.difference.high
    return 0.0 if low is None or high is None else max(-low, 0.0 if is_bound else high)


def judge(
    plan: Plan, said: Sequence[str], *, least_effect: float = LEAST_EFFECT, swaps: int | None = None
) -> list[Certificate]:
    """The certificates of the answers ``said`` to a plan's slots."""
    asked = [question for _, question in plan.slots]
    right = np.array([is_correct(one, question.references) for one, question in zip(said, asked, strict=True)], float)
    found = judge_scores(plan, right, least_effect=least_effect, swaps=swaps)
    return [
        one if one.found is None else replace(one, agreement=_agreement(plan, planned, said))
        for one, planned in zip(found, plan.certificates, strict=True)
    ]


def judge_scores(
    plan: Plan, right: np.ndarray, *, least_effect: float = LEAST_EFFECT, swaps: int | None = None
) -> list[Certificate]:
    """The same of scores ``(S,)`` from 0 to 1, one a slot."""
    applicable = [one for one in plan.certificates if one.asked]
    scores = [tuple(mixture.of(right, len(one.asked)) for mixture in (one.before, one.after)) for one in applicable]
    groups = [np.array([question.image_id for question in one.asked]) for one in applicable]
    triples = [(before, after, group) for (before, after), group in zip(scores, groups, strict=True)]
    tests = iter(zip(compare_pairs(triples, swaps=swaps), scores, strict=True))
    result = []
    for one in plan.certificates:
        if not one.asked:
            result.append(Certificate(one.name, "not applicable", reason=one.reason))
            continue
        found, (before, after) = next(tests)
        count = len(one.asked)
        detectable = min(1.0, max(found.detectable, sign_detectable(found, count)))
        fires = found.is_distinguishable and not (one.is_bound and found.difference.value > 0)
        means = float(before.mean()), float(after.mean())
        is_visible = detectable <= min(least_effect, means[0])  # right answers that there are not cannot be lost
        is_small = _largest(found, one.is_bound) <= least_effect
        verdict: Verdict = "fires" if fires else "passes" if is_visible and is_small else "cannot tell"
        each = tuple(_by_change(plan, one, right, before))
        result.append(
            Certificate(
                one.name,
                verdict,
                count,
                *means,
                found,
                detectable,
                changes=each,
                is_bound=one.is_bound,
                shifts_tiles=one.shifts_tiles,
            )
        )
    return result


def _by_change(plan: Plan, planned: Planned, right: np.ndarray, before: np.ndarray) -> list[tuple[str, float]]:
    """Each change after which questions are asked, with the mean difference of these."""
    differences: dict[Change, list[float]] = {}
    for pair, slot in zip(planned.after.pairs, planned.after.slots, strict=True):
        differences.setdefault(plan.slots[slot][0], []).append(right[slot] - before[pair])
    return [(str(change), float(np.mean(values))) for change, values in differences.items()]


def _agreement(plan: Plan, planned: Planned, said: Sequence[str]) -> float | None:
    """Share of pairs with the same answer before and after, its direction words rotated along with the panorama.

    Pairs whose right answer is another height after the change are left out.
    """
    first = dict(zip(planned.before.pairs, planned.before.slots, strict=True))
    same, total = 0.0, 0.0
    for pair, slot, weight in zip(planned.after.pairs, planned.after.slots, planned.after.weights, strict=True):
        (one, asked), (other, now) = plan.slots[first[pair]], plan.slots[slot]
        if other.pitch_deg is not None and asked.references != now.references:
            continue
        turn = other.turn_deg - one.turn_deg
        before = turn_words(said[first[pair]], turn) if asked.references != now.references else said[first[pair]]
        same += weight * (normalise(before) == normalise(said[slot]))
        total += weight
    return same / total if total else None


def fired(certificates: Sequence[Certificate]) -> list[Name]:
    """Names of those that fire."""
    return [one.name for one in certificates if one.verdict == "fires"]


def report(certificates: Sequence[Certificate], title: str, least_effect: float = LEAST_EFFECT) -> str:
    """Markdown: the table, how was tested, and a sentence a certificate."""
    rows = [["certificate", "verdict", "questions", "before", "after", "difference", "agreement", "would be seen"]]
    for one in certificates:
        if one.found is None:
            rows.append([one.name, one.verdict, *["–"] * 6])
            continue
        shares = [f"{100 * share:.1f} %" for share in (one.before, one.after)]
        difference = f"{100 * one.found.difference.value:+.1f}{_ends(one.found, 1)}"
        same = "–" if one.agreement is None else f"{100 * one.agreement:.1f} %"
        rows.append(
            [one.name, one.verdict, str(one.questions), *shares, difference, same, f"{100 * one.detectable:.1f}"]
        )
    sentences = [f"- {text[0].upper()}{text[1:]}" for text in (one.sentence() for one in certificates)]
    lines = [f"# {title}", "", *markdown_lines(rows), "", TESTS.format(least=100 * least_effect), "", *sentences]
    return "\n".join(lines) + "\n"


def picture(certificates: Sequence[Certificate], title: str, least_effect: float = LEAST_EFFECT) -> dict[str, bytes]:
    """As ``comparison.drawn`` gives it: the difference of each certificate with its interval, a line each."""
    ordered = list(reversed(certificates))
    figure = Figure(figsize=(8, 1.6 + 0.42 * len(ordered)), dpi=120, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(-100 * least_effect, 100 * least_effect, color=INK, alpha=0.06)
    axes.axvline(0, color=INK, linewidth=0.8)
    for at, one in enumerate(ordered):
        if one.found is None:
            continue
        difference = one.found.difference
        ends = (difference.value, difference.low, difference.high)
        value, low, high = (100 * (difference.value if end is None else end) for end in ends)
        form = {"fires": "s", "passes": "o"}.get(one.verdict, "^")
        bars = [[value - low], [high - value]]
        axes.errorbar([value], [at], xerr=bars, fmt=form, color=INK, capsize=4, mfc=INK if form == "s" else PAPER)
    axes.set_yticks(range(len(ordered)), [f"{one.name}: {one.verdict}" for one in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel("exact match, points after less before (interval over pictures at the level of its test)")
    axes.set_title(title, fontsize=10, parse_math=False)
    return drawn(figure, axes)


def certificates_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row a certificate and a column a run, of the records of ``certificates.json`` by run."""
    by_name = [{one["name"]: one for one in document["certificates"]} for document in runs.values()]
    names = [name for name in NAMES if any(name in each for each in by_name)]
    rows = [["certificate", *runs], *([name, *(_cell(each.get(name)) for each in by_name)] for name in names)]
    names_of: dict[str, list[str]] = {}
    for run, document in runs.items():
        names_of.setdefault(_asked_on(document), []).append(run)
    shown = "; ".join(f"{data} ({', '.join(own)})" if len(names_of) > 1 else data for data, own in names_of.items())
    head = f"Certificates (points of exact match after less before), each run's newest, of {shown}:"
    return "\n".join([head, "", *markdown_lines(rows)]) + "\n"


def _asked_on(document: Mapping[str, Any]) -> str:
    """The data and the split of the questions, which need not be those of a comparison that shows the table."""
    data, split = document["settings"]["data"], document["settings"]["split"]
    details = [f"{key}={data[key]}" for key in ("level", "seed", f"{split}_scenes", f"{split}_csv") if key in data]
    return ", ".join([f"{data['name']}-{split}", *details])


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None or "difference" not in one:
        return "–" if one is None else str(one["verdict"])
    ends = "" if one["low"] is None else f" ({100 * one['low']:.1f} to {100 * one['high']:.1f})"
    return f"{one['verdict']} {100 * one['difference']:+.1f}{ends}"
