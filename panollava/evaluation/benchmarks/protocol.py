"""What a public benchmark is: its items, the scores of answers in two forms, and the list of sets.

``as_released`` gives the figures of the authors' function, faults included, so that they compare with published ones.
``corrected`` gives the figures without those faults. Legend: ``Q`` items.
"""

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from panollava.data.csv import is_address, wrong_text
from panollava.evaluation.benchmarks.files import chosen_file
from panollava.evaluation.statistics import Interval, finite, mean_interval
from panollava.evaluation.words import Words

Name = Literal["panospace", "bench360", "panoenv", "direction360", "quic360"]
BENCHMARKS: dict[Name, str] = {
    "panospace": "panollava.evaluation.benchmarks.panospace:PanoSpace",
    "bench360": "panollava.evaluation.benchmarks.bench360:Bench360",
    "panoenv": "panollava.evaluation.benchmarks.panoenv:PanoEnv",
    "direction360": "panollava.evaluation.benchmarks.direction360:Direction360",
    "quic360": "panollava.evaluation.benchmarks.quic360:Quic360",
}
"""Class of each set. They are imported on use, since they import this module."""
Box = tuple[float, float, float, float]
"""Yaw and pitch of the centre, horizontal and vertical extent, in degrees and in the convention of the set."""


@dataclass(frozen=True)
class Item:
    """A question of a set, as a model is to be asked it."""

    id: str
    image: str  # name of the picture in the set's files: the group of intervals
    picture: Path  # its file
    question: str
    prompt: str  # the question with its options in the given order, and how to answer
    references: tuple[str, ...]
    group: str  # shared by the items that ask one question: in other orders of options, or with other references
    kind: str = ""  # by which scores are reported too
    options: tuple[tuple[str, str], ...] = ()  # (letter, text), in the given order
    method: str = ""  # how an answer is compared, where a set has several ways
    box: Box | None = None  # the right box, or the box around the right direction


@dataclass(frozen=True)
class Answered:
    """An item with the model's answer; None where there is none."""

    item: Item
    answer: str | None


@dataclass(frozen=True)
class Mark:
    """What one answer gets."""

    values: dict[str, float]  # by score; an answer without one does not count for it
    is_parsed: bool = True


@dataclass(frozen=True)
class FormScores:
    """The scores of a set in one form, with 95 % intervals over pictures."""

    scores: dict[str, Interval]
    scored: int  # items, or questions where items are grouped
    skipped: int  # items that count for nothing
    unanswered: int  # items without an answer that count as wrong
    unparsed: int  # answers in which nothing was found, which are wrong
    unavailable: dict[str, str] = field(default_factory=dict)  # other scores, each with the reason

    def record(self) -> dict[str, Any]:
        """As JSON keeps it: an unavailable score is null."""
        found: dict[str, Any] = finite(asdict(self))
        return found | {"scores": found["scores"] | dict.fromkeys(self.unavailable)}


class Benchmark:
    """A public benchmark.

    A subclass has a ``name`` and ``patterns``, and implements ``items`` and both marks or, where scores are no means of
    marks, ``as_released`` and ``corrected``.

    Args:
        words: how caption scores split texts.
        key: the config key of the set's files, for messages.
    """

    name: ClassVar[str]
    patterns: ClassVar[tuple[str, ...]]  # names of the set's file in a folder, the most likely one first
    shares_answers: ClassVar[bool] = False  # whether items with one picture and question may share one answer
    by_kind: ClassVar[tuple[str, ...]] = ("accuracy",)  # scores that are given for each kind too
    tops: ClassVar[Mapping[str, float]] = {}  # highest value of scores whose highest is not 1
    new_tokens: ClassVar[int] = 64
    """Longest answer in tokens: the authors' where they state it, else enough for the form of answer."""

    def __init__(self, *, words: Words = "unicode", key: str = "benchmark_files") -> None:
        self.words, self.key = words, key

    def read(self, path: Path, images: Path | None = None) -> list[Item]:
        """The items of the set, in the order of its files. Nothing is downloaded.

        Args:
            path: the file, or the folder that holds it.
            images: folder that names of pictures start from; None takes the file's own.

        Raises:
            FileNotFoundError: a file of the set, or a picture, is not there.
            ValueError: a file is malformed, there are no items, or two addresses end in one name of a file.
        """
        if not path.exists():
            raise FileNotFoundError(
                f"{self.key}={path}: there is no such file or folder. Name the set's file, or the folder that holds it."
            )
        found = self.items(path, images)
        if not found:
            raise ValueError(f"{self.key}={path}: there are no items of {self.name}. Check the file.")
        missing = list(dict.fromkeys(str(one.picture) for one in found if not one.picture.is_file()))
        if missing:
            named = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
            raise FileNotFoundError(
                f"{self.key}={path}: {len(missing)} pictures of {self.name} are not there ({named}). Put them "
                "there, or name the folder that their names start from with images=<folder>."
            )
        self._check_addresses(path, found)
        seen: set[str] = set()
        for one in found:
            texts = (one.id, one.image, one.kind, one.prompt, *one.references)
            if reason := next(filter(None, map(wrong_text, texts)), ""):
                raise ValueError(f"{self.key}={path}: the item {one.id!a}: {reason}. Mend the file.")
            if one.id in seen:
                raise ValueError(f"{self.key}={path}: the item {one.id} is there twice. Delete one of them.")
            seen.add(one.id)
        return found

    def _check_addresses(self, path: Path, items: Sequence[Item]) -> None:
        """Refuses addresses of several pictures that one file stands for."""
        first: dict[Path, str] = {}
        for one in items:
            if is_address(one.image):
                address = urlsplit(one.image)._replace(scheme="", query="", fragment="").geturl()
                if (other := first.setdefault(one.picture, address)) != address:
                    raise ValueError(
                        f"{self.key}={path}: the file {one.picture} would be the picture of {other} and of {address}. "
                        "Keep each under a name of its own, and write these names into the set's file."
                    )

    def files(self, path: Path) -> list[Path]:
        """The files of the set that hold its items; raises FileNotFoundError and ValueError as ``chosen_file``."""
        return [chosen_file(path, self.patterns, self.key)]

    def items(self, path: Path, images: Path | None) -> list[Item]:
        """As ``read``, without a check of the pictures and of ids."""
        raise NotImplementedError

    def as_released(self, answered: Sequence[Answered]) -> FormScores:
        """Scores as the authors' function computes them, ``(Q,)`` answers; what it does not see is skipped."""
        there = [(one.item, self.released_mark(one.item, one.answer)) for one in answered if one.answer is not None]
        marks = [(item, mark) for item, mark in there if mark is not None]
        return averaged(marks, skipped=len(answered) - len(marks), by_kind=self.by_kind)

    def corrected(self, answered: Sequence[Answered]) -> FormScores:
        """Scores without the faults of that function; an item without an answer is wrong."""
        marks = [(one.item, self.corrected_mark(one.item, one.answer or "")) for one in answered]
        unanswered = sum(one.answer is None for one in answered)
        return averaged(marks, unanswered=unanswered, by_kind=self.by_kind, tops=self.tops)

    def released_mark(self, item: Item, answer: str) -> Mark | None:
        """What the authors' function gives an answer; None where it does not see the item."""
        raise NotImplementedError

    def corrected_mark(self, item: Item, answer: str) -> Mark:
        """What an answer gets without the faults of that function; an empty one says nothing."""
        raise NotImplementedError


def find_benchmark(name: Name, *, words: Words = "unicode", key: str = "benchmark_files") -> Benchmark:
    """The set of a name; for `words` and `key` see ``Benchmark``."""
    found: type[Benchmark] = pkgutil.resolve_name(BENCHMARKS[name])
    return found(words=words, key=key)


def averaged(
    marks: Sequence[tuple[Item, Mark]],
    *,
    skipped: int = 0,
    unanswered: int = 0,
    by_kind: Sequence[str] = (),
    tops: Mapping[str, float] | None = None,
) -> FormScores:
    """Means of the marks of items ``(Q,)``.

    Args:
        marks: of each item that counts.
        skipped: number of items that do not.
        unanswered: number of marks of items without an answer.
        by_kind: scores that are given for each kind too.
        tops: highest value of scores whose highest is not 1.
    """
    rows: dict[str, list[tuple[float, str]]] = {}
    for item, mark in marks:
        for name, value in mark.values.items():
            rows.setdefault(name, []).append((value, item.image))
    kinds = sorted({item.kind for item, _ in marks})
    for name in by_kind if len(kinds) > 1 else ():
        for kind in kinds:
            own = [(mark.values[name], item.image) for item, mark in marks if item.kind == kind and name in mark.values]
            if own:
                rows[f"{name}, {kind or 'no kind'}"] = own
    scores = {}
    for name, found in rows.items():
        values, pictures = zip(*found, strict=True)
        scores[name] = mean_interval(values, pictures, top=(tops or {}).get(name, 1.0))
    unparsed = sum(not mark.is_parsed for _, mark in marks) - unanswered
    return FormScores(scores, len(marks), skipped, unanswered, unparsed)


def grouped_orders(marks: Sequence[tuple[Item, Mark]]) -> list[tuple[Item, Mark]]:
    """One mark a question ``(G,)``: the mean accuracy over its orders of options, and whether all orders are right.

    The mark is parsed; those of its orders are counted before.
    """
    groups: dict[str, list[tuple[Item, Mark]]] = {}
    for item, mark in marks:
        groups.setdefault(item.group, []).append((item, mark))
    found = []
    for own in groups.values():
        right = [mark.values["accuracy"] for _, mark in own]
        values = {"accuracy": sum(right) / len(right), "right in all orders": float(min(right) == 1)}
        found.append((own[0][0], Mark(values)))
    return found
