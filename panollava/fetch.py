"""python -m panollava.fetch data=…: downloads the pictures at addresses in data files into a folder."""

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.data import conversations, csv
from panollava.data.csv import Entry, is_address
from panollava.data.fetch import Fetched, Fetcher, FetchOptions
from panollava.data.files import Pictures, read_listing
from panollava.disk import write_file
from panollava.logs import counted, say
from panollava.run.sections import read_config
from panollava.run.sources import check_data, file_key, source_arguments


@dataclass(frozen=True)
class Options:
    """Plain keys of ``conf/fetch.yaml``; see there."""

    splits: Annotated[list[Literal["train", "val", "test"]], MinLen(1)]
    out: str


@dataclass(frozen=True)
class DataFile:
    """A data file."""

    path: Path  # the file
    columns: Mapping[str, str | None]  # of a CSV, by role; None for those found by their names
    local: Mapping[str, Path]  # pictures that are files already, by name
    entries: list[Entry]  # the good ones; training reports the others

    @property
    def addresses(self) -> list[str]:
        """Addresses of pictures, in the order of the file."""
        return [entry.image for entry in self.entries if is_address(entry.image)]

    def rewritten(self, fetched: Fetched, out: Path) -> str:
        """Its text with the files of all pictures, relative to `out` where they can be; failed ones are left out."""

        def file_of(image: str) -> str | None:
            path = fetched.paths.get(image) or self.local.get(image)
            if path is None:  # a failed address, or the picture of a bad entry
                return None if image in fetched.failed else image
            name = os.path.abspath(path)
            with suppress(ValueError):  # of a picture on another drive
                name = os.path.relpath(path, out)
            return Path(name).as_posix()

        if self.path.suffix.lower() == ".csv":
            return csv.with_pictures(self.path, self.columns, file_of)
        return conversations.with_pictures(self.path, file_of)


@entrypoint("fetch")
def main(cfg: DictConfig) -> None:
    """Fetches the pictures of one data set."""
    if cfg.data.type != "files":
        raise ValueError(f"data={cfg.data.name} has no data files. Choose csv, json or quic360.")
    options, sections = read_config(cfg, Options, check=_problems)
    data, out = sections["data"], Path(options.out).expanduser()
    files: dict[str, DataFile | None] = {split: _opened(data, split) for split in dict.fromkeys(options.splits)}
    found = {split: file for split, file in files.items() if file is not None}
    if not found:
        missing = ", ".join(f"data.{file_key(data, split)}={data[file_key(data, split)]}" for split in files)
        raise FileNotFoundError(f"{missing}: there is no such file. Check the path of the data set.")
    if not any(file.addresses for file in found.values()):
        say(f"Nothing to fetch: {', '.join(str(file.path) for file in found.values())} name no addresses.")
        return
    fetcher = Fetcher(FetchOptions(**sections["fetch"]))
    fetched = fetcher.fetch([each for file in found.values() for each in file.addresses])
    for file in found.values():
        for entry in file.entries:
            if entry.image in fetched.failed:
                say(f"{file.path}, {entry.place}: {entry.image}: {fetched.failed[entry.image]}")
    say(f"{counted(len(fetched.paths), 'picture')} in {out}, {len(fetched.failed):,} failed.")
    if fetched.failed and data.get("on_error") != "skip":
        raise ValueError(
            f"{len(fetched.failed):,} of the addresses gave no picture, so no data file was written. They are named "
            "above. The same command tries them again; data.on_error=skip writes the data files without their rows."
        )
    say(f"Read them with {_written(found, fetched, out, data)}")


def _problems(values: dict[str, Any]) -> list[str]:
    problems, folder = check_data(values["data"]), values["fetch"]["folder"]
    if folder != values["out"]:
        problems.append(f"fetch.folder={folder}: the folder of this command is given with out=.")
    return problems


def _opened(data: dict[str, Any], split: str) -> DataFile | None:
    """The data file of a split, if it exists."""
    given = source_arguments(data, split)
    path = Path(given["path"]).expanduser()
    if not path.is_file():
        say(f"{split}: there is no {path}; left out.")
        return None
    columns = {role: given.get(f"{role}_column") for role in csv.ALIASES}
    folder = path.parent if given.get("image_dir") is None else Path(given["image_dir"]).expanduser()
    pictures = Pictures(folder, inside=[path.parent, Path(data.get("dir") or path.parent).expanduser()])
    entries = read_listing(path, columns, given.get("query_template", "{query}")).entries
    local: dict[str, Path] = {}
    for image in {entry.image for entry in entries if not is_address(entry.image)}:
        with suppress(ValueError):  # the error is reported when the new file is read
            local[image] = Path(pictures.path(image))
    return DataFile(path, columns, local, entries)


def _written(files: Mapping[str, DataFile], fetched: Fetched, out: Path, data: Mapping[str, Any]) -> str:
    """Writes the new data files; returns the keys of ``data`` that name them."""
    keys: dict[str, str] = {}
    for split, file in files.items():
        same = [other for other in files.values() if other.path.name == file.path.name]
        target = out / (file.path.name if len(same) == 1 else f"{split}-{file.path.name}")
        if target.resolve() == file.path.resolve():
            raise ValueError(f"out={out} is the folder of {file.path}, which stays as it is. Choose another folder.")
        write_file(target, file.rewritten(fetched, out))
        keys[file_key(dict(data), split)] = str(target)
    if local := [os.path.abspath(path.parent) for file in files.values() for path in file.local.values()]:
        for folders in ([*local, os.path.abspath(out)], local):  # the second where `out` is on another drive
            with suppress(ValueError):
                keys.setdefault("dir", os.path.commonpath(folders))
    if data.get("image_dir") is not None:
        keys["image_dir"] = "null"
    return " ".join(f"data.{key}={shlex.quote(value)}" for key, value in keys.items())


if __name__ == "__main__":
    main()
