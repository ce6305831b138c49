"""Small files: atomic writes, checked reads, and errors of the disk that name the file, the reason and what to do."""

import codecs
import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

TEMPORARY = ".tmp-"  # prefix of the names of files and folders that are being written
TRIES, WAIT_S = 40, 0.05  # how often a file is renamed on Windows, and the time between two tries
MAX_DOCUMENT_BYTES = 16 << 20  # far more than any of our JSON files has; a larger one is refused before it is read
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The content of a CSV file whose lines end in a line feed.

    Rows with a carriage return are quoted: Python does so by itself only where it is part of the line ending, and
    readers take it for the end of a row.
    """
    stream = io.StringIO()
    plain = csv.writer(stream, lineterminator="\n")
    quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        (quoted if any("\r" in str(cell) for cell in row) else plain).writerow(row)
    return stream.getvalue()


class DiskError(OSError):
    """Something could not be written; the message says why and what to do."""


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns a failure to write ``target`` into a DiskError that names what to do."""
    try:
        yield
    except DiskError:
        raise
    except (OSError, SafetensorError) as error:
        code = _code(error)
        reason = os.strerror(code) if code else str(error)
        raise DiskError(
            f"{target} could not be written ({reason}). Files saved before are complete. {_way_out(code)}"
        ) from error


def _code(error: Exception) -> int | None:
    """The system's error number; safetensors has it only in its text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\bcode: (\d+)", str(error)) or re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _way_out(code: int | None) -> str:
    again = "run the same command to resume"
    if code in _FULL:
        return f"Free some space there, or move the folder to another disk and name that place, and {again}."
    if code in _LOCKED:
        return "Make the folder writable for this user, or choose another one (output_dir= of a training)."
    return f"Check the disk, or move the folder to another one and name that place, and {again}."


def write_json(path: Path, document: Any) -> None:
    """``write_file`` for a JSON document, indented."""
    write_file(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_file(path: Path, content: str | bytes, *, sync: bool = True) -> None:
    """``replace_file`` for a small file: readers see the old content or the new."""
    data = content.encode() if isinstance(content, str) else content
    replace_file(path, lambda temporary: temporary.write_bytes(data), sync=sync)


def replace_file(path: Path, fill: Callable[[Path], Any], *, sync: bool = True) -> None:
    """Replaces a file atomically by one that ``fill`` writes; its folder is made if missing. Raises a DiskError.

    With ``sync`` it waits until the disk has the file; else a power failure may leave a damaged one.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.name}-", dir=path.parent)
        os.close(handle)
        try:
            fill(Path(name))
            os.chmod(name, 0o644)
            if sync:
                flush(Path(name))
            rename(Path(name), path)
            if sync:
                flush(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def link(source: str | Path, target: str | Path) -> None:
    """Makes a file's second name, or a copy of it where the disk has no links; ``target`` must not exist."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def temporary_folder(target: Path, prefix: str = "") -> Iterator[Path]:
    """A new folder beside ``target``, removed if the block fails. Raises a DiskError.

    The block fills it and renames it to ``target``, which is so complete or not there. ``prefix`` of its name is by
    default the one by which ``tidy`` finds what a killed process left.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix or f"{TEMPORARY}{target.name}-", dir=target.parent))
        try:
            folder.chmod(0o755)  # mkdtemp makes folders that only their owner can read
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def rename(source: Path, target: Path) -> None:
    """Gives a file or folder another name, in place of a file that has it."""
    _renamed(os.replace, source, target)


def rename_free(temporary: Path, target: Path) -> Path:
    """Gives a finished folder a name, or the next free one, ``<name>_2`` and so on; returns it.

    Another process may take a name at the same time.
    """
    free, number = target, 1
    while True:
        if not free.exists():
            try:
                _renamed(os.rename, temporary, free)
                return free
            except OSError:
                if not free.exists():
                    raise
        number += 1
        free = target.with_name(f"{target.name}_{number}")


def _renamed(rename: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    """Windows refuses that while another process, such as a scanner of viruses, has a file open: it is tried again."""
    for left in reversed(range(TRIES if os.name == "nt" else 1)):
        try:
            return rename(source, target)
        except PermissionError:
            if not left:
                raise
            time.sleep(WAIT_S)


def flush(path: Path) -> None:
    """Waits until the disk has a file, or a folder's entries; Windows cannot do the latter."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def utf8_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without byte order mark; ValueError for another encoding."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise not_utf8(path) from None


def not_utf8(path: Path) -> ValueError:
    """The error for a file in another encoding, with the line that shows it."""
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return ValueError(f"{path}: not UTF-8 text but UTF-16, by its first two bytes. Save it as UTF-8.")
        file.seek(0)
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return ValueError(
                    f"{path}, line {number}: not UTF-8 text (byte 0x{line[error.start]:02X}). Save it as UTF-8, such "
                    "as the CSV UTF-8 of a spreadsheet."
                )
    return ValueError(f"{path}: not UTF-8 text. Save it as UTF-8.")


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a file; a ValueError for a link out of its folder, a large file, and anything else."""
    check_own(path)
    size = path.stat().st_size
    if size > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; a file of its kind has a few thousand, so it is not read.")
    try:
        document = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({str(error)[:200]}).") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not a JSON object but a {type(document).__name__}.")
    return document


def read_versioned(path: Path, version: int, way_out: str) -> dict[str, Any]:
    """``read_document`` of a file with this ``format_version``; a ValueError, which ends in a way out, for another."""
    try:
        document = read_document(path)
        if (found := document.get("format_version")) != version:
            raise ValueError(
                f"{path} is of format {found!r}, which the panollava that wrote it reads; this one reads format "
                f"{version}."
            )
    except ValueError as error:
        raise ValueError(f"{error} {way_out}") from error
    return document


def check_own(path: Path) -> None:
    """Raises a FileNotFoundError if a file is missing, a ValueError if it is a link out of its folder."""
    if path.is_symlink() and path.resolve().parent != path.parent.resolve():
        raise ValueError(
            f"{path} is a link to {path.resolve()}, outside its folder, and is not followed. Put the file itself there."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file.")


def check_writable(folder: Path, key: str) -> None:
    """Raises a DiskError if a folder, or the one that it would be made in, is read-only. ``key`` is its config key."""
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise DiskError(
            f"{key}={folder} cannot be written: {place} is read-only, or not this user's. Make it writable, or choose "
            f"another place with {key}=<folder>."
        )


def missing_folders(folder: Path) -> list[Path]:
    """The folder and its parents that do not exist yet, the innermost first."""
    return [each for each in (folder, *folder.parents) if not each.exists()]


def take_away(files: Iterable[Path], folders: Sequence[Path]) -> None:
    """Removes files, and folders that are empty then; what cannot be removed stays."""
    for path in (*sorted(files, reverse=True), *folders):  # the content of a folder before the folder
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
