"""One picture by its address: fetched once where that is allowed, asked for again where it was dead."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.picture_server import PNG, PictureServer, picture

from panollava.data.remote.one import fetch_panorama, is_address
from panollava.data.remote.rules import RemoteOptions


def test_a_picture_that_is_allowed_is_fetched_once(server: PictureServer, tmp_path: Path) -> None:
    options = RemoteOptions(remote=["127.0.0.1"], remote_cache=str(tmp_path))
    paths = [fetch_panorama(server.url("/1"), options) for _ in range(2)]
    assert [path.read_bytes() for path in paths] == [picture(1)] * 2
    assert server.asked == {"/1": 1}


def test_what_was_dead_is_asked_for_again(server: PictureServer, tmp_path: Path) -> None:
    options = RemoteOptions(remote=["127.0.0.1"], remote_cache=str(tmp_path), remote_tries=1)
    with pytest.raises(ValueError, match=rf"image={server.url('/half-once')}: it broke off after"):
        fetch_panorama(server.url("/half-once"), options)
    assert fetch_panorama(server.url("/half-once"), options).read_bytes() == PNG


def test_what_is_not_allowed_is_told_with_the_key(server: PictureServer, tmp_path: Path) -> None:
    allowed = r"pictures are fetched only where data\.remote allows it\. data\.remote=\[127\.0\.0\.1\] allows this host"
    for remote in (False, ["example.org"]):
        with pytest.raises(ValueError, match=allowed):
            fetch_panorama(server.url("/1"), RemoteOptions(remote=remote, remote_cache=str(tmp_path)))
    with pytest.raises(ValueError, match=r"127\.0\.0\.1, which is not a public address.*data\.remote=\[127\.0\.0\.1\]"):
        fetch_panorama(server.url("/1"), RemoteOptions(remote=True, remote_cache=str(tmp_path)))
    with pytest.raises(ValueError, match="image=https://: the address names no host"):
        fetch_panorama("https://", RemoteOptions())
    assert not server.asked


def test_addresses_are_told_from_paths() -> None:
    assert [is_address(name) for name in ("HTTPS://a.b/c.jpg", "http://x", "https", "a/http://b", r"C:\a.jpg")] == [
        True, True, False, False, False
    ]  # fmt: skip
