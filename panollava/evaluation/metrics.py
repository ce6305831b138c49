"""The metrics: what a metric is, which there are, and the scores of a set of answers with their intervals.

Legend: ``Q`` answers.
"""

import inspect
import pkgutil
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from panollava.component import closest, outside_class, outside_packages
from panollava.evaluation.ngrams import ReferenceNGrams
from panollava.evaluation.predictions import Form, Scored
from panollava.evaluation.statistics import Interval, mean_interval
from panollava.evaluation.words import Words, normalise, split_words

EXACT = "exact match"
METRICS = {
    EXACT: "panollava.evaluation.exact_match:ExactMatch",
    "BLEU": "panollava.evaluation.captions:Bleu",
    "ROUGE-L": "panollava.evaluation.captions:RougeL",
    "CIDEr": "panollava.evaluation.captions:Cider",
    "SPICE": "panollava.evaluation.captions:Spice",
    "METEOR": "panollava.evaluation.captions:Meteor",
    "CLIP-score": "panollava.evaluation.captions:ClipScore",
}
"""Class of each metric, in the order of tables and files. They are imported on use, since they import this module."""
ORDER = 4  # words of the longest n-gram
Pictures = Callable[[str], np.ndarray]  # image id -> panorama (H, W, 3) uint8 RGB
Need = Literal["meteor", "java", "clip", "pictures"]


@dataclass(frozen=True, eq=False)
class AnswerSet:
    """Answers to score, with everything that metrics may need."""

    scored: Sequence[Scored]  # ``Q`` answers as they were written, each with one reference at least
    words: Words = "unicode"  # how caption scores split texts
    meteor: bool = False  # whether METEOR is wanted; it takes most of a minute for some thousand answers
    pictures: Pictures | None = None  # gives the panoramas by their image ids; None where there are none
    clip: Any = None  # a ``panollava.evaluation.clip.Clip``, None without one

    @property
    def images(self) -> list[str]:
        """Image id of each answer: the groups of every interval."""
        return [one.image_id for one in self.scored]

    @cached_property
    def texts(self) -> list[str]:
        """The distinct answers and references: what depends on a text alone is computed once."""
        return list(dict.fromkeys(text for one in self.scored for text in (one.prediction, *one.references)))

    @cached_property
    def normalised(self) -> dict[str, str]:
        """Each text as exact match compares it; see ``normalise``."""
        return {text: normalise(text) for text in self.texts}

    @cached_property
    def split(self) -> list[Scored]:
        """The answers with their texts as words, separated by spaces; see ``split_words``."""
        split = dict(zip(self.texts, split_words(self.texts, self.words), strict=True))
        references = {each: tuple(map(split.__getitem__, each)) for each in {one.references for one in self.scored}}
        return [
            replace(one, prediction=split[one.prediction], references=references[one.references]) for one in self.scored
        ]

    @cached_property
    def reference_ngrams(self) -> ReferenceNGrams:
        """The n-grams of 1 to ``ORDER`` words in the references of ``split``."""
        return ReferenceNGrams([one.references for one in self.split], ORDER)


class Metric:
    """A metric. A subclass has a ``name`` and ``per_answer`` or, where it scores the set as a whole, ``scores``.

    To add one, write the class and a line of ``METRICS``, or name a class of another package in ``evaluation.metrics``:
    ``[BLEU, my_package.my_module:MyMetric]``. The constructor takes no arguments.
    """

    name: ClassVar[str]  # in configs and, of a metric with one score, in tables and files
    needs: ClassVar[tuple[Need, ...]] = ()  # what the score is unavailable without, beside answers and references
    top: ClassVar[float] = 1.0  # highest possible score of an answer; a share has 1 and is shown in percent

    def undefined(self, answers: AnswerSet) -> dict[str, str]:
        """Scores that mean nothing on these answers, by name, each with the reason."""
        return {}

    def per_answer(self, answers: AnswerSet) -> np.ndarray:
        """``(Q,)``: the score of each answer, from 0 to ``top``."""
        raise NotImplementedError(f"{self.name} scores a set of answers as a whole.")

    def scores(self, answers: AnswerSet) -> dict[str, Interval]:
        """Scores by name, with 95 % intervals over pictures; by default the mean of ``per_answer``."""
        values, count = np.asarray(self.per_answer(answers), dtype=np.float64), len(answers.scored)
        if values.shape != (count,) or not ((values >= 0) & (values <= self.top * (1 + 1e-9))).all():
            raise ValueError(
                f"The metric {self.name!r} must give {count} numbers from 0 to {self.top:g}, not {values}."
            )
        return {self.name: mean_interval(values, answers.images, top=self.top)}

    def unavailable(self, answers: AnswerSet) -> dict[str, str]:
        """Scores that cannot be given, by name, each with the reason: what is missing, else what is undefined."""
        missing = [why for is_met, why in map(_NEEDS.__getitem__, self.needs) if not is_met(answers)]
        return {self.name: missing[0]} if missing else self.undefined(answers)


_NEEDS: dict[Need, tuple[Callable[[AnswerSet], bool], str]] = {
    "meteor": (lambda answers: answers.meteor, "was not requested"),
    "java": (lambda _: shutil.which("java") is not None, "needs Java, and no java is on the PATH"),
    "clip": (lambda answers: answers.clip is not None, "needs a CLIP, and none is named (clip=<folder>)"),
    "pictures": (lambda answers: answers.pictures is not None, "needs pictures, and there are none (images=<folder>)"),
}


def find_metric(type: str, key: str) -> Metric:
    """A metric by name or by ``my_package.my_module:Class``; without it a ValueError, which names the key."""
    if type in METRICS:
        found: Any = pkgutil.resolve_name(METRICS[type])
    elif ":" in type:
        found = outside_class(type, key, Metric)
        if not isinstance(getattr(found, "name", None), str):
            raise ValueError(f"{key}={type}: the class has no name. Give it one, such as name = 'distinct words'.")
        if wrong := set(found.needs) - _NEEDS.keys():
            raise ValueError(f"{key}={type}: needs={sorted(wrong)}: allowed are {', '.join(_NEEDS)}.")
        if any(each.default is each.empty for each in inspect.signature(found).parameters.values()):
            raise ValueError(f"{key}={type}: the class has arguments without a default. A metric is built without any.")
    else:
        close = closest(type, METRICS)
        hint = f" Did you mean {close!r}?" if close else ""
        raise ValueError(
            f"{key}: there is no {type!r}.{hint} Available: {', '.join(METRICS)}, or a class of another package, "
            "my_package.my_module:MyMetric."
        )
    return found()


def find_metrics(types: Sequence[str] | None, key: str) -> list[Metric]:
    """The metrics beside exact match, which is always computed; None takes all. ValueError: unknown or double ones."""
    found = [find_metric(one, key) for one in types or METRICS if one != EXACT]
    if twice := sorted(name for name, count in Counter([EXACT, *(one.name for one in found)]).items() if count > 1):
        raise ValueError(f"{key}={list(types or ())}: {', '.join(twice)} is listed twice. Name each metric once.")
    return found


def metrics_record(types: Sequence[str] | None) -> dict[str, Any]:
    """What results record of a list of metrics: the list, and the versions of other packages; nothing of None."""
    return {} if types is None else {"metrics": list(types), "packages": outside_packages({"metrics": types})}


def check_metrics(types: Any, key: str) -> list[str]:
    """Problems of a list of metrics; its type is checked with the other keys of its section."""
    try:
        if isinstance(types, list) and all(isinstance(one, str) for one in types):
            find_metrics([one for one in types if one not in METRICS or types.count(one) > 1], key)
    except ValueError as error:
        return [str(error)]
    return []


@dataclass(frozen=True)
class Scores:
    """Scores by name, and the reasons why others are unavailable."""

    scores: dict[str, Interval]
    unavailable: dict[str, str]

    def record(self) -> dict[str, Any]:
        """As JSON keeps it: an unavailable score is null."""
        found = asdict(self)
        return found | {"scores": found["scores"] | dict.fromkeys(self.unavailable)}

    def lines(self) -> list[str]:
        """A line a score, with its interval or the reason why it is unavailable."""
        there = [f"{name}: {interval}" for name, interval in self.scores.items()]
        return [*there, *(f"{name}: unavailable, {why}" for name, why in sorted(self.unavailable.items()))]


def compute_scores(answers: AnswerSet, metrics: Sequence[Metric]) -> Scores:
    """The scores of all metrics; ValueError where there are no answers, or one has no reference."""
    if not answers.scored:
        raise ValueError("There are no answers to score.")
    if any(not one.references for one in answers.scored):
        raise ValueError("Each answer needs a reference to be scored against.")
    unavailable = {name: why for metric in metrics for name, why in metric.unavailable(answers).items()}
    usable = [metric for metric in metrics if metric.name not in unavailable]
    with ThreadPoolExecutor(max_workers=1) as other_core:  # for Java, which takes longest
        java = {one.name: other_core.submit(one.scores, answers) for one in usable if "java" in one.needs}
        found = {one.name: one.scores(answers) for one in usable if one.name not in java}
        found |= {name: one.result() for name, one in java.items()}
    counts = Counter(name for each in found.values() for name in each)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise ValueError(f"{', '.join(twice)} is the name of scores of two metrics. Rename one of them.")
    scores = {name: one for metric in usable for name, one in found[metric.name].items() if name not in unavailable}
    return Scores(scores, unavailable)


@dataclass(frozen=True)
class ScoreReport:
    """Scores of a file of predictions."""

    form: Form  # which references an answer is scored against; see ``read_predictions``
    words: Words  # how caption scores split texts
    answers: int  # number of scored answers
    pairs: int  # number of distinct questions about distinct images; the same words in another turn are another one
    images: int  # number of distinct images, the groups of the intervals
    scores: dict[str, Interval]
    kinds: dict[str, Interval]  # exact match of each question type
    unavailable: dict[str, str]  # other scores, each with the reason

    def record(self) -> dict[str, Any]:
        """As JSON keeps it: an unavailable score is null."""
        found = asdict(self)
        return found | {"scores": found["scores"] | dict.fromkeys(self.unavailable)}

    def table(self) -> str:
        """Markdown: a line a score."""
        rows = [(name, str(interval)) for name, interval in self.scores.items()]
        rows += [(f"{EXACT}, {kind}", str(interval)) for kind, interval in self.kinds.items() if len(self.kinds) > 1]
        rows += [(name, f"unavailable: {why}") for name, why in sorted(self.unavailable.items())]
        lines = ["| score | value (95 % interval over pictures, from five on) |", "|---|---|"]
        return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)])


def score(answers: AnswerSet, metrics: Sequence[Metric], *, form: Form) -> ScoreReport:
    """All scores of a file of predictions, exact match first; `form` is recorded, the references are already of it."""
    exact = find_metric(EXACT, "")
    found = compute_scores(answers, [exact, *metrics])
    right, images = exact.per_answer(answers), np.array(answers.images)
    kinds = np.array([one.kind for one in answers.scored])
    of_kind = {kind: kinds == kind for kind in sorted({*kinds.tolist()})}
    by_kind = {kind: mean_interval(right[own], images[own].tolist()) for kind, own in of_kind.items()}
    counts = len(answers.scored), len({one.asked for one in answers.scored}), len(set(answers.images))
    return ScoreReport(form, answers.words, *counts, found.scores, by_kind, found.unavailable)
