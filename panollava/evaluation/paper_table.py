"""One table of a comparison for a paper, in LaTeX, Markdown or CSV: scores, intervals, marks, and what they mean."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from panollava.disk import csv_text
from panollava.evaluation.comparison import (
    FAST,
    Contender,
    Standing,
    Verdict,
    by_setting,
    markdown_lines,
)
from panollava.evaluation.seeds import seed_interval
from panollava.evaluation.statistics import Interval
from panollava.logs import counted

Form = Literal["latex", "markdown", "csv"]
SUFFIXES: Mapping[Form, str] = {"latex": ".tex", "markdown": ".md", "csv": ".csv"}
NONE, DIFFERS, LEARNING = "–", "*", "†"
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "`": r"\`{}", LEARNING: r"\dag{}",
    NONE: "{--}", "−": "$-$", "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
"""Characters with a meaning in LaTeX, or in the font encoding that it starts with. A bracket or an asterisk after the
end of a row would be read as its argument."""


@dataclass(frozen=True)
class Cell:
    """A cell: a score with its interval, or a text."""

    text: str
    ends: str = ""
    mark: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class PaperTable:
    """Rows of cells below a header, and a caption in plain text."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str

    def text(self, form: Form) -> str:
        """The table as a file of one of the forms."""
        return {"latex": self._latex, "markdown": self._markdown, "csv": self._csv}[form]()

    def _markdown(self) -> str:
        rows = [[self._marked(cell, "**{}**", " ({})") for cell in row] for row in self.rows]
        return "\n".join([*markdown_lines([self.header, *rows]), "", self.caption.replace(DIFFERS, r"\*")]) + "\n"

    @staticmethod
    def _marked(cell: Cell, bold: str, ends: str) -> str:
        text = bold.format(cell.text) if cell.is_best else cell.text
        mark = cell.mark.replace(DIFFERS, r"\*")
        return text + mark + (ends.format(cell.ends) if cell.ends else "")

    def _csv(self) -> str:
        """Each score with its interval in a column of its own, then the caption in a line of one cell."""
        header = [each for name in self.header for each in (name, f"{name}: interval")]
        lines = [[each for cell in row for each in (cell.text + cell.mark, cell.ends)] for row in self.rows]
        used = [place for place in range(len(header)) if place % 2 == 0 or any(line[place] for line in lines)]
        return csv_text([[line[place] for place in used] for line in (header, *lines)] + [[self.caption]])

    def _latex(self) -> str:
        """A ``table`` that needs no package."""

        def cell_text(cell: Cell) -> str:
            text = rf"\textbf{{{escape_latex(cell.text)}}}" if cell.is_best else escape_latex(cell.text)
            mark = rf"\textsuperscript{{{escape_latex(cell.mark)}}}" if cell.mark else ""
            return text + mark + (rf" {{\footnotesize ({escape_latex(cell.ends)})}}" if cell.ends else "")

        head = " & ".join(map(escape_latex, self.header))
        rows = [" & ".join(map(cell_text, row)) for row in self.rows]
        lines = [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape_latex(self.caption)}}}",
            r"  \label{tab:comparison}",
            rf"  \begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
            r"    \hline",
            rf"    {head} \\",
            r"    \hline",
            *(rf"    {row} \\" for row in rows),
            r"    \hline",
            r"  \end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """A text of one line in which no character has a meaning for LaTeX; other scripts need XeLaTeX or LuaLaTeX."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return re.sub("(?<=-)-", "{-}", "".join(_LATEX.get(char, char) for char in line))  # two would become a dash


def paper_table(
    contenders: Sequence[Contender],
    standings: Sequence[Standing],
    found: Sequence[Verdict],
    measure: str,
    *,
    data: str,
) -> PaperTable:
    """A row a setting or, where none has several seeds, a row a model, the best by the measure first.

    Args:
        contenders: the models.
        standings: their scores, in the same order.
        found: the verdicts on them by ``measure``.
        data: name of the test set.
    """
    settings = by_setting(contenders)
    is_of_settings = len(settings) > 1
    members = settings if is_of_settings else {one.name: [one] for one in contenders}
    places = {one.name: one for one in standings}
    names = list(dict.fromkeys(name for one in standings for name in one.scores))
    scores = {
        label: {name: score for name in names if (score := _score([places[one.name] for one in own], name)) is not None}
        for label, own in members.items()
    }
    columns = {name: [one[name] for one in scores.values() if name in one] for name in names}
    best = {name: _written(max(own, key=lambda one: one.value)) for name, own in columns.items()}
    is_level = {name: len(set(map(_written, own))) == 1 for name, own in columns.items()}
    first, order = _ranked(list(members), found)
    differs = {
        pair.second if pair.first == first else pair.first
        for pair in found
        if pair.is_distinguishable and first in (pair.first, pair.second)
    }
    rows = []
    for label in order:
        own = members[label]
        cells = [Cell(label, mark=LEARNING if any(one.still_learning for one in own) else "")]
        cells += [Cell(str(len(own)))] if is_of_settings else []
        for name in names:
            score = scores[label].get(name)
            if score is None:
                cells.append(Cell(NONE))
                continue
            ends = "" if score.low is None else score.ends
            mark = DIFFERS if name == measure and label in differs else ""
            cells.append(Cell(_written(score), ends, mark, _written(score) == best[name] and not is_level[name]))
        cells.append(Cell(str(own[0].image_tokens)))
        cells.append(Cell(f"{1000 * statistics.fmean(places[one.name].latency_s for one in own):.1f}"))
        rows.append(cells)
    header = ["setting", "seeds"] if is_of_settings else ["run"]
    header += [f"{name}, %" if columns[name][0].top == 1 else name for name in names]
    questions = contenders[0].predictions
    pictures = counted(len({one.image_id for one in questions}), "picture")
    asked = f"{data}, {counted(len(questions), 'question')} about {pictures}"
    caption = _caption(asked, found, first, measure, is_of_settings=is_of_settings)
    return PaperTable([*header, "image tokens", "ms an answer"], rows, f"{caption} {_convergence(contenders)}")


def _written(score: Interval) -> str:
    return f"{100 * score.value:.1f}" if score.top == 1 else f"{score.value:.3f}"


def _score(places: Sequence[Standing], name: str) -> Interval | None:
    """A score of a row: of one model, or the mean of several with its interval over seeds."""
    own = [one.scores[name] for one in places if name in one.scores]
    if not own or len(own) < len(places):
        return None
    return own[0] if len(own) == 1 else seed_interval([one.value for one in own], top=own[0].top)


def _ranked(labels: Sequence[str], found: Sequence[Verdict]) -> tuple[str, list[str]]:
    """The best by the measure, and all from the best to the worst, by their differences from the first."""
    above = dict.fromkeys(labels, 0.0)
    for pair in found:
        if pair.first == labels[0]:
            above[pair.second] = pair.found.difference.value
    order = sorted(labels, key=lambda label: -above[label])
    return order[0], order


def _caption(asked: str, found: Sequence[Verdict], best: str, measure: str, *, is_of_settings: bool) -> str:
    pairs = found[0].pairs
    corrected = "no correction for a single pair" if pairs == 1 else f"Holm's correction for {pairs} pairs"
    differs = f"{DIFFERS} differs from the best row, {best}, by {measure} at 5 %"
    parts = [f"Scores on {asked}; the best of a column in bold."]
    if is_of_settings:
        parts += [
            "Rows are means over the seeds of a setting, with 95 % intervals over seeds (Student's t), of one seed "
            "over pictures.",
            f"{differs}, over seeds (Welch's t-test) as well as by picture (paired permutation test), each with "
            f"{corrected}.",
        ]
    else:
        parts += [
            "Rows are single models, with 95 % intervals over pictures.",
            f"{differs} (paired permutation test over pictures, {corrected}).",
            f"The marks are about these trained models; {found[0].about}.",
        ]
    return " ".join(parts)


def _convergence(contenders: Sequence[Contender]) -> str:
    known = [one.still_learning for one in contenders]
    learning, unknown = known.count(True), known.count(None)
    parts = [f"{LEARNING} was still learning when its training ended, so {FAST}."] if learning else []
    if unknown:
        parts.append(f"Of {unknown} of {len(known)} models it is not known whether they were still learning.")
    return " ".join(parts) or "No model was still learning when its training ended."
