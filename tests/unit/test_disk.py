"""Small files: a table reads back as it was written, whatever its cells hold."""

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from panollava.disk import csv_text

CELL = st.text(st.sampled_from("ab ,\"\r\n;'파"), max_size=6)


@given(st.lists(st.lists(CELL, min_size=2, max_size=2), max_size=4))
def test_a_table_reads_back_as_it_was_written(rows: list[list[str]]) -> None:
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""), strict=True)) == rows


def test_plain_cells_are_not_quoted() -> None:
    assert csv_text([["a", 1], ["b\rc", None]]) == 'a,1\n"b\rc",""\n'
