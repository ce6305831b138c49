"""The memory of full decodes: as long as a file stays as it was, whoever asks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.picture_files import by_pillow, noise, torn_jpeg

from panollava.check import decode_all
from panollava.crop.image_file import decode_panorama
from panollava.run.sources import Decoded, examined


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A sound picture and one whose data is damaged, in the working directory."""
    monkeypatch.chdir(tmp_path)
    photo = by_pillow(noise(64, 128), "JPEG")
    Path("sound.jpg").write_bytes(photo)
    Path("torn.jpg").write_bytes(torn_jpeg())
    return ["sound.jpg", "torn.jpg"]


def test_verdicts_are_kept_and_seen_by_the_check_of_every_data_set(pictures: list[str]) -> None:
    assert [Decoded().verdict(picture) for picture in pictures] == [None, None]
    assert decode_all(pictures, None, 0) == ["torn.jpg"]
    decoded = Decoded()
    assert decoded.verdict("sound.jpg") == ""
    assert "is damaged" in (decoded.verdict(os.path.abspath("torn.jpg")) or "")
    check = decoded.checked(lambda picture: None)
    check("sound.jpg")
    with pytest.raises(ValueError, match=r"torn\.jpg: the JPEG cannot be decoded"):
        check("torn.jpg")


@pytest.mark.parametrize("change", ["time", "size", "inode"])
def test_a_file_that_changed_is_not_known(pictures: list[str], change: str) -> None:
    decode_all(pictures, None, 0)
    state = os.stat("torn.jpg")
    if change == "time":
        os.utime("torn.jpg", ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))
    else:
        more = b"\0" if change == "size" else b""
        Path("other.jpg").write_bytes(Path("torn.jpg").read_bytes() + more)
        os.utime("other.jpg", ns=(state.st_atime_ns, state.st_mtime_ns))
        os.replace("other.jpg", "torn.jpg")
    assert Decoded().verdict("torn.jpg") is None
    assert Decoded().verdict("sound.jpg") == ""


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"opencv": "5.0.0", "pictures": {}}', '{"pictures": 3}', '{"decoders": null}']
)
def test_a_memory_that_cannot_be_read_is_made_again(pictures: list[str], content: str) -> None:
    Path("cache").mkdir()
    Path("cache/decoded.json").write_text(content, encoding="utf-8")
    assert Decoded().verdict("torn.jpg") is None
    assert decode_all(pictures, None, 0) == ["torn.jpg"]
    assert len(json.loads(Path("cache/decoded.json").read_text("utf-8"))["pictures"]) == 2


def test_two_commands_at_once_keep_what_both_found(pictures: list[str]) -> None:
    one, other = Decoded(), Decoded()
    one.learn(*examined("sound.jpg"))
    other.learn(*examined("torn.jpg"))
    one.save()
    other.save()
    assert Decoded().verdict("sound.jpg") == ""
    assert Decoded().verdict("torn.jpg")


def test_several_processes_find_the_same(pictures: list[str]) -> None:
    copies = []
    for number in range(24):
        copies.append(f"{number}.jpg")
        Path(copies[-1]).write_bytes(Path(pictures[number % 2]).read_bytes())
    assert sorted(decode_all(copies, None, 2)) == sorted(copies[1::2])
    assert all(Decoded().verdict(picture) is not None for picture in copies)


def test_the_smallest_scale_finds_all_damage_that_the_largest_does() -> None:
    """Bits of JPEGs of three kinds are turned over, left out and put in; each scale says the same of each."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(noise(16, 32), (256, 128))
    found = 0
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 8}):
        sound = by_pillow(picture, "JPEG", **options)
        for _ in range(12):
            data = bytearray(sound)
            at = int(rng.integers(len(data) // 4, len(data) - 60))
            data[at : at + int(rng.integers(0, 40))] = rng.bytes(int(rng.integers(1, 20)))
            verdicts = [_verdict(bytes(data), divisor) for divisor in (1, 8)]
            assert verdicts[0] == verdicts[1]
            found += verdicts[0]
    assert 6 <= found < 36


def _verdict(data: bytes, divisor: int) -> bool:
    path = Path("damaged.jpg")
    path.write_bytes(data)
    try:
        decode_panorama(path, None, lambda header: divisor)
    except ValueError:
        return True
    finally:
        path.unlink()
    return False
