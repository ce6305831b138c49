"""The measure: the score by which models are ranked and compared on a set of questions, and its values by group."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from panollava.data.source import Question
from panollava.evaluation.metrics import EXACT, METRICS, AnswerSet, Metric, find_metric
from panollava.evaluation.predictions import Scored
from panollava.evaluation.statistics import Interval, mean_interval
from panollava.logs import counted

AUTO = "auto"
KEY = "evaluation.measure"
SHORT_WORDS = 2
"""Words of the median reference up to which answers are short."""
QUESTIONS_PER_ANSWER = 2
"""Questions for each distinct reference from which on answers are closed: most of them occur again."""
CAPTION_MEASURES = ("CIDEr", "ROUGE-L")
"""Measures of open answers; the first that is defined on the questions is taken."""


@dataclass(frozen=True)
class Measure:
    """The metric that ranks models on a set of questions."""

    type: str  # by which ``find_measure`` finds it
    metric: Metric
    reason: str  # why it is this one, in words

    @property
    def name(self) -> str:
        return self.metric.name

    def __str__(self) -> str:
        return f"Measure: {self.name}, {self.reason}."


def as_asked(questions: Sequence[Question]) -> list[Scored]:
    """Questions that nobody has answered yet, in the form of scored answers."""
    return [Scored(one.image_id, one.question, one.question_type, "", tuple(one.references)) for one in questions]


def choose_measure(asked: str, answers: AnswerSet) -> Measure:
    """The measure of a set of questions.

    ``auto`` depends on the references alone, so that all jobs of a sweep have the same measure. It is exact match where
    answers are short (the median reference has at most ``SHORT_WORDS`` words, in Unicode's sense) or closed (there are
    at least ``QUESTIONS_PER_ANSWER`` questions for each distinct reference, after ``normalise``). Else it is CIDEr or,
    where CIDEr is undefined, ROUGE-L.

    Args:
        asked: ``auto``, or a metric of single answers (see ``find_measure``).
        answers: the questions with their references; what was answered does not matter.

    Raises ValueError for an unknown metric, and for one that is unavailable on these questions.
    """
    if asked != AUTO:
        metric = find_measure(asked, KEY)
        if why := metric.unavailable(answers).get(metric.name):
            raise ValueError(f"{KEY}={asked!r} is unavailable on these questions: {why}. Choose another measure.")
        return Measure(asked, metric, f"as {KEY} says")
    references = [text for one in answers.scored for text in one.references]
    if not references:
        return Measure(EXACT, find_metric(EXACT, KEY), "since there are no questions")
    of_words = answers if answers.words == "unicode" else replace(answers, words="unicode")
    words = statistics.median(len(text.split()) for one in of_words.split for text in one.references)
    distinct, questions = len({answers.normalised[text] for text in references}), len(answers.scored)
    data = f"{words:g} words in the median reference, {distinct:,} distinct ones for {counted(questions, 'question')}"
    is_short, is_closed = words <= SHORT_WORDS, questions >= QUESTIONS_PER_ANSWER * distinct
    if is_short or is_closed:
        kind = "short and closed" if is_short and is_closed else "short" if is_short else "closed"
        return Measure(EXACT, find_metric(EXACT, KEY), f"since answers are {kind}: {data}")
    candidates = [find_metric(name, KEY) for name in (*CAPTION_MEASURES, EXACT)]
    reasons = {one.name: one.undefined(answers).get(one.name) for one in candidates}
    metric = next(one for one in candidates if not reasons[one.name])
    undefined = "".join(f"; {name} is undefined, as it {why}" for name, why in reasons.items() if why)
    return Measure(metric.name, metric, f"since answers are open texts: {data}{undefined}")


def find_measure(measure: str, key: str = "measure") -> Metric:
    """A metric that scores single answers, so that models can be compared by question; ValueError for others."""
    metric = find_metric(measure, key)
    if type(metric).per_answer is Metric.per_answer:
        available = [name for name in METRICS if type(find_metric(name, "")).per_answer is not Metric.per_answer]
        raise ValueError(f"{key}={measure!r} does not score single answers. Available: {', '.join(available)}.")
    return metric


def check_measure(measure: Any) -> list[str]:
    """Problems of a measure's name; its type is checked with the other keys of its section."""
    try:
        if isinstance(measure, str) and measure != AUTO:
            find_measure(measure, KEY)
    except ValueError as error:
        return [str(error)]
    return []


def recorded_scores(metrics: Mapping[str, Any]) -> tuple[str, dict[str, Interval]]:
    """The measure and all available scores of a ``metrics.json``; exact match is the measure of older ones."""
    scores = {EXACT: Interval(metrics["exact_match"], *(metrics.get("interval") or (None, None)))}
    others = metrics.get("captions", {}).get("scores") or {}
    scores |= {name: Interval(**value) for name, value in others.items() if value is not None}
    return metrics.get("measure", EXACT), scores


@dataclass(frozen=True)
class GroupScore:
    """Scores of the questions of one group."""

    count: int
    scores: dict[str, Interval]  # exact match, and the measure where it is another one


Groups = dict[str, dict[str, GroupScore]]
"""Scores by the name of a column and by its value."""


def group_scores(answers: AnswerSet, measure: Metric) -> Groups:
    """Scores by the groups of the answers, with 95 % intervals over pictures.

    What a metric takes from all answers, as CIDEr its document frequencies, it takes from all of them for every group.
    ``measure`` is an available metric of single answers.
    """
    names = dict.fromkeys(name for one in answers.scored for name, _ in one.groups)
    groups = {name: [dict(one.groups).get(name, "") for one in answers.scored] for name in names}
    if not groups:
        return {}
    exact = find_metric(EXACT, "")
    metrics = [exact] if measure.name == EXACT else [measure, exact]
    values = {one.name: (np.asarray(one.per_answer(answers), dtype=np.float64), one.top) for one in metrics}
    images = np.array(answers.images)
    found: Groups = {}
    for name, own in groups.items():
        members = {value: np.array(own) == value for value in sorted(set(own))}
        found[name] = {
            value: GroupScore(
                int(where.sum()),
                {
                    metric: mean_interval(scores[where], images[where].tolist(), top=top)
                    for metric, (scores, top) in values.items()
                },
            )
            for value, where in members.items()
        }
    return found


def groups_record(groups: Groups) -> dict[str, dict[str, Any]]:
    """As JSON keeps them."""
    return {name: {value: asdict(one) for value, one in members.items()} for name, members in groups.items()}


def group_lines(groups: Groups) -> list[str]:
    """A line a group, under a heading for each column."""
    lines: list[str] = []
    for name, members in groups.items():
        lines.append(f"By {name}:")
        for value, one in members.items():
            scores = ", ".join(f"{metric} {interval}" for metric, interval in one.scores.items())
            lines.append(f"  {value or 'empty'}: {counted(one.count, 'question')}, {scores}")
    return lines
