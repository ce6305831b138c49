"""CSV sources: columns, encodings, paths, grouping, and the naming of every bad row."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from panollava.crop.crop import Crop
from panollava.crop.strategies import ResizeCrop
from panollava.data.entries import LISTED_PROBLEMS
from panollava.data.files import FilesSource

REAL = Path(__file__).parents[3] / "shared/data/quic360_mini/data.csv"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a CSV beside two pictures, ``a.jpg`` (black) and ``pictures/b.png`` (white)."""
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((32, 64, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "pictures/b.png"), np.full((32, 64, 3), 255, np.uint8))

    def write(text: str, encoding: str = "utf-8", name: str = "train.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path))


def source(path: Path, **options: str) -> FilesSource:
    return FilesSource(path=str(path), reader=read, **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_rows_are_records_in_any_language_with_or_without_bom(write: Write, encoding: str) -> None:
    text = (
        'url,query,annotation\r\na.jpg,무엇이 보이나요?,"파란 공, 왼쪽"\r\npictures/b.png,Où ?,"à ""gauche""\nici"\r\n'
    )
    data = source(write(text, encoding), name="mini")
    assert len(data) == 2
    assert data.record(0, epoch=0).turns == (("무엇이 보이나요?", "파란 공, 왼쪽"),)
    assert data.record(1, epoch=7).turns == (("Où ?", 'à "gauche"\nici'),)
    assert [data.record(index, 0).sample_id for index in range(2)] == ["mini-row2", "mini-row3"]
    assert data.panorama(0).max() == 0
    assert data.panorama(1).min() == 255


@pytest.mark.parametrize(
    "header",
    ["image,question,answer", "image_path,instruction,response", "FILENAME, Prompt ,Caption", "url,query,reference"],
)
def test_aliases_of_the_columns(write: Write, header: str) -> None:
    data = source(write(f"{header}\na.jpg,q,a\n"))
    assert data.record(0, 0).turns == (("q", "a"),)
    assert data.name.endswith("-train")


def test_columns_in_any_order_among_others(write: Write) -> None:
    data = source(write("id,annotation,query,extra,url\n7,a,q,,a.jpg\n"))
    assert data.record(0, 0).turns == (("q", "a"),)


def test_a_missing_column_names_file_columns_and_aliases(write: Write) -> None:
    with pytest.raises(ValueError, match=r"train\.csv: no column for the query\. Columns found: url, annotation") as e:
        source(write("url,annotation\na.jpg,a\n"))
    assert "query, question, instruction, prompt, or name it with data.query_column." in str(e.value)
    with pytest.raises(ValueError, match="save the file with commas"):
        source(write("url;query;annotation\na.jpg;q;a\n"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.jpg,q,a\na.jpg,q,a\n", r"Columns found: a\.jpg, q, a\. .*The first line must name the columns"),
        (
            "url,query,annotation,Annotation\na.jpg,q,a,b\n",
            "the column annotation stands 2 times, and one would be read",
        ),
        ("\0" * 500, "the file is not text: it begins with NUL bytes"),
        ("a," * 5000 + "\n", r"(?s)Columns found: (a, ){39}a\. "),
        (
            "url,query,annotation\na.jpg,q," + "x" * 200_000,
            "row 2: a cell of more than 131,072 characters, or a double",
        ),
    ],
    ids=["no header", "twice", "zeros", "wide", "huge"],
)
def test_what_is_no_table_of_ours(write: Write, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        source(write(text))
    assert len(str(error.value)) < 600


def test_a_second_byte_order_mark_is_no_part_of_a_name(write: Write) -> None:
    assert source(write("\ufeff\ufeffurl,query,annotation\na.jpg,q,a\n")).record(0, 0).turns == (("q", "a"),)


def test_a_nul_character_makes_a_row_bad(write: Write) -> None:
    with pytest.raises(ValueError, match=r"row 2, column query: a NUL character, which no text has"):
        source(write("url,query,annotation\na.jpg,q\0,a\na.jpg,q,a\n"))


def test_a_file_that_is_not_there_names_those_that_are(write: Write) -> None:
    path = write("url,query,annotation\na.jpg,q,a\n", name="valid.csv")
    with pytest.raises(FileNotFoundError, match=r"val\.csv: there is no such file.* there are valid\.csv; .*data\."):
        source(path.parent / "val.csv")
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
        source(path.parent / "nowhere" / "val.csv")


def test_ambiguous_columns_are_refused_until_one_is_chosen(write: Write) -> None:
    path = write("image,query,caption,answer\na.jpg,q,no,yes\n")
    with pytest.raises(ValueError, match=r"answer and caption could each be the annotation.*annotation_column"):
        source(path)
    assert source(path, annotation_column="answer").record(0, 0).turns == (("q", "yes"),)
    with pytest.raises(ValueError, match=r"Columns found: image, .*data\.annotation_column=nothing is none of them"):
        source(path, annotation_column="nothing")
    documented = write("url,query,annotation,answer\na.jpg,q,yes,no\n")
    assert source(documented).record(0, 0).turns == (("q", "yes"),)


def test_every_bad_row_is_named_as_a_spreadsheet_numbers_it(write: Write) -> None:
    rows = [
        "url,query,annotation",
        'a.jpg,q,"two',
        'lines"',
        "",
        "a.jpg,,a",
        "gone.jpg,q,a",
        "a.jpg,q",
        "a.jpg,q,one, two",
        "ftp://example.org/p.jpg,q,a",
        "empty.jpg,q,a",
    ]
    path = write("\n".join(rows))
    (path.parent / "empty.jpg").touch()
    with pytest.raises(ValueError) as error:
        source(path)
    lines = str(error.value).splitlines()
    assert lines[0].endswith(
        "train.csv: 6 of 7 rows are bad (the header is row 1). Mend or delete them, or leave them "
        "out with data.on_error=skip:"
    )
    expected = [
        "row 4, column query: the cell is empty",
        "row 5, column url: .*gone.jpg: there is no such file",
        "row 6, column annotation: the cell is empty",
        "row 7, column annotation: 4 cells where the header has 3: put texts with commas in double quotes",
        "row 8, column url: ftp://example.org/p.jpg: ftp: pictures are fetched by http and https alone",
        "row 9, column url: .*empty.jpg: the file is empty",
    ]
    assert len(lines) == 1 + len(expected)
    for line, pattern in zip(lines[1:], expected, strict=True):
        assert re.match(rf"  {pattern}", line), line


def test_the_list_of_bad_rows_is_capped_and_counted(write: Write) -> None:
    with pytest.raises(ValueError) as error:
        source(write("url,query,annotation\n" + "gone.jpg,q,a\n" * (LISTED_PROBLEMS + 5)))
    lines = str(error.value).splitlines()
    assert len(lines) == LISTED_PROBLEMS + 2
    assert lines[-1] == "  and 5 more; python -m panollava.check names them all"


def test_a_cut_or_flat_picture_is_a_bad_row(write: Write) -> None:
    path = write("url,query,annotation\ncut.jpg,q,a\nflat.jpg,q,a\n")
    (path.parent / "cut.jpg").write_bytes((path.parent / "a.jpg").read_bytes()[:-40])
    cv2.imwrite(str(path.parent / "flat.jpg"), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"(?s)row 2, column url: .*cut short.*row 3, column url: .*2:1"):
        source(path)


def test_pictures_are_checked_as_the_crop_reads_them(write: Write) -> None:
    """A panorama of 180 x 60 degrees and one of the whole sphere, each right for one of two crops."""
    path = write("url,query,annotation\na.jpg,q,a\npart.jpg,q,a\n")
    cv2.imwrite(str(path.parent / "part.jpg"), np.full((40, 120, 3), 200, np.uint8))
    whole = Crop(ResizeCrop(), view_size=(64, 64))
    with pytest.raises(ValueError, match=r"1 of 2 rows(?s:.*)row 3, column url: .*part\.jpg.*panorama_fov_deg=\["):
        FilesSource(path=str(path), reader=whole.read, check=whole.check)
    part = Crop(ResizeCrop(), view_size=(64, 64), panorama_fov_deg=(180, 60))
    with pytest.raises(
        ValueError, match=r"1 of 2 rows(?s:.*)row 2, column url: .*a\.jpg.*panorama_fov_deg=\[180, 60\]"
    ):
        FilesSource(path=str(path), reader=part.read, check=part.check)
    path.write_text("url,query,annotation\npart.jpg,q,a\n")
    data = FilesSource(path=str(path), reader=part.read, check=part.check)
    assert data.panorama(0).shape == (120, 240, 3)


def test_a_text_in_place_of_a_picture_is_a_bad_row(write: Write) -> None:
    text = "A wide view over the bay, with boats. " * 200
    with pytest.raises(ValueError, match=r"2 of 2 rows are bad(?s:.*)which no file has"):
        source(write(f'url,query,annotation\n"{text}",q,a\n"{text}\\b.png",q,a\n'))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"url,query,annotation\n\n", "no rows below the header url,query,annotation"),
        (
            "url,query,annotation\na.jpg,q,caf\u00e9\n".encode("latin-1"),
            r"train\.csv, line 2: not UTF-8 text.*Save it as UTF-8",
        ),
        (b'url,query,annotation\na.jpg,q,"never closed\n', r"train.csv, row 2: unexpected end of data.*double"),
    ],
)
def test_unusable_files_say_what_is_wrong(write: Write, content: bytes, message: str) -> None:
    path = write("")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        source(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: there is no such file"):
        source(tmp_path / "nowhere.csv")


def test_windows_paths_and_absolute_paths(write: Write, tmp_path: Path) -> None:
    data = source(write(f"url,query,annotation\npictures\\b.png,q,a\n{tmp_path / 'pictures' / 'b.png'},q,b\n"))
    assert data.panorama(0).min() == data.panorama(1).min() == 255


def test_pictures_of_another_folder_are_named_by_it(write: Write, tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    path = write("url,query,annotation\nb.png,q,a\n", name="splits/train.csv")
    assert source(path, image_dir=str(tmp_path / "pictures")).panorama(0).min() == 255
    path.write_text("url,query,annotation\n../pictures/b.png,q,a\n")
    with pytest.raises(ValueError, match=r"row 2, column url: \.\./pictures/b\.png leads out of the data set's folder"):
        source(path)
    assert source(path, dir=str(tmp_path)).panorama(0).min() == 255


def test_questions_group_the_references_of_a_picture_and_query(write: Write) -> None:
    rows = ["a.jpg,sky,blue", "pictures/b.png,sky,white", "a.jpg,floor,wood", "a.jpg,sky,bright"]
    data = source(write("url,query,annotation\n" + "\n".join(rows)), name="mini", query_template="The {query}?")
    questions = data.questions()
    assert [(each.image_id, each.question, each.references) for each in questions] == [
        ("a.jpg", "The sky?", ("blue", "bright")),
        ("a.jpg", "The floor?", ("wood",)),
        ("pictures/b.png", "The sky?", ("white",)),
    ]
    assert [each.sample_id for each in questions] == ["mini-row2", "mini-row4", "mini-row3"]
    assert {(each.kind, each.history) for each in questions} == {("text", ())}
    assert data.record(0, 0).turns == (("The sky?", "blue"),)
    assert data.question_panorama(questions[2]).min() == 255


def test_a_template_without_a_place_for_the_query_is_refused(write: Write) -> None:
    with pytest.raises(ValueError, match=r"query_template='Describe\.' has no place"):
        source(write("url,query,annotation\na.jpg,q,a\n"), query_template="Describe.")


@pytest.mark.skipif(not REAL.is_file(), reason=f"the QuIC-360 sample is not at {REAL}")
def test_the_quic360_sample() -> None:
    data = source(REAL)
    questions = data.questions()
    assert (data.name, len(data), len(questions)) == ("quic360_mini-data", 99, 18)
    assert sum(len(question.references) for question in questions) == 99
    assert len({question.image_id for question in questions}) == 6
    assert questions[0].question == "interior"
    assert data.panorama(98).shape[1] >= 2048
