"""QuIC-360: texts about what a query names in a panorama, with several references a question.

The released figures count each row of the file with its own reference alone; 5,349 rows of the test split are 1,030
questions, so a question counts as often as it has references. The corrected ones score each question once, against all
of its references. Which splitting of words the authors use is not stated; ``words`` chooses it for both forms.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from panollava.data.csv import Column, Table, spelling
from panollava.evaluation.benchmarks.files import picture_file
from panollava.evaluation.benchmarks.protocol import Answered, Benchmark, FormScores, Item
from panollava.evaluation.metrics import AnswerSet, compute_scores, find_metrics
from panollava.evaluation.predictions import Scored

METRICS = ("CIDEr", "BLEU", "ROUGE-L")


class Quic360(Benchmark):
    """Reads the CSV with ``url``, ``query`` and ``annotation``, and scores the answers; see the module."""

    name: ClassVar[str] = "quic360"
    patterns: ClassVar[tuple[str, ...]] = ("test.csv", "*.csv")
    new_tokens: ClassVar[int] = 128  # a few sentences
    shares_answers: ClassVar[bool] = True

    def items(self, path: Path, images: Path | None) -> list[Item]:
        """The items, a row each, named by its number as a spreadsheet counts.

        The picture of an address is the file of its last part, below `images` or the folder of the file. Rows with the
        same address and query are one question.
        """
        (file,) = self.files(path)
        table = Table(
            file, {"image": Column(("url",)), "query": Column(("query",)), "annotation": Column(("annotation",))}
        )
        found = []
        for row in table.rows():
            for column, reason in row.problems:
                raise ValueError(f"{file}, line {row.line}, column {column}: {reason}.")
            image, query, annotation = (row.cells[role].strip() for role in ("image", "query", "annotation"))
            if not image or not annotation:
                empty = table.names["annotation" if image else "image"]
                raise ValueError(f"{file}, line {row.line}, column {empty}: it is empty. Fill it or delete the row.")
            picture = picture_file(images or file.parent, image)
            group = repr((spelling(image), query))
            prompt = f"Describe the {query} in this panorama."
            found.append(Item(str(row.number), image, picture, query, prompt, (annotation,), group))
        return found

    def as_released(self, answered: Sequence[Answered]) -> FormScores:
        """Scores of rows, each against its own reference; rows without an answer are skipped."""
        there = [(one.item, one.answer) for one in answered if one.answer is not None]
        scored = [_scored(item, answer, item.references) for item, answer in there]
        return self._scores(scored, skipped=len(answered) - len(there))

    def corrected(self, answered: Sequence[Answered]) -> FormScores:
        """Scores of questions against all of their references.

        Where the rows of a question have different answers each of these counts. A question without any is empty.
        """
        references: dict[str, list[str]] = {}
        answers: dict[str, list[str]] = {}
        first: dict[str, Item] = {}
        for one in answered:
            group = one.item.group
            first.setdefault(group, one.item)
            references.setdefault(group, []).extend(one.item.references)
            said = answers.setdefault(group, [])
            if one.answer is not None and one.answer not in said:
                said.append(one.answer)
        scored = [
            _scored(first[group], answer, tuple(references[group]))
            for group, said in answers.items()
            for answer in said or [""]
        ]
        return self._scores(scored, unanswered=sum(not said for said in answers.values()))

    def _scores(self, scored: list[Scored], *, skipped: int = 0, unanswered: int = 0) -> FormScores:
        if not scored:
            return FormScores({}, 0, skipped, unanswered, 0)
        found = compute_scores(AnswerSet(scored, self.words), find_metrics(METRICS, "metrics"))
        unparsed = sum(not one.prediction.strip() for one in scored) - unanswered
        return FormScores(found.scores, len(scored), skipped, unanswered, unparsed, found.unavailable)


def _scored(item: Item, answer: str, references: tuple[str, ...]) -> Scored:
    return Scored(spelling(item.image), item.question, item.kind, answer, references)
