"""What a check found, row by row, and the Markdown table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

OK, WRONG, FAILED = "ok", "wrong", "failed"
NOT_INSTALLED, NO_TIME, NOT_HERE = "not installed", "no time left", "not here"
BAD = (WRONG, FAILED)
"""States that make the command fail."""


@dataclass
class Row:
    """One result.

    Attributes:
        what: that was checked or measured.
        state: ``ok``; ``wrong``, an error above its limit; ``failed``; ``not installed``; ``no time left``;
            ``not here``, on a device that lacks it.
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


Check = tuple[str, Callable[[], Row | list[Row]]]
"""A name, and a function that gives rows."""


class NotInstalledError(Exception):
    """A package that a check needs is missing."""


class NotHereError(Exception):
    """The device cannot do what a check is about."""


def compared(what: str, error: float, limit: float, note: str = "") -> Row:
    """A row about an error; one that is no number is wrong."""
    return Row(what, OK if error <= limit else WRONG, note, error=error, limit=limit)


def results(name: str, checks: Iterable[Check], between: Callable[[], None]) -> Iterator[Row]:
    """Rows of a part; a check that raises is a row, and the next ones still run.

    Args:
        name: of the part, for the row of an error outside of its checks.
        checks: one after the other; what they need may be built between them.
        between: called after each check.
    """
    iterator = iter(checks)
    while True:
        what = name
        try:
            check = next(iterator, None)
            if check is None:
                return
            what, function = check
            found = function()
        except Exception as error:
            found = Row(what, *_state(error))
        yield from found if isinstance(found, list) else [found]
        between()


def _state(error: Exception) -> tuple[str, str]:
    if isinstance(error, NotInstalledError):
        return NOT_INSTALLED, str(error)
    if isinstance(error, NotHereError):
        return NOT_HERE, str(error)
    return FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def document(name: str, rows: Iterable[Row], *, seconds: float, is_complete: bool) -> dict[str, Any]:
    """A part's JSON."""
    return {"part": name, "complete": is_complete, "seconds": round(seconds, 1), "rows": [asdict(row) for row in rows]}


def table(hardware: dict[str, Any], parts: Iterable[dict[str, Any]]) -> str:
    """All parts as Markdown, after a list of the GPU and the versions."""
    listed = "\n".join(f"- {key}: {value}" for key, value in hardware.items())
    found = [(part["part"], Row(**row)) for part in parts for row in part["rows"]]
    speeds = [(part, row) for part, row in found if row.milliseconds is not None]
    others = [(part, row) for part, row in found if row.milliseconds is None]
    text = f"{listed}\n"
    if others:
        text += _lines(
            ["part", "what", "state", "error", "limit", "note"],
            ([part, row.what, row.state, _short(row.error), _short(row.limit), row.note] for part, row in others),
        )
    if speeds:
        text += _lines(
            ["part", "what", "ms", "tokens/s", "TFLOP/s", "MFU, %", "peak GB", "note"],
            ([part, row.what, f"{row.milliseconds:.1f}", *_speed(row), row.note] for part, row in speeds),
        )
    return text


def _speed(row: Row) -> list[str]:
    rate = "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
    share = "" if row.mfu is None else f"{100 * row.mfu:.1f}"
    flops, peak = ("" if value is None else f"{value:.4g}" for value in (row.tflops, row.peak_gb))
    return [rate, flops, share, peak]


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _lines(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
