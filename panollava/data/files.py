"""Data sets in files, CSV or JSON by their suffix; bad entries are reported before training starts, or left out."""

import hashlib
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from panollava.crop.image_file import PanoramaFile, check_panorama
from panollava.data.conversations import read_json, read_jsonl
from panollava.data.csv import (
    LISTED_PROBLEMS,
    SCORE_BY,
    BadEntries,
    Entry,
    Listing,
    Problem,
    bad_numbers,
    in_places,
    is_address,
    read_csv,
    shown,
    summary,
)
from panollava.data.scenes.questions import turn_words
from panollava.data.source import Directions, Question, Record
from panollava.logs import LOG, log_once

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""Start of an address; a Windows drive has a single letter."""
_LONGEST = 1000
"""Characters of a file name; no system allows many more."""
_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
"""Unicode forms of one letter: composed, or decomposed, as macOS writes accents and Korean syllables."""
_SAMPLE = 1 << 16
"""Bytes at the start, in the middle and at the end of a file, by which files of the same size are compared."""

Identity = tuple[int | str, ...]
"""Device, inode, size and time of a file, without its path; the path of a file that does not exist."""


def identify(path: str) -> Identity:
    """Identity of a file: equal for all its paths, through links and on a case-insensitive disk too."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return (os.path.normpath(os.path.abspath(path)),)
    # Size and time as well: some network disks invent inodes, and two pictures must never become one.
    return state.st_dev, state.st_ino or os.path.realpath(path), state.st_size, state.st_mtime_ns


def alike(path: str) -> str:
    """Digest of the size and samples of a file; equal for copies of a file."""
    digest, size = hashlib.sha256(), os.path.getsize(path)
    with open(path, "rb") as file:
        for start in sorted({0, max(0, size // 2 - _SAMPLE // 2), max(0, size - _SAMPLE)}):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return f"{size} {digest.hexdigest()}"


class Pictures:
    """Finds pictures by their names in a data file.

    Args:
        folder: base of relative names.
        inside: further allowed folders; a picture outside them and `folder` is refused.
    """

    def __init__(self, folder: Path, *, inside: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._allowed = [os.path.abspath(each) for each in (folder, *inside)]

    def path(self, image: str) -> str:
        """Path of a picture, which need not exist.

        Links are followed: who can create one in the folder can also put a picture there.

        Raises:
            ValueError: the name is an address, or leads out of the folders of the data set.
        """
        if _ADDRESS.match(image):
            scheme = image.partition(":")[0].lower()
            if scheme not in ("http", "https"):
                raise ValueError(f"{image}: {scheme}: pictures are fetched by http and https alone")
            raise ValueError(f"{image}: not fetched; python -m panollava.fetch downloads the pictures at addresses")
        if image.startswith("data:"):
            raise ValueError("a picture inside of the text (data:…) is not read. Save it as a file and give its name")
        if len(image) > _LONGEST:
            raise ValueError(f"{image[:60]}…: a name of {len(image):,} characters is too long for a file")
        path = os.path.join(self.folder, image)
        if ("\\" in image or not image.isascii()) and not os.path.isfile(path):
            others = self._other_spellings(image)
            path = next(filter(os.path.isfile, others), others[0])
        whole = os.path.abspath(path)
        if not any(_is_inside(whole, folder) for folder in self._allowed):
            raise ValueError(
                f"{image} leads out of the data set's folder {self._allowed[0]}. Name the folder of the pictures with "
                "data.image_dir, or give a name inside it"
            )
        return path

    def _other_spellings(self, image: str) -> list[str]:
        """Paths that a name from another system may stand for: other separators, or other forms of its letters."""
        image = image.replace("\\", "/")
        names = [image, *(unicodedata.normalize(form, image) for form in _FORMS)]
        return [os.path.join(self.folder, name) for name in names]


def _is_inside(path: str, folder: str) -> bool:
    try:
        return os.path.commonpath([path, folder]) == folder
    except ValueError:  # on another drive
        return False


MOST_GROUPS = 100
"""Values of a column of ``score_by``: one with more, such as an identifier, is most likely a mistake."""
_THREADS = 8
"""Threads that check pictures: opening a file is mostly waiting, above all on a network disk."""


class ListedSource:
    """Entries about picture files as a split of a data set.

    Args:
        path: file or folder of the entries.
        listing: the entries.
        reader, check, image_dir, dir, name, on_error: see `FilesSource`.
        directions: how texts name directions, for entries that do not state it.

    Attributes:
        entries: the good ones.
        problems: of the others.
        identities: of the pictures, by their paths.
        panoramas: headers of the pictures, by path.

    Raises:
        BadEntries: some entries are bad and `on_error` is `stop`, or all are.
    """

    def __init__(
        self,
        path: Path,
        listing: Listing,
        *,
        reader: Callable[[Path], np.ndarray],
        check: Callable[[str], object],
        image_dir: str | None,
        dir: str | None,
        name: str,
        on_error: Literal["stop", "skip"],
        directions: Directions,
    ) -> None:
        self.path = path
        self.name = name or f"{path.resolve().parent.name}-{path.stem}"
        self._reader = reader
        self._check = check
        beside = path if path.is_dir() else path.parent
        folder = beside if image_dir is None else Path(image_dir).expanduser()
        self._pictures = Pictures(folder, inside=[beside, *([] if dir is None else [Path(dir).expanduser()])])
        self._directions = directions
        self.panoramas: dict[str, PanoramaFile] = {}
        self._unit = listing.unit
        self._paths, self.identities, unusable = self._check_pictures(listing.entries)
        bad = bad_numbers(unusable)
        unusable += self._wrong_entries([entry for entry in listing.entries if entry.number not in bad])
        self.count = listing.count
        self.problems = sorted([*listing.problems, *unusable])
        bad = bad_numbers(self.problems)
        self.entries = [entry for entry in listing.entries if entry.number not in bad] if bad else listing.entries
        if self.problems and (on_error == "stop" or not self.entries):
            raise BadEntries(self.path, self._unit, self.count, self.problems, is_empty=not self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def record(self, index: int, epoch: int) -> Record:
        """The conversation of entry `index`, the same in every epoch."""
        entry = self.entries[index]
        return Record(self._sample_id(entry), entry.turns)

    def directions(self, index: int) -> Directions:
        """How the texts of entry `index` name directions."""
        said = self.entries[index].directions
        return self._directions if said == "unknown" else said

    def rotated_record(self, index: int, epoch: int, yaw_deg: float) -> Record:
        """The conversation of entry `index` with its direction words rotated."""
        record = self.record(index, epoch)
        if self.directions(index) != "words" or not yaw_deg:
            return record
        turns = [(turn_words(question, yaw_deg), turn_words(answer, yaw_deg)) for question, answer in record.turns]
        return Record(record.sample_id, tuple(turns))

    def image_id(self, index: int) -> str:
        """Path of entry `index`'s picture, the same for all spellings of its name."""
        return self._paths[self.entries[index].image]

    def panorama(self, index: int) -> np.ndarray:
        """Picture of entry `index`, (H, W, 3) uint8 RGB."""
        return self._reader(self.picture(index))

    def picture(self, index: int) -> Path:
        """File of entry `index`'s picture."""
        return Path(self.image_id(index))

    def questions(self) -> list[Question]:
        """Each turn as a question, with the turns before it as history, in order of appearance.

        Equal questions about one picture after the same history are one question with several references.
        """
        groups: dict[str, dict[tuple[tuple[tuple[str, str], ...], str], list[tuple[Entry, int]]]] = {}
        for entry in self.entries:
            of_picture = groups.setdefault(self._paths[entry.image], {})
            for turn, (question, _) in enumerate(entry.turns):
                of_picture.setdefault((entry.turns[:turn], question), []).append((entry, turn))
        return [
            Question(
                sample_id=self._sample_id(same[0][0]) + (f"-turn{same[0][1] + 1}" if history else ""),
                image_id=next(iter(of_picture.values()))[0][0].image,
                history=history,
                question=question,
                references=tuple(entry.turns[turn][1] for entry, turn in same),
                question_type=same[0][0].question_type,
                groups=_merged([entry.groups for entry, _ in same]),
            )
            for of_picture in groups.values()
            for (history, question), same in of_picture.items()
        ]

    def question_panorama(self, question: Question) -> np.ndarray:
        """Picture that `question` asks about, (H, W, 3) uint8 RGB."""
        return self._reader(self.question_picture(question))

    def question_picture(self, question: Question) -> Path:
        """File of the picture that `question` asks about."""
        return Path(self._paths[question.image_id])

    def left_out(self) -> str:
        """The entries that are not used, and why."""
        return f"{summary(self.path, self._unit, self.problems, self.count)} and left out:\n" + "\n".join(
            shown(self.problems)
        )

    def _sample_id(self, entry: Entry) -> str:
        return f"{self.name}-{self._unit}{entry.number}"

    def _check_pictures(self, entries: Sequence[Entry]) -> tuple[dict[str, str], dict[str, Identity], list[Problem]]:
        """Path of each name of a picture, identities of the files, and problems of pictures that cannot be used."""
        images: dict[str, list[Entry]] = {}
        for entry in entries:
            images.setdefault(entry.image, []).append(entry)
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            found = dict(zip(images, pool.map(self._found, images), strict=True))
            files: dict[Identity, str] = {}  # a file has the path by which it is named first
            paths = {
                image: path if reason else files.setdefault(identity, path)
                for image, (path, identity, reason) in found.items()
            }
            wrong = dict(zip(files.values(), pool.map(self._wrong, files.values()), strict=True))
        bad: dict[tuple[str, str], list[Entry]] = {}
        for image, its in images.items():
            if reason := found[image][2] or wrong[paths[image]]:
                bad.setdefault((paths[image], reason), []).extend(its)
        if tilted := [panorama.tilt for panorama in self.panoramas.values() if panorama.tilt]:
            LOG.warning("%s: %d pictures are tilted, such as %s", self.path, len(tilted), min(tilted))
        problems = [
            Problem(its[0].number, in_places(self._unit, its), reason, tuple(entry.number for entry in its[1:]))
            for (_, reason), named in bad.items()
            for its in [sorted(named, key=lambda entry: entry.number)]  # several names may be of one picture
        ]
        identities = {path: identity for identity, path in files.items() if not wrong[path]}
        return paths, identities, problems

    def _found(self, image: str) -> tuple[str, Identity, str]:
        """Path of a picture, identity of its file, and what is wrong with its name, if anything."""
        try:
            path = self._pictures.path(image)
        except (OSError, ValueError) as error:  # collected, as those of `_wrong` are
            return image, (), str(error)
        return path, identify(path), ""

    def _wrong(self, path: str) -> str:
        """What is wrong with a picture, if anything."""
        try:
            checked = self._check(path)
        except (OSError, ValueError) as error:  # collected, so that all bad entries are named at once
            return str(error)
        if isinstance(checked, PanoramaFile):
            self.panoramas[path] = checked
        return ""

    def _wrong_entries(self, entries: Sequence[Entry]) -> list[Problem]:
        """Further problems of entries whose pictures can be read."""
        return []


class FilesSource(ListedSource):
    """One file as a split of a data set: ``.csv`` (see `read_csv`), ``.json`` or ``.jsonl`` (see `conversations`).

    Args:
        path: the file.
        reader: decodes a picture file to (H, W, 3) uint8 RGB, such as ``Crop.read``.
        check: refuses a picture file that the reader could not use, without decoding it, such as ``Crop.check``.
        image_dir: base of picture names; None for the folder of `path`.
        dir: folder of the data set; pictures must be in it, in `image_dir` or beside `path`.
        name: of the split, in sample ids; if empty, folder and stem of `path`.
        on_error: `stop` refuses a file with bad entries, `skip` leaves them out.
        names_directions: how texts do so, for entries that do not state it (see ``source.Directions``).
        split: `train`, `val` or `test`, for messages.
        image_column, query_column, annotation_column: columns of a CSV that are not found by `ALIASES`.
        query_template: question for a query of a CSV, such as ``Describe the {query} in this panorama.``
        score_by: columns of a CSV, or keys of the ``metadata`` of JSON, by which scores are reported too.

    Raises:
        FileNotFoundError: there is no such file.
        BadEntries: some entries are bad and `on_error` is `stop`, or all are.
        ValueError: the file cannot be read, there is nothing in it, or it names pictures by addresses.
    """

    def __init__(
        self,
        *,
        path: str,
        reader: Callable[[Path], np.ndarray],
        check: Callable[[str], object] = check_panorama,
        image_dir: str | None = None,
        dir: str | None = None,
        name: str = "",
        on_error: Literal["stop", "skip"] = "stop",
        names_directions: Literal["unknown", "none", "words"] = "unknown",
        split: str = "train",
        image_column: str | None = None,
        query_column: str | None = None,
        annotation_column: str | None = None,
        query_template: str = "{query}",
        score_by: list[str] | None = None,
    ) -> None:
        if "{query}" not in query_template:
            raise ValueError(f"query_template={query_template!r} has no place for the query: write {{query}} into it.")
        file = Path(path).expanduser()
        columns = {"image": image_column, "query": query_column, "annotation": annotation_column}
        listing = read_listing(file, columns, query_template, score_by or ())
        if listing.unused and split == "test":
            what = "columns" if listing.unit == "row" else "keys of the metadata"
            names = ",".join(listing.unused)
            log_once(f"{file}: {what} that nothing reads: {names}. {SCORE_BY}=[…] gives scores by their values.")
        if remote := [entry.place for entry in listing.entries if is_address(entry.image)]:
            named = {"image_dir": image_dir, **{f"{role}_column": name for role, name in columns.items()}}
            raise ValueError(_fetch_first(file, split, remote, named))
        super().__init__(
            file,
            listing,
            reader=reader,
            check=check,
            image_dir=image_dir,
            dir=dir,
            name=name,
            on_error=on_error,
            directions=names_directions,
        )
        for at, name in enumerate(score_by or ()):
            values = {entry.groups[at] for entry in self.entries}
            if len(values) > MOST_GROUPS:
                raise ValueError(
                    f"{self.path}: {SCORE_BY} names {name}, which has {len(values):,} values. Name columns with "
                    f"{MOST_GROUPS} values at most: scores are reported for each."
                )


def _merged(groups: Sequence[tuple[tuple[str, str], ...]]) -> tuple[tuple[str, str], ...]:
    """The groups of a question of several entries; where their values differ, all of them are its value."""
    return tuple(
        (column[0][0], ", ".join(sorted({value for _, value in column}))) for column in zip(*groups, strict=True)
    )


def _fetch_first(path: Path, split: str, places: Sequence[str], named: Mapping[str, str | None]) -> str:
    """The error message for a data file with addresses, with the command that fetches them."""
    kind = "csv" if path.suffix.lower() == ".csv" else "json"
    keys = {f"{split}_{kind}": str(path), **{key: value for key, value in named.items() if value is not None}}
    words = " ".join(f"data.{key}={shlex.quote(value)}" for key, value in keys.items())
    more = f" and {len(places) - LISTED_PROBLEMS} more" if len(places) > LISTED_PROBLEMS else ""
    return (
        f"{path}: pictures are named by addresses ({', '.join(places[:LISTED_PROBLEMS])}{more}), and only files are "
        f"read. Fetch them first, which also writes a data file that names the files:\n"
        f"  python -m panollava.fetch data={kind} {words} splits=[{split}]"
    )


def read_listing(
    path: Path, columns: dict[str, str | None], query_template: str, score_by: Sequence[str] = ()
) -> Listing:
    """The entries of a data file, read according to its suffix.

    Args:
        path: the file.
        columns: of a CSV, by role; None for those found by `ALIASES`.
        query_template, score_by: see `FilesSource`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or there is nothing in it.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return read_csv(path, columns, query_template, score_by)
    if suffix == ".json":
        return read_json(path, score_by)
    if suffix in (".jsonl", ".ndjson"):
        return read_jsonl(path, score_by)
    raise ValueError(f"{path}: a data file's name ends in .csv, .json or .jsonl, which determines how it is read.")
