"""Console and log files: the same lines on both, with times in the file."""

import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tqdm import tqdm

from panollava.disk import writing

LOG = logging.getLogger("panollava")


class _ConsoleHandler(logging.Handler):
    """Writes through tqdm, so that a line does not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """A log file whose disk may fill up: one message on the terminal says so, and the run continues."""

    _is_well = True

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif self._is_well:
            self._is_well = False
            tqdm.write(f"{self.baseFilename} takes no more lines ({error.strerror}).", file=sys.stderr)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            LOG.debug("%s lacks its last lines (%s).", self.baseFilename, error.strerror)


def configure_console(level: int = logging.INFO) -> None:
    """Sends panollava's messages to the terminal; may be called again."""
    LOG.setLevel(logging.DEBUG)
    LOG.propagate = False
    console = next((handler for handler in LOG.handlers if isinstance(handler, _ConsoleHandler)), None)
    if console is None:
        console = _ConsoleHandler()
        console.setFormatter(logging.Formatter("%(message)s"))
        LOG.addHandler(console)
    console.setLevel(level)
    # Libraries' warnings go to the log file alone; on the terminal they would hide the other lines.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").propagate = False


def label_console(label: str) -> None:
    """Writes a label, such as a job's name where several run at once, before each line on the terminal."""
    configure_console()
    for handler in LOG.handlers:
        if isinstance(handler, _ConsoleHandler):
            handler.setFormatter(logging.Formatter(f"[{label}] %(message)s"))


def in_words(count: float, base: int = 1024) -> str:
    """Bytes to three digits, in KiB, MiB, GiB for `base` 1024, in kB, MB, GB for 1000."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB") if base == 1024 else ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log(max(1.0, count), base) + 1e-9))
    value = count / base**power
    return f"{value:.0f} {units[power]}" if value >= 100 or not power else f"{value:.3g} {units[power]}"


def counted(number: int, noun: str) -> str:
    """A number and its noun, with an s unless the number is 1."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


@cache
def log_once(line: str, *, is_warning: bool = False) -> None:
    """Logs a line once in a process: several sources may be opened of one file."""
    (LOG.warning if is_warning else LOG.info)("%s", line)


def say(text: str, end: str = "\n") -> None:
    """Writes a command's result to standard output; characters that its encoding lacks become question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write((text + end).encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


@contextmanager
def log_file(folder: Path, name: str) -> Iterator[Path]:
    """Keeps a log file ``<folder>/<name>_<YYYYMMDD_HHMMSS>.log`` while the block runs; yields its path."""
    path = folder / f"{name}_{time.strftime('%Y%m%d_%H%M%S')}.log"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        handler = _FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s"))
    handler.setLevel(logging.DEBUG)
    loggers = LOG, logging.getLogger("py.warnings")
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield path
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
