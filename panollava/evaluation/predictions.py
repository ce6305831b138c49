"""Predictions: answered questions, CSV files of them, and the log from which a stopped evaluation resumes."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from panollava.data.csv import Column, Row, Table, spelling, wrong_text
from panollava.data.source import Question
from panollava.disk import writing

PREDICTIONS, METRICS = "predictions.csv", "metrics.json"  # the files of an evaluation's folder
UNFINISHED = ".unfinished"  # folder of the logs of evaluations that have not ended
ALIASES = {
    "image": ("image_id", "image", "url", "image_path", "image_url", "image_file", "file_name", "filename", "path"),
    "query": ("question", "query", "instruction", "prompt"),
    "prediction": ("prediction", "answer_predicted", "generated", "hypothesis", "output"),
    "reference": ("reference", "annotation", "answer", "response", "caption", "ground_truth", "label"),
    "references": ("references",),
    "kind": ("kind", "question_type", "type"),
    "turn": ("turn", "turn_id"),
    "history": ("history",),
    "score_by": ("score_by",),
}
"""Accepted names of each column. Required are the image, the prediction, and one of the two for references."""
KEYED = ("image", "query", "prediction", "reference")  # columns that ``score`` has a key for
Form = Literal["grouped", "single"]
_SETTINGS = "settings"  # key of the first line of a log; no answer has it


@dataclass(frozen=True)
class Prediction:
    """A question with the model's answer."""

    sample_id: str
    image_id: str  # of the panorama
    kind: str  # question type, by which scores are reported too
    question: str
    prediction: str  # the model's answer
    references: tuple[str, ...]  # the right answers
    latency_s: float  # time of the batch divided by its size: the cost of an answer, not the wait for it
    history: tuple[tuple[str, str], ...] = ()  # (question, answer) pairs of the conversation before the question
    groups: tuple[tuple[str, str], ...] = ()  # as in ``Question``, see ``with_groups``
    log_probability: float | None = None  # mean over the answer's tokens, where it was asked for

    @property
    def question_type(self) -> str:
        """The question's ``question_type``; the field has the name of its column in files."""
        return self.kind

    @property
    def turn(self) -> int:
        """Number of the question in its conversation, from 1."""
        return len(self.history) + 1

    @property
    def written_history(self) -> str:
        """The history as files keep it: JSON, or an empty text where there is none."""
        return json.dumps(self.history, ensure_ascii=False) if self.history else ""


@dataclass(frozen=True)
class Scored:
    """A prediction with the references that it is scored against."""

    image_id: str
    question: str
    kind: str
    prediction: str
    references: tuple[str, ...]
    turn: str = ""  # number of the question in its conversation; like the history empty where a file has none
    history: str = ""  # what came before the question, as in the file
    groups: tuple[tuple[str, str], ...] = ()  # columns by which scores are reported, with this answer's values

    @property
    def asked(self) -> tuple[str, str, str, str]:
        """Identifies the question: the same words about the same image in another conversation are another one."""
        return self.image_id, self.turn, self.history, self.question


def as_scored(predictions: Sequence[Prediction]) -> list[Scored]:
    """The answers of an evaluation, each with all references of its question."""
    return [
        Scored(
            one.image_id, one.question, one.kind, one.prediction, one.references, str(one.turn), one.written_history,
            one.groups,
        )
        for one in predictions
    ]  # fmt: skip


def with_groups(predictions: Iterable[Prediction], questions: Iterable[Question]) -> list[Prediction]:
    """The answers with the groups of their questions as the data have them now; logs and files may have others."""
    groups = {one.sample_id: one.groups for one in questions}
    return [replace(one, groups=groups[one.sample_id]) for one in predictions]


def answers_digest(predictions: Iterable[Prediction]) -> str:
    """Digest of sample ids and answers; equal before and after they were written to disk."""
    lines = [json.dumps((one.sample_id, one.prediction), ensure_ascii=False) + "\n" for one in predictions]
    return hashlib.sha256("".join(lines).encode(errors="backslashreplace")).hexdigest()[:16]


def read_predictions(
    path: Path, form: Form, named: Mapping[str, str | None] | None = None, score_by: Sequence[str] | None = None
) -> list[Scored]:
    """The rows of a UTF-8 CSV file of predictions, ours or any other, each with its references.

    A row holds one prediction with one ``reference`` or with a JSON list of ``references``. Different spellings of an
    image's path are one image: ``./a.jpg`` is ``a.jpg``.

    Args:
        path: of the file.
        form: ``grouped`` scores each row against the references of all rows with the same question about the same
            image, in the same turn after the same history where the file has these columns; ``single`` scores it
            against each of its own references alone.
        named: name of the column of each role in `KEYED`; None finds it by the accepted names.
        score_by: columns by which scores are reported; None takes those of our own ``score_by``, a JSON object.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not UTF-8 CSV, a column is missing or ambiguous, or a row is malformed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"predictions={path}: there is no such file. Name a CSV of predictions.")
    given = {role: (named or {}).get(role) for role in KEYED}
    columns = {
        role: Column(names, f"{role}_column" if role in KEYED else "", given.get(role), role in ("image", "prediction"))
        for role, names in ALIASES.items()
    }
    if (wanted := given["reference"]) is not None:
        role, other = ("references", "reference") if wanted.strip() == "references" else ("reference", "references")
        columns[role] = Column(ALIASES[role], "reference_column", wanted)
        del columns[other]
    table = Table(path, columns)
    if not {"reference", "references"} & table.names.keys():
        raise table.missing("reference", columns)
    further = table.add_columns(score_by or (), "score_by")
    table.log_columns()
    spelt: dict[str, str] = {}
    rows = [_row(path, row, table.names, spelt, further) for row in table.rows()]
    if form == "single":
        return [replace(row, references=(reference,)) for row in rows for reference in row.references]
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        groups.setdefault(row.asked, []).extend(row.references)
    return [replace(row, references=tuple(groups[row.asked])) for row in rows]


def read_answers(folder: Path, metrics: Mapping[str, Any]) -> list[Prediction]:
    """The rows of an evaluation's ``predictions.csv``; `metrics` is its ``metrics.json``, with the answers' digest.

    Raises OSError without the file, ValueError where it is malformed or its answers were changed after the evaluation.
    """
    path = folder / PREDICTIONS
    needed = ("sample_id", "image_id", "kind", "question", "prediction", "references", "latency_s")
    further = ("turn", "history", "log_probability")  # not in all evaluations
    table = Table(path, {name: Column((name,), is_needed=name in needed) for name in (*needed, *further)})
    answers = [_answer(path, row, table.names) for row in table.rows()]
    if metrics.get("answers") not in (None, answers_digest(answers)):  # None: older evaluations have no digest
        raise ValueError(f"{path}: its answers were changed since they were written")
    return answers


def _answer(path: Path, row: Row, names: Mapping[str, str]) -> Prediction:
    _check(path, row, row.problems)
    cells = row.cells
    history = _json(path, row, "history", names) if cells.get("history") else []
    if not isinstance(history, list) or not all(_is_texts(turn) and len(turn) == 2 for turn in history):
        raise _bad(path, row, "history", "no JSON list of pairs of a question and its answer")
    latency_s = _float(path, row, "latency_s", "number of seconds")
    log_probability = None
    if cells.get("log_probability"):
        log_probability = _float(path, row, "log_probability", "log-probability")
    sample, image, kind, said = (cells[name] for name in ("sample_id", "image_id", "kind", "question"))
    references = _texts(path, row, "references", names)
    turns = tuple((question, answer) for question, answer in history)
    told = cells["prediction"]
    return Prediction(sample, image, kind, said, told, references, latency_s, turns, log_probability=log_probability)


def _float(path: Path, row: Row, role: str, what: str) -> float:
    try:
        return float(row.cells[role])
    except ValueError:
        raise _bad(path, row, role, f"{row.cells[role][:60]!r} is no {what}") from None


def _row(path: Path, row: Row, names: Mapping[str, str], spelt: dict[str, str], further: Mapping[str, str]) -> Scored:
    """A row with its own references; `spelt` maps each image to its first spelling, `further` columns to roles."""
    cells = {role: row.cells.get(role, "").strip() for role in ALIASES}
    nul = [(names[role], reason) for role in names if role != "prediction" and (reason := wrong_text(cells[role]))]
    _check(path, row, [*row.problems, *nul])
    if not cells["image"]:
        raise _bad(path, row, names["image"], "no picture is named. Fill the column or leave the row out")
    given = cells["reference"]
    references = _texts(path, row, "references", names) if cells["references"] else (given,)
    if cells["references"] and given and given not in map(str.strip, references):
        differs = f"{given[:60]!r} is none of the {names['references']}"
        raise _bad(path, row, names["reference"], f"{differs}: make them agree, or choose with reference_column")
    references = tuple(one for one in references if one.strip())
    if not references:
        at = names.get("references", names.get("reference", ""))
        raise _bad(path, row, at, "there is no reference. Fill the column or leave the row out")
    image = spelt.setdefault(spelling(cells["image"]), cells["image"])
    query, kind, prediction, turn, history = (cells[one] for one in ("query", "kind", "prediction", "turn", "history"))
    groups = {column: row.cells[role].strip() for column, role in further.items()}
    if not further and cells["score_by"]:
        groups = _json(path, row, "score_by", names)
        if not isinstance(groups, dict) or not _is_texts(list(groups.values())):
            raise _bad(path, row, names["score_by"], 'no JSON object of texts, such as {"language": "ko"}')
    return Scored(image, query, kind, prediction, references, turn, history, tuple(groups.items()))


def _texts(path: Path, row: Row, role: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """The texts of a cell that holds a JSON list of them."""
    found = _json(path, row, role, names)
    if not _is_texts(found):
        raise _bad(path, row, names[role], f'{row.cells[role][:60]!r} is no JSON list of texts, such as ["a", "b"]')
    _check(path, row, [(names[role], reason) for one in found if (reason := wrong_text(one))])
    return tuple(found)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _json(path: Path, row: Row, role: str, names: Mapping[str, str]) -> Any:
    try:
        return json.loads(row.cells[role])
    except (ValueError, RecursionError):
        raise _bad(path, row, names[role], f"{row.cells[role][:60]!r} is no JSON") from None


def _check(path: Path, row: Row, problems: Sequence[tuple[str, str]]) -> None:
    for column, reason in problems:
        raise _bad(path, row, column, reason)


def _bad(path: Path, row: Row, column: str, reason: str) -> ValueError:
    return ValueError(f"{path}, line {row.line}, column {column}: {reason}.")


class AnswerLog:
    """A JSON-lines file of answers in an experiment's folder, named after a digest of what they depend on.

    The constructor reads the answers of an evaluation with the same settings that was stopped. Methods raise DiskError.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.path = folder / UNFINISHED / f"{self.key}.jsonl"
        self.settings = dict(settings)
        self.answers = {one.sample_id: one for one in self._read()}
        self.resumed = bool(self.answers)
        # Settings of the newest log of another evaluation; None where this one resumes or there is none.
        self.other = None if self.resumed else self._newest_other()

    def add(self, answers: Sequence[Prediction]) -> None:
        """Appends answers to the file."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                if not stream.tell():
                    stream.write(json.dumps({_SETTINGS: self.settings}, default=str) + "\n")
                stream.writelines(json.dumps(asdict(one), ensure_ascii=True) + "\n" for one in answers)
                stream.flush()
                os.fsync(stream.fileno())
        self.answers |= {one.sample_id: one for one in answers}

    def discard(self) -> None:
        """Removes the file, once its answers are in the result."""
        with writing(self.path):
            self.path.unlink(missing_ok=True)
            if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()

    def _read(self) -> list[Prediction]:
        if not self.path.is_file():
            return []
        # The last line is incomplete where the process died while it wrote.
        *lines, rest = self.path.read_text(encoding="utf-8").split("\n")
        if rest:
            with writing(self.path):
                os.truncate(self.path, self.path.stat().st_size - len(rest.encode()))
        whole = [one for line in lines if _SETTINGS not in (one := json.loads(line))]
        for one in whole:  # JSON has no tuples
            one["references"], one["history"] = tuple(one["references"]), tuple(map(tuple, one.get("history", ())))
            one["groups"] = ()
        return [Prediction(**one) for one in whole]

    def _newest_other(self) -> dict[str, Any] | None:
        for path in sorted(self.path.parent.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True):
            with path.open(encoding="utf-8") as stream, contextlib.suppress(ValueError):  # the first line is incomplete
                settings = json.loads(stream.readline()).get(_SETTINGS)
                if settings is not None and settings.get("blank") == self.settings.get("blank"):
                    return dict(settings)
        return None
