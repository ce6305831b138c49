"""Pictures are known by path, size, times and inode, and by their content when those are new."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from panollava.store import identity
from panollava.store.identity import SETTLED_NS, FileIdentity


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files have lain still for long."""
    now = time.time_ns
    monkeypatch.setattr(identity.time, "time_ns", lambda: now() + 2 * SETTLED_NS)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read whole."""
    seen: list[str] = []
    digest = identity.hashlib.file_digest

    def file_digest(file, name):  # type: ignore[no-untyped-def]
        seen.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(identity.hashlib, "file_digest", file_digest)
    return seen


@pytest.mark.usefixtures("settled")
def test_a_known_file_is_not_read_again_by_any_process(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "사진 1.jpg"
    file.write_bytes(b"one")
    digests = {FileIdentity(tmp_path / "known").identify(file) for _ in range(3)}
    assert len(digests) == 1
    assert reads == [file.name]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("way", ["written into", "moved there", "written into, its time put back"])
def test_a_file_replaced_under_its_name_is_noticed(tmp_path: Path, way: str) -> None:
    """The new one has the same size; the process has looked at the old one."""
    file, other = tmp_path / "a.jpg", tmp_path / "b.jpg"
    file.write_bytes(b"one")
    other.write_bytes(b"two")
    known = FileIdentity(tmp_path / "known")
    before, times = known.identify(file), os.stat(file)
    if way == "moved there":
        shutil.copystat(file, other)
        os.replace(other, file)
    else:
        time.sleep(0.02)
        file.write_bytes(b"two")
    if way.endswith("put back"):
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert known.identify(file) == FileIdentity(tmp_path / "known").identify(file) != before


def test_a_file_of_this_moment_is_read_until_it_has_settled(tmp_path: Path, reads: list[str]) -> None:
    """A second version within a tick of the file system's clock would look the same."""
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    known = FileIdentity(tmp_path / "known")
    assert known.identify(file) == known.identify(file)
    assert len(reads) == 2
    assert not list((tmp_path / "known").glob("**/*.json"))


def test_a_camera_with_a_wrong_clock_costs_one_read(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time in the future is not that of a later version; one of this moment may be."""
    file, now = tmp_path / "a.jpg", time.time_ns()
    file.write_bytes(b"one")
    monkeypatch.setattr(identity.time, "time_ns", lambda: now + 2 * SETTLED_NS)  # the entry has settled
    for hours, count in ((1, 1), (24 * 365, 1), (0, 2)):
        reads.clear()
        os.utime(file, ns=(now, now + 2 * SETTLED_NS + hours * 3600 * 10**9))
        known = FileIdentity(tmp_path / "known")
        assert known.identify(file) == known.identify(file)
        assert len(reads) == count


@pytest.mark.usefixtures("settled")
def test_the_same_content_is_the_same_picture_wherever_it_lies(tmp_path: Path) -> None:
    known = FileIdentity(tmp_path / "known")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"one")
    assert known.identify(tmp_path / "a.jpg") == known.identify(tmp_path / "b.jpg")
    assert known.identify("drawn from 1") != known.identify("drawn from 2")


@pytest.mark.usefixtures("settled")
def test_verify_reads_all_whatever_is_remembered(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    true = FileIdentity(tmp_path / "known").identify(file)
    (record,) = (tmp_path / "known").glob("*/*.json")
    record.write_text(record.read_text().replace(true, "0" * 64))
    assert FileIdentity(tmp_path / "known").identify(file) == "0" * 64
    checked = FileIdentity(tmp_path / "known", verify=True)
    assert [checked.identify(file), checked.identify(file)] == [true, true]
    assert len(reads) == 2


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"path": "another"}', "[" * 100_000])
def test_a_damaged_record_counts_as_none(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    true = FileIdentity(tmp_path / "known").identify(file)
    (record,) = (tmp_path / "known").glob("*/*.json")
    record.write_text(damage)
    assert FileIdentity(tmp_path / "known").identify(file) == true


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.jpg: there is no such file"):
        FileIdentity(tmp_path / "known").identify(tmp_path / "a.jpg")
