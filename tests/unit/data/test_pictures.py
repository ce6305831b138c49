"""Where pictures are looked for, and the names that are refused."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from panollava.data.files import Pictures


def test_names_are_relative_to_the_folder(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path)
    assert pictures.path("a.jpg") == str(tmp_path / "a.jpg")
    assert pictures.path(str(tmp_path / "한글" / "b.png")) == str(tmp_path / "한글" / "b.png")
    assert Path(pictures.path("x/../a.jpg")).resolve() == tmp_path / "a.jpg"


def test_a_name_written_on_windows_is_found(tmp_path: Path) -> None:
    assert Path(Pictures(tmp_path).path("pictures\\b.png")) == tmp_path / "pictures" / "b.png"


@pytest.mark.skipif(os.name == "nt", reason="a backslash is no part of a name there")
def test_a_name_with_a_backslash_is_that_of_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a\\b.png").touch()
    assert Pictures(tmp_path).path("a\\b.png") == str(tmp_path / "a\\b.png")


@pytest.mark.parametrize(("written", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_may_be_whole_or_taken_apart(tmp_path: Path, written: str, there: str) -> None:
    name = "사진/한글 é.jpg"
    file = tmp_path / unicodedata.normalize(there, name)  # type: ignore[arg-type]
    file.parent.mkdir()
    file.touch()
    found = Pictures(tmp_path).path(unicodedata.normalize(written, name).replace("/", "\\"))  # type: ignore[arg-type]
    assert os.path.samefile(found, file)


@pytest.mark.parametrize(
    ("image", "reason"),
    [("data:image/jpeg;base64,QUJD", "is not read. Save it as a file"), ("x" * 5000, "x…: a name of 5,000 characters")],
)
def test_what_can_be_no_name_is_refused_in_few_words(tmp_path: Path, image: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        Pictures(tmp_path).path(image)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("image", ["../a.jpg", "x/../../a.jpg", "/etc/passwd", "..\\a.jpg", "..", "../data-2/a.jpg"])
def test_a_name_that_climbs_out_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(ValueError, match=r"leads out of the data set's folder .*data.*data\.image_dir"):
        Pictures(tmp_path / "data").path(image)


def test_further_folders_are_allowed(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "set" / "splits", inside=[tmp_path / "set"])
    assert Path(pictures.path("../images/a.jpg")).resolve() == tmp_path / "set" / "images" / "a.jpg"
    with pytest.raises(ValueError, match="leads out"):
        pictures.path("../../a.jpg")
    assert Pictures(tmp_path, inside=[Path(os.path.abspath("/"))]).path("/etc/a.jpg") == "/etc/a.jpg"


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert Pictures(tmp_path / "data").path("images/a.jpg") == str(tmp_path / "data" / "images" / "a.jpg")


@pytest.mark.parametrize("image", ["https://example.org/a.jpg", "HTTP://x/a.jpg", "s3://bucket/a.jpg", "file:///a.jpg"])
def test_an_address_that_was_not_fetched_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(
        ValueError, match=r"not fetched; python -m panollava\.fetch|: pictures are fetched by http and https alone"
    ):
        Pictures(tmp_path).path(image)
