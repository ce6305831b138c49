"""The items of a public benchmark as a data source, so that a model is asked them as it is any other question."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from panollava.data.source import FREE_TEXT, DataSource, Question, Record
from panollava.evaluation.benchmarks.protocol import Answered, Benchmark, Item
from panollava.evaluation.predictions import Prediction


class BenchmarkSource(DataSource):
    """A question for each item; items that may share an answer are one question with all of their references.

    Args:
        benchmark: the set.
        items: of the set, whose pictures are there.
        reader: decodes a picture file to (H, W, 3) uint8 RGB, such as ``Crop.read``.
    """

    def __init__(self, benchmark: Benchmark, items: Sequence[Item], reader: Callable[[Path], np.ndarray]) -> None:
        self.name, self.items, self._reader = benchmark.name, items, reader
        groups: dict[str, list[Item]] = {}
        for one in items:
            groups.setdefault(one.group if benchmark.shares_answers else one.id, []).append(one)
        self._asked = {f"{self.name}-{own[0].id}": own for own in groups.values()}
        self._first = [own[0] for own in groups.values()]

    def __len__(self) -> int:
        return len(self._first)

    def record(self, index: int, epoch: int) -> Record:
        """Question `index` with its first reference."""
        item = self._first[index]
        return Record(f"{self.name}-{item.id}", ((item.prompt, item.references[0]),))

    def image_id(self, index: int) -> str:
        """Name of the picture in the set's files."""
        return self._first[index].image

    def picture(self, index: int) -> Path:
        """File of the picture of question `index`."""
        return self._first[index].picture

    def panorama(self, index: int) -> np.ndarray:
        """Picture of question `index`, (H, W, 3) uint8 RGB."""
        return self._reader(self.picture(index))

    def questions(self) -> list[Question]:
        """The questions in the order of the items; ``question`` is the prompt with its options."""
        return [
            Question(
                sample_id=sample_id,
                image_id=own[0].image,
                history=(),
                question=own[0].prompt,
                references=tuple(text for one in own for text in one.references),
                question_type=own[0].kind or FREE_TEXT,
            )
            for sample_id, own in self._asked.items()
        ]

    def question_picture(self, question: Question) -> Path:
        """File of the picture that `question` asks about."""
        return self._asked[question.sample_id][0].picture

    def question_panorama(self, question: Question) -> np.ndarray:
        """That picture, (H, W, 3) uint8 RGB."""
        return self._reader(self.question_picture(question))

    def answered(self, predictions: Sequence[Prediction]) -> list[Answered]:
        """The items that were asked with their answers, in the order of the items."""
        said = {item.id: one.prediction for one in predictions for item in self._asked[one.sample_id]}
        return [Answered(one, said[one.id]) for one in self.items if one.id in said]
