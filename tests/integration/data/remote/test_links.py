"""Data files that name remote pictures: what is not allowed, what is dead, and the places that are told."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path

import pytest
from support.picture_server import JPEG, MakeFetcher, PictureServer, picture

from panollava.crop.crop import Crop
from panollava.crop.strategies import ResizeCrop
from panollava.data.csv import BadEntries
from panollava.data.files import Pictures
from panollava.data.remote.links import report_path
from panollava.logs import LOG
from panollava.run.sources import open_source


def test_remote_and_local_pictures_beside_each_other(
    server: PictureServer, fetcher: MakeFetcher, tmp_path: Path
) -> None:
    pictures = Pictures(tmp_path, fetcher=fetcher())
    images = [server.url("/1"), "a.png", server.url("/moved/jpeg")]
    pictures.fetch([(image, "row 2") for image in images], file=tmp_path / "train.csv", name="train")
    assert Path(pictures.path(images[0])).read_bytes() == picture(1)
    assert Path(pictures.path(images[1])) == tmp_path / "a.png"
    assert Path(pictures.path(images[2])).read_bytes() == JPEG
    assert not (fetcher().folder / "dead_links").exists()


def test_without_links_nothing_is_made(fetcher: MakeFetcher, tmp_path: Path) -> None:
    Pictures(tmp_path, fetcher=fetcher()).fetch([("a.png", "row 2")], file=tmp_path / "train.csv", name="train")
    assert not fetcher().folder.exists()


def test_what_is_not_allowed_is_one_error_with_places_and_key(
    server: PictureServer, fetcher: MakeFetcher, tmp_path: Path
) -> None:
    far = ["https://live.staticflickr.com/1.jpg", "http://example.org/2.jpg", "https://live.staticflickr.com/3.jpg"]
    near = [server.url("/1"), "a.png"]
    places = [(image, f"row {number}") for number, image in enumerate([*near, *far, far[0]], start=2)]
    told = r"train\.csv, row 4, row 7, row 5, row 6: remote pictures are fetched only where data\.remote allows it"
    key = r"data\.remote=\[example\.org,live\.staticflickr\.com\] allows their hosts, data\.remote=true every public"
    with pytest.raises(ValueError, match=rf"{told}, and these are not: {far[0]}, …\. {key}"):
        Pictures(tmp_path, fetcher=fetcher()).fetch(places, file=tmp_path / "train.csv", name="train")
    many = [(server.url(f"/{number}"), f"row {number}") for number in range(2, 30)]
    for none in (None, fetcher(remote=False)):
        with pytest.raises(ValueError, match=r"row 20, row 21 and 8 more: .*data\.remote=\[127\.0\.0\.1\] allows"):
            Pictures(tmp_path, fetcher=none).fetch(many, file=tmp_path / "train.csv", name="train")
    assert not server.asked


def test_dead_links_are_told_with_their_places_and_listed_in_a_report(
    server: PictureServer,
    fetcher: MakeFetcher,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    file = tmp_path / "train.csv"
    images = [server.url("/gone"), server.url("/1"), server.url("/html-called-jpeg"), "ftp://x/a"]
    places = [(image, f"row {number}") for number, image in enumerate([*images, images[0]], start=2)]
    pictures = Pictures(tmp_path, fetcher=fetcher())
    with caplog.at_level(logging.WARNING):
        pictures.fetch(places, file=file, name="mine-train")
    report = report_path(fetcher().folder, file, "mine-train")
    assert f"{file}: 3 of 4 links are dead (row 2, row 6, row 4, row 5), listed in {report}." in caplog.text
    with report.open(encoding="utf-8", newline="") as stream:
        listed = list(csv.DictReader(stream))
    assert [(line["place"], line["url"]) for line in listed] == [
        ("row 2", images[0]), ("row 6", images[0]), ("row 4", images[2]), ("row 5", images[3])
    ]  # fmt: skip
    assert listed[0]["reason"].startswith("HTTP 404 Not Found (tried 2")
    with pytest.raises(ValueError, match=rf"{images[0]}: HTTP 404 Not Found \(tried"):
        pictures.path(images[0])
    with pytest.raises(ValueError, match="ftp://x/a: ftp: pictures are fetched by http and https alone"):
        pictures.path(images[3])
    pictures.fetch([(images[1], "row 3")], file=file, name="mine-train")
    assert not report.exists()


def test_a_data_file_of_links_stops_at_dead_ones_or_leaves_them_out(
    server: PictureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "train.csv"
    images = [server.url("/1"), server.url("/gone"), server.url("/2"), server.url("/1")]
    file.write_text("url,query,annotation\n" + "".join(f"{image},what,that\n" for image in images), "utf-8")
    monkeypatch.chdir(tmp_path)
    crop = Crop(ResizeCrop(), view_size=(32, 32))
    data = {"type": "files", "name": "mine", "train_csv": str(file), "remote": ["127.0.0.1"], "on_error": "stop"}
    with pytest.raises(BadEntries, match=r"1 of 4 rows are bad(?s:.*)row 3, column url: .*/gone: HTTP 404 Not Found"):
        open_source(data, "train", crop)
    left = open_source({**data, "on_error": "skip"}, "train", crop)
    assert [left.record(index, 0).sample_id for index in range(3)] == [f"mine-train-row{row}" for row in (2, 4, 5)]
    assert left.panorama(0).shape == (16, 32, 3)
    assert [len(question.references) for question in left.questions()] == [2, 1]
    # Left out once, a link stays so: a run that goes on finds what it began with.
    assert server.asked == {"/1": 1, "/gone": 1, "/2": 1}
    monkeypatch.setattr("panollava.run.sources.psutil.Process", lambda: Started())
    open_source({**data, "on_error": "skip", "remote_retry_dead": True}, "train", crop)
    assert server.asked["/gone"] == 2
    with pytest.raises(ValueError, match=r"row 2, row 5, row 3.*data\.remote=\[127\.0\.0\.1\] allows"):
        open_source({**data, "on_error": "skip", "remote": False}, "train", crop)


class Started:
    """A process that began long after now."""

    def create_time(self) -> float:
        return time.time() + 3600
