"""The links of one data file: those not allowed stop everything, the dead are listed with their places."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from panollava.data.remote.fetch import Fetched, Fetcher
from panollava.data.remote.rules import parse_address
from panollava.logs import LOG

REPORTS = "dead_links"
"""Folder of the reports, in that of the pictures."""

LISTED = 20
"""Places that a message names; the report has all."""


def fetch_links(fetcher: Fetcher, places: Mapping[str, Sequence[str]], file: Path, name: str) -> Fetched:
    """Fetches the pictures that a data file names by addresses.

    Args:
        fetcher: what fetches them.
        places: address -> where it stands in the file, such as ``row 5``; in the order of the file.
        file: the data file.
        name: of the split, for the report.

    Raises:
        ValueError: ``data.remote`` does not allow some of them.
        OSError: the folder of the pictures cannot be written.
    """
    barred = {address: at for address, at in places.items() if not fetcher.allows(address)}
    if barred:
        raise ValueError(_told(file, barred))
    fetched = fetcher.fetch(places)
    if not fetcher.folder.is_dir():  # nothing was asked for
        return fetched
    report = report_path(fetcher.folder, file, name)
    dead = {address: at for address, at in places.items() if address in fetched.dead}
    if dead:
        rows = [(place, address, fetched.dead[address]) for address, at in dead.items() for place in at]
        _write_report(report, rows)
        LOG.warning(
            "%s: %d of %d links are dead (%s), listed in %s.",
            file, len(dead), len(places), _listed(dead), report,
        )  # fmt: skip
    else:
        report.unlink(missing_ok=True)
    return fetched


def report_path(folder: Path, file: Path, name: str) -> Path:
    """Where the dead links of a data file are listed; files of one name in several places do not share it."""
    place = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]
    return folder / REPORTS / f"{name}-{place}.csv"


def _write_report(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    from panollava.checkpoint import write_file  # here, as it brings in torch

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("place", "url", "reason"))
    writer.writerows(rows)
    write_file(path, text.getvalue())


def _told(file: Path, barred: Mapping[str, Sequence[str]]) -> str:
    hosts = sorted({parse_address(address).host for address in barred})
    more = ", …" if len(barred) > 1 else ""
    return (
        f"{file}, {_listed(barred)}: remote pictures are fetched only where data.remote allows it, and these are not: "
        f"{next(iter(barred))}{more}. data.remote=[{','.join(hosts[:5])}{',…' if len(hosts) > 5 else ''}] allows "
        "their hosts, data.remote=true every public one. Or download the pictures and give their paths."
    )


def _listed(places: Mapping[str, Sequence[str]]) -> str:
    """Where some addresses stand, in words."""
    everywhere = [place for at in places.values() for place in at]
    more = f" and {len(everywhere) - LISTED} more" if len(everywhere) > LISTED else ""
    return f"{', '.join(everywhere[:LISTED])}{more}"
