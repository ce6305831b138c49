"""Fetching from a server that is slow, lies, redirects and dies: whole pictures or none, each once."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.picture_server import JPEG, PNG, MakeFetcher, PictureServer, picture

from panollava.data import fetch
from panollava.data.csv import is_address
from panollava.data.fetch import MANIFEST, FetchOptions, fetch_panorama


def kept_files(folder: Path) -> set[str]:
    """Names of all files but the manifest and the lock."""
    return {path.name for path in folder.rglob("*") if path.is_file()} - {MANIFEST, ".lock"}


def only_reason(fetcher: MakeFetcher, url: str, **options: object) -> str:
    """Why an address gave nothing; and nothing is kept of it."""
    made = fetcher(**options)
    fetched = made.fetch([url])
    assert fetched.paths == {}
    assert kept_files(made.folder) == set()
    return fetched.failed[url]


def test_pictures_are_kept_under_the_hash_of_their_bytes(server: PictureServer, fetcher: MakeFetcher) -> None:
    urls = [server.url(path) for path in ("/1", "/2", "/jpeg", "/untold", "/png-called-jpeg")]
    fetched = fetcher().fetch([*urls, urls[0]])
    assert fetched.failed == {}
    bytes_of = {url: path.read_bytes() for url, path in fetched.paths.items()}
    assert bytes_of == dict(zip(urls, (picture(1), picture(2), JPEG, PNG, PNG), strict=True))
    for path in fetched.paths.values():
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.suffix == (".jpg" if path.read_bytes() == JPEG else ".png")
    # Two addresses gave the same picture, which is there once.
    assert fetched.paths[urls[3]] == fetched.paths[urls[4]]
    manifest = [json.loads(line) for line in (fetcher().folder / MANIFEST).read_text("utf-8").splitlines()]
    assert {entry.pop("address"): entry for entry in manifest if entry.pop("time") > 1e9} == {
        url: {
            "file": path.relative_to(fetcher().folder).as_posix(),
            "sha256": hashlib.sha256(bytes_of[url]).hexdigest(),
            "size": len(bytes_of[url]),
            "status": "fetched",
        }
        for url, path in fetched.paths.items()
    }
    assert server.asked == {url.removeprefix(server.url("")): 1 for url in urls}


def test_a_second_run_asks_for_nothing(server: PictureServer, fetcher: MakeFetcher) -> None:
    urls = [server.url(f"/{number}") for number in range(10)]
    first = fetcher().fetch(urls)
    assert fetcher().fetch(urls) == first
    assert set(server.asked.values()) == {1}


def test_a_file_that_was_lost_or_cut_is_fetched_again(server: PictureServer, fetcher: MakeFetcher) -> None:
    urls = [server.url("/1"), server.url("/2"), server.url("/3")]
    first = fetcher().fetch(urls).paths
    first[urls[0]].unlink()
    first[urls[1]].write_bytes(first[urls[1]].read_bytes()[:-1])
    again = fetcher().fetch(urls).paths
    assert [again[url].read_bytes() for url in urls] == [picture(1), picture(2), picture(3)]
    assert [server.asked[f"/{number}"] for number in (1, 2, 3)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("path", "reason", "times"),
    [
        ("/gone", "HTTP 404 Not Found", 1),
        ("/png-called-html", "the server sends text/html, not a picture", 1),
        ("/html-called-jpeg", "the server sends neither a JPEG nor a PNG picture, against its Content-Type", 1),
        ("/nothing", "the server sends neither a JPEG nor a PNG picture, against its Content-Type", 1),
        ("/packed", "the server sends it gzip-coded, which was not requested", 1),
        ("/large", "1000.0 MB; fetch.max_mb=1 is the limit", 1),
        ("/endless", "more than 1 MB; fetch.max_mb=1 is the limit", 1),
        ("/more-than-said", "the PNG is cut short: its end is missing, 2 times", 2),
        ("/less-than-said", f"it broke off after {len(PNG) // 2:,} of {len(PNG):,} bytes, 2 times", 2),
        ("/cut-and-unsaid", "the JPEG is cut short: its end is missing, 2 times", 2),
        ("/not-http", "the connection broke (BadStatusLine: 220 mail.example ESMTP", 2),
    ],
)
def test_what_is_no_whole_picture_is_refused(
    server: PictureServer, fetcher: MakeFetcher, path: str, reason: str, times: int
) -> None:
    told = only_reason(fetcher, server.url(path), max_mb=1.0, tries=2)
    assert told.startswith(reason)
    assert server.asked[path] == times


def test_silence_and_dripping_end(server: PictureServer, fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PATIENCE", 4)
    urls = [server.url("/silent"), server.url("/drip")]
    failed = fetcher(timeout_s=0.1, tries=2).fetch(urls).failed
    assert failed[urls[0]] == "the server was silent for 0.1 s, 2 times"
    assert failed[urls[1]] == "not complete after 0.4 s, 2 times"
    assert set(server.asked.values()) == {2}


def test_what_passes_is_tried_again(server: PictureServer, fetcher: MakeFetcher) -> None:
    urls = [server.url("/half-once"), server.url("/busy-once")]
    fetched = fetcher().fetch(urls)
    assert [fetched.paths[url].read_bytes() for url in urls] == [PNG, PNG]
    assert set(server.asked.values()) == {2}


def test_a_server_that_asks_for_time_gets_it(server: PictureServer, fetcher: MakeFetcher) -> None:
    began = time.monotonic()
    assert fetcher().fetch([server.url("/busy-once/1")]).failed == {}
    assert time.monotonic() - began >= 1.0


def test_redirects_are_followed(server: PictureServer, fetcher: MakeFetcher) -> None:
    urls = [server.url("/moved/jpeg"), server.url("/stairs/4"), server.url(f"/moved/{server.url('/jpeg')}")]
    fetched = fetcher().fetch(urls)
    assert [fetched.paths[url].read_bytes() for url in urls] == [JPEG] * 3


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/circle", "more than 5 redirects"),
        ("/stairs/5", "more than 5 redirects"),
        ("/nowhere", "HTTP 302 Found"),
        ("/moved/file:///etc/passwd", "it redirects to 'file:///etc/passwd': file: pictures are fetched by http"),
        ("/moved/ftp://127.0.0.1/a.jpg", "it redirects to 'ftp://127.0.0.1/a.jpg': ftp: pictures are fetched by"),
        (
            "/moved/http://localhost:1/a.jpg",
            "it redirects to 'http://localhost:1/a.jpg': localhost is not among the hosts of fetch.hosts=[127.0.0.1]",
        ),
        ("/moved/http://a:b@127.0.0.1/", "it redirects to 'http://a:b@127.0.0.1/': an address with a user name"),
    ],
)
def test_redirects_lead_nowhere_else(server: PictureServer, fetcher: MakeFetcher, path: str, reason: str) -> None:
    assert only_reason(fetcher, server.url(path)).startswith(reason)


def test_with_every_public_host_allowed_the_own_network_is_not(server: PictureServer, fetcher: MakeFetcher) -> None:
    told = only_reason(fetcher, server.url("/1"), hosts=None)
    assert told.startswith("127.0.0.1 is 127.0.0.1, which is not a public address. If it is meant, name the host: ")
    assert not server.asked


def test_what_failed_is_asked_for_again(server: PictureServer, fetcher: MakeFetcher) -> None:
    url = server.url("/half-once")
    assert fetcher(tries=1).fetch([url]).failed[url].startswith("it broke off after")
    again = fetcher(tries=1).fetch([url])
    assert (again.paths[url].read_bytes(), again.failed) == (PNG, {})


def test_one_picture_by_its_address(server: PictureServer, tmp_path: Path) -> None:
    options = FetchOptions(hosts=["127.0.0.1"], folder=str(tmp_path))
    assert [fetch_panorama(server.url("/1"), options).read_bytes() for _ in range(2)] == [picture(1)] * 2
    assert server.asked == {"/1": 1}
    with pytest.raises(ValueError, match=rf"image={server.url('/gone')}: HTTP 404 Not Found\."):
        fetch_panorama(server.url("/gone"), options)
    private = r"127\.0\.0\.1, which is not a public address.*fetch\.hosts=\[127\.0\.0\.1\]"
    with pytest.raises(ValueError, match=private):
        fetch_panorama(server.url("/2"), FetchOptions(folder=str(tmp_path)))
    with pytest.raises(ValueError, match=r"127\.0\.0\.1 is not among the hosts of fetch\.hosts=\[example\.org\]"):
        fetch_panorama(server.url("/2"), FetchOptions(hosts=["example.org"], folder=str(tmp_path)))
    assert set(server.asked) == {"/1", "/gone"}


def test_addresses_are_told_from_paths() -> None:
    assert [is_address(name) for name in ("HTTPS://a.b/c.jpg", "http://x", "https", "a/http://b", r"C:\a.jpg")] == [
        True, True, False, False, False
    ]  # fmt: skip


def test_damage_to_the_manifest_costs_what_it_told_of(server: PictureServer, fetcher: MakeFetcher) -> None:
    urls = [server.url("/1"), server.url("/2")]
    fetcher().fetch(urls[:1])
    manifest = fetcher().folder / MANIFEST
    wrong = {"address": urls[1], "file": "pictures/../../../../etc/passwd", "size": 1, "status": "fetched"}
    with manifest.open("a") as file:
        file.write(json.dumps(wrong) + '\n[]\n{"address": "torn')
    assert len(fetcher().fetch(urls).paths) == 2
    assert server.asked == {"/1": 1, "/2": 1}
    assert json.loads(manifest.read_text().splitlines()[-1])["address"] == urls[1]


CODE = """
import sys
from panollava.data.fetch import Fetcher, FetchOptions
folder, base = sys.argv[1:]
options = FetchOptions(hosts=["127.0.0.1"], folder=folder, connections=4)
fetched = Fetcher(options).fetch([f"{base}/slow/{number}" for number in range(12)])
print(len(fetched.paths), len(fetched.failed))
"""


def started(folder: Path, server: PictureServer) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CODE, folder, server.url("")], stdout=subprocess.PIPE, text=True)


def test_jobs_side_by_side_fetch_each_picture_once(server: PictureServer, tmp_path: Path) -> None:
    jobs = [started(tmp_path / "kept", server) for _ in range(3)]
    assert [job.communicate()[0].split() for job in jobs] == [["12", "0"]] * 3
    assert len(server.asked) == 12
    assert set(server.asked.values()) == {1}


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
def test_a_killed_job_leaves_no_half_picture(server: PictureServer, fetcher: MakeFetcher) -> None:
    urls = [server.url(f"/slow/{number}") for number in range(12)]
    folder = fetcher().folder
    job = started(folder, server)
    while sum(server.asked.values()) < 6:  # the first four are there or nearly so, the others under way
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert {path.read_bytes() for path in folder.glob("pictures/[0-9a-f]*.png")} <= {
        picture(number) for number in range(12)
    }
    assert list(folder.glob("pictures/.tmp-*"))
    fetched = fetcher().fetch(urls)
    assert [fetched.paths[url].read_bytes() for url in urls] == [picture(number) for number in range(12)]
    assert not list(folder.glob("pictures/.tmp-*"))


def test_a_full_disk_is_told_as_such(
    server: PictureServer, fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("panollava.data.fetch.os.fsync", full)
    with pytest.raises(OSError, match=r"fetch\.folder=.* cannot be written \(No space left on device\)\. Make room"):
        fetcher().fetch([server.url("/1")])
    assert kept_files(fetcher().folder) == set()
