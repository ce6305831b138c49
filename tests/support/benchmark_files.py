"""The fixtures of public benchmarks, with small pictures beside their files."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from panollava.evaluation.benchmarks.protocol import Answered, Benchmark, FormScores, Item, find_benchmark
from support import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "benchmarks"
SETS = {
    "panospace": ("panospace", "panospace", "benchmark.jsonl"),
    "bench360": ("bench360", "bench360", "bench360.tsv"),
    "panoenv": ("panoenv", "panoenv", "test.jsonl"),
    "eagle": ("direction360", "direction360/eagle", "eagle360.jsonl"),
    "hstar": ("direction360", "direction360/hstar", "set"),
    "quic360": ("quic360", "quic360", "test.csv"),
}
"""Set -> name of the benchmark, folder of the fixture, and its file or folder."""


class Fixture:
    """A set in a folder of its own, whose pictures are there."""

    def __init__(self, name: str, folder: Path) -> None:
        benchmark, source, file = SETS[name]
        shutil.copytree(FIXTURES / source, folder, dirs_exist_ok=True)
        self.name, self.folder, self.path = benchmark, folder, folder / file
        self.benchmark: Benchmark = find_benchmark(benchmark)  # type: ignore[arg-type]
        for each in folder.glob("set/*/annotation.json"):
            _paint(each.with_name("panorama.jpg"))
        self.items = self.benchmark.items(self.path, None)
        for item in self.items:
            _paint(item.picture)
        self.cases = _lines(folder / "cases.jsonl")
        self.expected: dict[str, Any] = json.loads((folder / "expected.json").read_text("utf-8"))

    def answered(self) -> list[Answered]:
        """The items with the answers of the cases."""
        if "id" not in self.cases[0]:
            said = {(one["image"], one["question"]): one["answer"] for one in self.cases}
            return [Answered(one, said[one.image, one.question]) for one in self.items]
        answers = {one["id"]: one["answer"] for one in self.cases}
        assert list(answers) == [one.id for one in self.items]
        return [Answered(one, answers[one.id]) for one in self.items]

    def item(self, id: str) -> Item:
        """The item of an id."""
        return next(one for one in self.items if one.id == id)


def different(found: FormScores, expected: dict[str, Any]) -> dict[str, Any]:
    """What differs from the expected sums, counts and numbers; scores are pairs of a sum and a number."""
    said: dict[str, Any] = {name: found.scores[name].value for name in expected["scores"]}
    wanted = {name: total / count for name, (total, count) in expected["scores"].items()}
    wrong = {name: (said[name], wanted[name]) for name in wanted if abs(said[name] - wanted[name]) > 1e-6}
    counts = {key: expected[key] for key in ("scored", "unparsed", "skipped") if key in expected}
    return wrong | {key: (getattr(found, key), value) for key, value in counts.items() if getattr(found, key) != value}


def _paint(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = tuple(hashlib.sha256(path.name.encode()).digest()[:3])
    Image.new("RGB", (32, 16), colour).save(path)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
