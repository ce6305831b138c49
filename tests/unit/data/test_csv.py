"""CSV sources: columns, encodings, paths, grouping, and the naming of every bad row."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import REAL_DATA

from panollava.crop.crop import Crop
from panollava.crop.strategies import ResizeCrop
from panollava.data.csv import LISTED_PROBLEMS, Column, Table
from panollava.data.files import FilesSource

REAL = REAL_DATA / "quic360_mini" / "data.csv"

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
            r"the columns annotation and Annotation could each be the annotation\. Choose one with data\.annot",
        ),
        ("\0" * 500, "the file is not text: it begins with NUL bytes"),
        ("a," * 5000 + "\n", r"(?s)Columns found: (a, ){39}a\. "),
        (
            "url,query,annotation\na.jpg,q," + "x" * 200_000,
            "row 2, column annotation: a cell of 200,000 characters, more than 131,072",
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
    with pytest.raises(ValueError, match=r"caption and answer could each be the annotation.*annotation_column"):
        source(path)
    assert source(path, annotation_column="answer").record(0, 0).turns == (("q", "yes"),)
    with pytest.raises(ValueError, match=r"Columns found: image, .*data\.annotation_column=nothing is none of them"):
        source(path, annotation_column="nothing")
    assert source(path, query_column="caption").record(0, 0).turns == (("no", "yes"),)  # then it is no annotation


@pytest.mark.parametrize(
    ("header", "role", "chosen", "turns"),
    [
        ("url,query,annotation,answer", "annotation", "annotation", ("q", "a")),
        ("url,annotation,query,question", "query", "question", ("a2", "q")),
        ("url,query,annotation,Image", "image", "url", ("q", "a")),
        ("url,query,annotation,Image Path", "image", "url", ("q", "a")),
        ("url,query,annotation, ANNOTATION ", "annotation", "ANNOTATION", ("q", "a2")),
    ],
)
def test_the_documented_name_does_not_win_silently(
    write: Write, header: str, role: str, chosen: str, turns: tuple[str, str]
) -> None:
    path = write(f"{header}\na.jpg,q,a,a2\n")
    with pytest.raises(ValueError, match=rf"could each be the {role}\. Choose one with data\.{role}_column"):
        source(path)
    assert source(path, **{f"{role}_column": chosen}).record(0, 0).turns == (turns,)


def test_the_columns_taken_are_logged_once(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "panollava")
    path = write("Image,question,answer,other\na.jpg,q,a,b\n")
    source(path), source(path)
    assert [line for line in caplog.messages if "columns taken" in line] == [
        f"{path}: columns taken: image = Image, query = question, annotation = answer."
    ]


def test_the_placeholder_of_a_picture_is_dropped_from_a_query(write: Write) -> None:
    path = write("url,query,annotation\na.jpg,<image> What?,<image> is text\n")
    assert source(path).record(0, 0).turns == (("What?", "<image> is text"),)
    assert source(path, query_template="Say: {query}").record(0, 0).turns[0][0] == "Say: What?"
    with pytest.raises(ValueError, match="row 2, column query: asks about 2 pictures"):
        source(path, query_template="<image>\n{query}")
    with pytest.raises(ValueError, match="row 2, column query: the cell is empty"):
        source(write("url,query,annotation\na.jpg,<image>,a\n"), query_template="Say: {query}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sep=;\nurl;query;annotation\na.jpg;q;a\n", r"line 1: sep=; is a spreadsheet's note of its separator"),
        ("sep=,\nurl,query,annotation\na.jpg,q,a\n", r"line 1: sep=, is a spreadsheet's note"),
        ('url, "query", "annotation"\na.jpg,q,a\n', "line 1: there is a blank before a double quote in the header"),
        ("url;query;annotation\na.jpg;q;a\n", "another sign: save the file with commas"),
        ("url\tquery\tannotation\na.jpg\tq\ta\n", "another sign: save the file with commas"),
        ("url,query,annotation\na.jpg;q;a\n", "row 2, column query: 1 cells where the header has 3"),
        ('url,query,annotation\na.jpg, "what, now?", "red"\n', "row 2, column annotation: 4 cells where the header"),
        (
            'url,query,annotation\na.jpg, "what?", "red"\n',
            "row 2, column query: there is a blank before the double quote",
        ),
        ('url,query,annotation\na.jpg,what?,\t"red"\n', "row 2, column annotation: there is a blank before"),
        ("url,query,annotation,id\na.jpg,red,7\n", "row 2, column id: 3 cells where the header has 4"),
        ('url,query,annotation\na.jpg,"two\nlines",a\n\na.jpg,q\n', r"row 4 \(line 5\), column annotation: 2 cells"),
        ('url,query,annotation\na.jpg,"two\nlines","open\nb.jpg,q,a\n', "row 2, line 3: .* is never closed"),
        ('url,query,annotation\na.jpg,"open,a\nb.jpg,"q",a\n', "row 2, line 2: .* begins here, and in line 3"),
        ('url,query,annotation\na.jpg,q,"a" \n', "row 2, line 2: ',' expected after"),
        (
            'url,query,annotation\na.jpg,"two\nlines","open\nb.jpg,q,a\nc.jpg,q,blue"\n',
            r"line 3: a text in double quotes that begins here ends in line 5, and 'b\.jpg,q,a' in line 4 looks like",
        ),
        ('query,annotation,url\nq,"a,a.jpg\nq,b",b.jpg\n', "line 2: .* and 'a,a.jpg' in line 2 looks like a row"),
        ('query,url,annotation\n"q,a.jpg,a\nq",b.jpg,b\n', "line 2: .* and 'q,a.jpg,a' in line 2 looks like a row"),
        ('url,query,annotation\nscene-7,"q,a\nscene-12,where?,",a\n', "line 2: .* 'scene-12,where.* in line 3 looks"),
        ('url,query,annotation\n"a.jpg\nb",q,a\n', "row 2, column url: a name in two lines"),
    ],
)
def test_what_is_not_of_the_form_is_refused_with_its_line(write: Write, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(write(text))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf_16_is_named(write: Write, encoding: str) -> None:
    with pytest.raises(ValueError, match="UTF-16"):
        source(write("url,query,annotation\na.jpg,q,a\n", encoding))


def test_lists_and_names_of_pictures_in_a_text_are_no_rows(write: Write) -> None:
    text = "1, 2\n3, 4, 5\nas in a.jpg, on the left\nsee here, a.jpg shows it, too"
    assert source(write(f'url,query,annotation\na.jpg,q,"{text}"\n')).record(0, 0).turns == (("q", text),)


def test_commas_at_the_end_of_all_lines_and_two_marks_are_no_cells(write: Write) -> None:
    assert source(write("url,query,annotation,,\na.jpg,q,a,,\na.jpg,q,b\n")).record(1, 0).turns == (("q", "b"),)
    assert source(write('\ufeff\ufeff"url",query,annotation\na.jpg,q,a,,\n')).record(0, 0).turns == (("q", "a"),)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4), st.sampled_from(["\n", "\r\n", "\r"]))
def test_what_python_writes_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]], ending: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    rows = [{"image": "a.jpg", "query": query, "annotation": answer} for query, answer in texts]
    with path.open("w", encoding="utf-8", newline="") as file:
        # With another ending than its own, the writer leaves signs of the others without quotes.
        quoting = csv.QUOTE_MINIMAL if ending == "\r\n" else csv.QUOTE_ALL
        writer = csv.writer(file, lineterminator=ending, quoting=quoting)
        writer.writerows([("image", "query", "annotation"), *(row.values() for row in rows)])
    found = list(Table(path, {name: Column((name,)) for name in rows[0]}).rows())
    assert [row.cells for row in found] == rows
    assert not any(row.problems for row in found)
    lines = re.split(r"\r\n|\r|\n", path.read_bytes().decode())
    assert all(re.match('"?a.jpg"?,', lines[row.line - 1]) for row in found)  # it begins with its picture


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
        r"row 4 \(line 5\), column query: the cell is empty",
        r"row 5 \(line 6\), column url: .*gone.jpg: there is no such file",
        r"row 6 \(line 7\), column annotation: 2 cells where the header has 3: a comma is missing",
        r"row 7 \(line 8\), column annotation: 4 cells where the header has 3: put texts with commas in double quotes",
        r"row 8 \(line 9\), column url: ftp://example.org/p.jpg: ftp: pictures are fetched by http and https alone",
        r"row 9 \(line 10\), column url: .*empty.jpg: the file is empty",
    ]
    assert len(lines) == 1 + len(expected)
    for line, pattern in zip(lines[1:], expected, strict=True):
        assert re.match(rf"  {pattern}", line), line


def test_the_list_of_bad_rows_is_capped_and_counted(write: Write) -> None:
    with pytest.raises(ValueError) as error:
        source(write("url,query,annotation\n" + "".join(f"gone{n}.jpg,q,a\n" for n in range(LISTED_PROBLEMS + 5))))
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
    with pytest.raises(ValueError, match=r"2 of 2 rows are bad(?s:.*)is too long for a file"):
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
        (b'url,query,annotation\na.jpg,q,"never closed\n', r"train.csv, row 2, line 2: a double quote .* is never"),
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
    assert {(each.question_type, each.history) for each in questions} == {("text", ())}
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
