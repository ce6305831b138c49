"""``data.score_by``: columns of a CSV and keys of the metadata by which scores are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from panollava.data.files import MOST_GROUPS, FilesSource
from panollava.logs import LOG, log_once
from panollava.run.sources import open_splits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((32, 64, 3), np.uint8))
    log_once.cache_clear()
    return tmp_path


def csv_file(folder: Path, *rows: str, header: str = "url,query,annotation,Language,type", name: str = "test") -> Path:
    path = folder / f"{name}.csv"
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    return path


def json_file(folder: Path, *metadata: Any, name: str = "test.json") -> Path:
    talk = [{"human": "Where?", "assistant": "Left."}, {"human": "Sure?", "assistant": "Yes."}]
    entries = [{"image": "ab"[at] + ".png", "conversations": talk, "metadata": one} for at, one in enumerate(metadata)]
    path = folder / name
    text = json.dumps(entries) if name.endswith(".json") else "\n".join(map(json.dumps, entries))
    path.write_text(text, encoding="utf-8")
    return path


def groups(path: Path, *score_by: str, split: str = "test") -> list[tuple[tuple[str, str], ...]]:
    data = FilesSource(path=str(path), reader=lambda _: np.zeros(1), split=split, score_by=list(score_by))
    return [one.groups for one in data.questions()]


def test_columns_are_groups_by_the_names_that_the_file_has(folder: Path) -> None:
    path = csv_file(folder, "a.png,Where?,left,en,place", "a.png,Who?,Ann,ko,", "b.png,Where?,left, ko ,place")
    assert groups(path) == [(), (), ()]
    assert groups(path, "type", "language") == [
        (("type", "place"), ("Language", "en")),
        (("type", ""), ("Language", "ko")),
        (("type", "place"), ("Language", "ko")),
    ]
    assert groups(path, "query") == [(("query", "Where?"),), (("query", "Who?"),), (("query", "Where?"),)]


def test_rows_of_one_question_share_their_values(folder: Path) -> None:
    path = csv_file(folder, "a.png,Where?,left,ko,x", "a.png,Where?,links,en,x", "a.png,Where?,left,en,x")
    assert groups(path, "Language", "type") == [(("Language", "en, ko"), ("type", "x"))]


@pytest.mark.parametrize("name", ["test.json", "test.jsonl"])
def test_keys_of_the_metadata_are_groups_of_every_turn(folder: Path, name: str) -> None:
    path = json_file(folder, {"year": 2024, "indoor": True, "type": "place"}, {"year": None}, name=name)
    assert groups(path, "year", "indoor", "type") == [
        *[(("year", "2024"), ("indoor", "true"), ("type", "place"))] * 2,
        *[(("year", ""), ("indoor", ""), ("type", ""))] * 2,
    ]


def test_unknown_names_are_refused_with_the_file_and_what_there_is(folder: Path) -> None:
    path = csv_file(folder, "a.png,Where?,left,en,place")
    with pytest.raises(
        ValueError, match=r"test.csv: data.score_by names lang, .* found: url, query, .*, Language, type"
    ):
        groups(path, "type", "lang")
    path = json_file(folder, {"year": 1}, {"type": "x"})
    with pytest.raises(ValueError, match=r"test.json: data.score_by names lang, .* the metadata found: year, type\."):
        groups(path, "lang")
    with pytest.raises(ValueError, match=r"metadata.year: a text or a number is expected by data.score_by, not a list"):
        groups(json_file(folder, {"year": [1]}), "year")


def test_identifiers_are_no_groups(folder: Path) -> None:
    rows = [f"a.png,Where {at}?,left,{at},x" for at in range(MOST_GROUPS + 1)]
    with pytest.raises(ValueError, match=r"data.score_by names language, which has 101 values"):
        groups(csv_file(folder, *rows), "language")
    assert len(groups(csv_file(folder, *rows[:-1]), "language")) == MOST_GROUPS


def test_what_nothing_reads_is_listed_once_and_of_the_test_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(LOG, "info", lambda form, *values: lines.append(form % values))
    path = csv_file(folder, "a.png,Where?,left,en,place")
    for split in ("train", "test", "test"):
        groups(path, "type", split=split)
    groups(json_file(folder, {"type": "x", "names_directions": "none", "year": 1, "room": ""}))
    unread = [one for one in lines if "nothing reads" in one]
    hint = "data.score_by=[…] gives scores by their values."
    assert unread == [
        f"{path}: columns that nothing reads: Language. {hint}",
        f"{folder / 'test.json'}: keys of the metadata that nothing reads: year,room. {hint}",
    ]


def test_training_and_validation_files_need_no_groups(folder: Path) -> None:
    class Reader:
        def read(self, path: Path) -> np.ndarray:
            return np.zeros(1)

        def check(self, path: str) -> object:
            return None

    for name in ("train", "val"):
        csv_file(folder, "a.png,Where?,left", header="url,query,annotation", name=name)
    csv_file(folder, "b.png,Where?,left,en,place")
    files = {f"{name}_csv": str(folder / f"{name}.csv") for name in ("train", "val", "test")}
    data = {"type": "files", "name": "mine", **files, "score_by": ["language"]}
    splits = open_splits(data, ("train", "val", "test"), Reader())
    assert [splits[name].questions()[0].groups for name in splits] == [(), (), (("Language", "en"),)]
