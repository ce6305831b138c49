"""Small files: a table reads back as it was written, whatever its cells hold; folders that two processes name alike."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panollava.disk import csv_text, rename_free

CELL = st.text(st.sampled_from("ab ,\"\r\n;'파"), max_size=6)


@given(st.lists(st.lists(CELL, min_size=2, max_size=2), max_size=4))
def test_a_table_reads_back_as_it_was_written(rows: list[list[str]]) -> None:
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""), strict=True)) == rows


def test_plain_cells_are_not_quoted() -> None:
    assert csv_text([["a", 1], ["b\rc", None]]) == 'a,1\n"b\rc",""\n'


def test_a_name_that_another_process_takes_meanwhile_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists, looked = Path.exists, set[Path]()

    def just_before(path: Path) -> bool:
        is_first = path not in looked
        looked.add(path)
        return exists(path) and not is_first

    for name in ("a", "a_2", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    monkeypatch.setattr(Path, "exists", just_before)
    assert rename_free(tmp_path / "new", tmp_path / "a") == tmp_path / "a_3"
    assert [(tmp_path / name / content).is_file() for name, content in (("a", "a"), ("a_3", "new"))] == [True, True]
