"""Answers of a file to the items of a set, and both forms of its scores side by side."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from panollava.data.csv import Column, Table, is_address, spelling
from panollava.evaluation.benchmarks.protocol import Answered, Benchmark, FormScores, Item
from panollava.evaluation.predictions import ALIASES

ID = ("item_id", "id", "no.", "item")
"""Accepted names of the column of ids."""
By = Literal["id", "prompt", "question"]
"""What the rows of a file name their items by, beside the picture."""
_COUNTS = {
    "scored": "scored",
    "skipped": "skipped, they count for nothing",
    "unanswered": "without an answer, counted as wrong",
    "unparsed": "with nothing to read in the answer",
}


@dataclass(frozen=True)
class BenchmarkReport:
    """Both forms of the scores of a set."""

    benchmark: str
    items: int
    pictures: int
    as_released: FormScores
    corrected: FormScores

    def record(self) -> dict[str, Any]:
        """As JSON keeps it."""
        counts = {"benchmark": self.benchmark, "items": self.items, "pictures": self.pictures}
        return counts | {"as_released": self.as_released.record(), "corrected": self.corrected.record()}

    def table(self) -> str:
        """Markdown: a line a score, and then a line a count."""
        forms = (self.as_released, self.corrected)
        names = list(dict.fromkeys(name for one in forms for name in (*one.scores, *one.unavailable)))
        lines = ["| score (95 % interval over pictures, from five on) | as released | corrected |", "|---|---|---|"]
        lines += [f"| {name} | {' | '.join(_shown(one, name) for one in forms)} |" for name in names]
        for key, words in _COUNTS.items():
            lines.append(f"| {words} | {' | '.join(f'{getattr(one, key):,}' for one in forms)} |")
        return "\n".join(lines)


def score_benchmark(benchmark: Benchmark, answered: Sequence[Answered]) -> BenchmarkReport:
    """Both forms of the scores of answers; ValueError where no item has an answer."""
    if all(one.answer is None for one in answered):
        raise ValueError(f"No item of {benchmark.name} has an answer. Check the file of predictions.")
    pictures = len({one.item.image for one in answered})
    forms = benchmark.as_released(answered), benchmark.corrected(answered)
    return BenchmarkReport(benchmark.name, len(answered), pictures, *forms)


def read_answers(
    path: Path, items: Sequence[Item], *, shares_answers: bool, named: Mapping[str, str | None]
) -> list[Answered]:
    """The items with the answers of a CSV file, in the order of the items.

    A row names its item by an id, or by its picture and question. The picture of an address may be named by its file,
    and the question may be the whole prompt; where each row has one, it tells orders of options apart. Where several
    items have the same, their rows are in the order of the items, as many as there are items.

    Args:
        path: UTF-8 CSV file.
        items: of the set.
        shares_answers: whether one row may answer all items with its picture and question.
        named: name of the column of each role, image, query and prediction; None finds it by the accepted names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is malformed, or a row names no item, or an item that has an answer already.
    """
    if not path.is_file():
        raise FileNotFoundError(f"predictions={path}: there is no such file. Name a CSV of predictions.")
    roles = ("image", "query", "prediction")
    columns = {
        role: Column(ALIASES[role], f"{role}_column", named.get(role), is_needed=role == "prediction") for role in roles
    }
    table = Table(path, columns | {"id": Column(ID, is_needed=False)})
    has_ids = "id" in table.names
    if not has_ids and not {"image", "query"} <= table.names.keys():
        raise ValueError(
            f"{path}: no column names the items. Give a column {ID[0]}, or the picture and the question, such as "
            f"{ALIASES['image'][0]} and {ALIASES['query'][0]}. Columns found: {', '.join(table.header)}."
        )
    given: dict[tuple[str, ...], list[str]] = {}
    places: dict[tuple[str, ...], int] = {}
    rows = []
    for row in table.rows():
        for column, reason in row.problems:
            raise ValueError(f"{path}, line {row.line}, column {column}: {reason}.")
        cells = {role: row.cells.get(role, "").strip() for role in ("id", "image", "query")}
        rows.append((row, (cells["id"],) if has_ids else (spelling(cells["image"]), cells["query"])))
    # Orders of options share the question, and each has a prompt of its own.
    prompts = {(image, one.prompt.strip()) for one in items for image in _images(one)}
    by: By = "id" if has_ids else "prompt" if all(spelt in prompts for _, spelt in rows) else "question"
    known = {spelt: _key(one, by) for one in items for spelt in _spellings(one, by)}
    for row, spelt in rows:
        if spelt not in known:
            raise ValueError(
                f"{path}, line {row.line}: {' and '.join(map(repr, spelt))} names no item of the set, such as "
                f"{' and '.join(map(repr, _key(items[0], by)))}. Mend the row, or choose the right set."
            )
        key = known[spelt]
        given.setdefault(key, []).append(row.cells["prediction"])
        places[key] = row.line
    return _matched(path, items, given, places, by, shares_answers)


def _matched(
    path: Path,
    items: Sequence[Item],
    given: Mapping[tuple[str, ...], list[str]],
    places: Mapping[tuple[str, ...], int],
    by: By,
    shares_answers: bool,
) -> list[Answered]:
    """The items with their answers; ValueError where the numbers of rows and of items do not fit."""
    wanted = Counter(_key(one, by) for one in items)
    for key, texts in given.items():
        if len(texts) != wanted[key] and not (shares_answers and len(texts) == 1):
            raise ValueError(
                f"{path}, line {places[key]}: {len(texts)} answers to {' and '.join(map(repr, key))}, which is "
                f"{wanted[key]} items. Give one for each, or name the items in a column {ID[0]}."
            )
    left = {key: list(texts) for key, texts in given.items()}
    found = []
    for one in items:
        texts = left.get(_key(one, by), [])
        is_shared = shares_answers and len(given.get(_key(one, by), [])) == 1
        found.append(Answered(one, (texts[0] if is_shared else texts.pop(0)) if texts else None))
    return found


def _key(item: Item, by: By) -> tuple[str, ...]:
    return (item.id,) if by == "id" else (spelling(item.image), getattr(item, by).strip())


def _images(item: Item) -> list[str]:
    """How a row may name the picture of an item."""
    return [spelling(item.image), *([spelling(item.picture.name)] if is_address(item.image) else [])]


def _spellings(item: Item, by: By) -> list[tuple[str, ...]]:
    """How a row may name an item."""
    if by == "id":
        return [(item.id,)]
    texts = (item.prompt,) if by == "prompt" else (item.question, item.prompt)
    return [(image, text.strip()) for image in _images(item) for text in texts]


def _shown(form: FormScores, name: str) -> str:
    if name in form.unavailable:
        return f"unavailable: {form.unavailable[name]}"
    return str(form.scores[name]) if name in form.scores else "–"
