"""What a check found, row by row, and the Markdown table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

OK, WRONG, FAILED, NO_TIME = "ok", "wrong", "failed", "no time left"
NOT_INSTALLED, NEEDS_GPU = "not installed", "needs a GPU"
BAD = (WRONG, FAILED, NO_TIME)
"""States that make the command fail."""


@dataclass
class Row:
    """One result.

    Attributes:
        what: that was checked or measured.
        state: ``ok``; ``wrong``, an error above its limit; ``failed``; ``no time left``; ``not installed``;
            ``needs a GPU``.
        note: what was compared with what, or the message.
        error: relative to what it is compared with; ``limit`` is the largest that is ok.
        milliseconds: of a step, the median.
        tokens_per_second, tflops, mfu: of a step; ``mfu`` is the share of the GPU's peak.
        peak_gb: most memory of the device.
    """

    what: str
    state: str = OK
    note: str = ""
    error: float | None = None
    limit: float | None = None
    milliseconds: float | None = None
    tokens_per_second: float | None = None
    tflops: float | None = None
    mfu: float | None = None
    peak_gb: float | None = None


Check = tuple[str, Callable[[], list[Row]]]
"""A name, and a function that gives rows."""


class UnavailableError(Exception):
    """A check cannot run here; ``state`` is that of its row: ``not installed`` or ``needs a GPU``."""

    def __init__(self, state: str, note: str) -> None:
        super().__init__(note)
        self.state = state


def compared(what: str, error: float, limit: float, note: str = "") -> Row:
    """A row about an error; one that is no number is wrong."""
    return Row(what, OK if error <= limit else WRONG, note, error=error, limit=limit)


def results(part: str, checks: Iterable[Check], between: Callable[[], None]) -> Iterator[Row]:
    """Rows of a part; a check that raises is a row, and the next ones still run.

    Args:
        part: its name, for the row of an error outside of its checks.
        checks: one after the other; what they need may be built between them.
        between: called after each check.
    """
    iterator = iter(checks)
    while True:
        what = part
        try:
            check = next(iterator, None)
            if check is None:
                return
            what, function = check
            found = function()
        except UnavailableError as error:
            found = [Row(what, error.state, str(error))]
        except Exception as error:
            found = [Row(what, FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")]
        yield from found
        between()


def table(hardware: dict[str, Any], parts: dict[str, list[Row]]) -> str:
    """All rows as Markdown, after a list of the GPU and the versions."""
    found = [(part, row) for part, rows in parts.items() for row in rows]
    text = "\n".join(f"- {key}: {value}" for key, value in hardware.items()) + "\n"
    text += _lines(
        ["part", "what", "state", "error", "limit", "note"],
        [
            [part, row.what, row.state, _number(row.error, ".2g"), _number(row.limit, ".2g"), row.note]
            for part, row in found
            if row.milliseconds is None
        ],
    )
    return text + _lines(
        ["part", "what", "ms", "tokens/s", "TFLOP/s", "MFU, %", "peak GB", "note"],
        [[part, row.what, *_speed(row), row.note] for part, row in found if row.milliseconds is not None],
    )


def _speed(row: Row) -> list[str]:
    share = None if row.mfu is None else 100 * row.mfu
    values = (row.milliseconds, row.tokens_per_second, row.tflops, share, row.peak_gb)
    return [_number(*pair) for pair in zip(values, (".1f", ",.0f", ".4g", ".1f", ".4g"), strict=True)]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _lines(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" if rows else ""
