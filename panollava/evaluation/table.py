"""The result table: each question type beside its blank-picture score and its majority answer."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from panollava.evaluation.answers import AnswerReport

HEADER = ("question type", "questions", "exact match", "blank picture", "majority answer", "its share")
RIGHT = (False, True, True, True, False, True)


def text_table(report: AnswerReport) -> str:
    """The report as lines of fixed width, for a terminal or a log file."""
    rows = [HEADER, *_rows(report)]
    widths = [max(_width(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [_line(row, widths) for row in rows]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def markdown_table(report: AnswerReport) -> str:
    """The report as a Markdown table."""
    marks = ["---:" if right else "---" for right in RIGHT]
    rows = [HEADER, marks, *_rows(report)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _rows(report: AnswerReport) -> list[Sequence[str]]:
    """Cells of each question type, the last row over all of them."""
    rows: list[Sequence[str]] = [
        (
            _one_line(kind),
            str(score.count),
            _percent(score.exact_match, score.interval),
            _percent(score.blank_exact_match, score.blank_interval),
            _one_line(score.majority_answer),
            _percent(score.majority_share),
        )
        for kind, score in report.kinds.items()
    ]
    overall = (
        _percent(report.exact_match, report.interval),
        _percent(report.blank_exact_match, report.blank_interval),
    )
    return [*rows, ("all", str(report.count), *overall, "", _percent(report.majority_share))]


def _percent(share: float | None, interval: tuple[float, float] | None = None) -> str:
    if share is None:
        return "–"
    return f"{100 * share:.1f} %" + (f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else "")


def _one_line(text: str, limit: int = 40) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for cell, width, right in zip(cells, widths, RIGHT, strict=True):
        space = " " * (width - _width(cell))
        padded.append(space + cell if right else cell + space)
    return "  ".join(padded).rstrip()


def _width(text: str) -> int:
    """Columns that a terminal gives to a text: two to an East Asian character, none to a combining one."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
