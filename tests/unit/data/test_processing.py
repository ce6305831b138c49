"""Features of pictures that a source of another package processes are its own, and those of its present code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.picture_files import by_pillow, noise
from support.toy_data import PlainCrop

from panollava.data.dataset import PanoDataset, QuestionDataset
from panollava.data.files import FilesSource
from panollava.data.source import DataSource, processing_of
from panollava.data.world import WorldSource
from panollava.prompt import Encoded
from panollava.run.conditions import differences, questions_record, training_record
from panollava.store.catalogue import StoreOptions, open_store
from panollava.store.features import FeatureStore
from panollava.store.identity import FileIdentity, package_digest

MODULE = """
from panollava.data.files import FilesSource
from .levels import level
class Levelled(FilesSource):
    def panorama(self, index):
        return level(super().panorama(index))
class Asked(FilesSource):
    def question_panorama(self, question):
        return level(super().question_panorama(question))
class Worded(FilesSource):
    def directions(self, index):
        return "none"
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``lab(code)``: a module with sources, whose ``level`` returns what the code says."""
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / f"lab_{tmp_path.name}".replace("-", "_")
    folder.mkdir()
    (folder / "sources.py").write_text(MODULE)

    def write(code: str) -> Any:
        (folder / "levels.py").write_text(f"def level(a):\n    return {code}\n")
        package_digest.cache_clear()
        return importlib.import_module(f"{folder.name}.sources")

    return write


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    options = StoreOptions(dir=str(tmp_path / "cache"))
    return open_store(options, "tiny", {}, shape=(1, 1, 1), dtype=torch.float32)


@pytest.fixture
def split(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "a.png").write_bytes(by_pillow(noise(8, 16), "PNG"))
    (tmp_path / "test.csv").write_text("image,question,answer\na.png,what?,red\n")
    return {"path": str(tmp_path / "test.csv"), "reader": lambda path: noise(8, 16), "name": "lab-test"}


def feature(store: FeatureStore, source: DataSource) -> tuple[float, bool]:
    """The first pixel, as the feature that is kept of the source's picture, and whether it was there."""
    sample = PanoDataset(source, PlainCrop(), store=store)[(0, 0)]  # type: ignore[arg-type]
    text = Encoded([1], [False], cut=0)
    asked = QuestionDataset(source, PlainCrop(), lambda _: text, store=store)[0]  # type: ignore[arg-type]
    assert sample.picture == asked.picture
    assert sample.picture is not None
    if sample.views is not None:
        store.put(sample.picture, sample.views[:, :1, :1, :1].reshape(1, 1, 1).float())
    found = store.get(sample.picture)
    assert found is not None
    return float(found), sample.views is None


def test_a_processed_picture_has_features_of_its_own(
    lab: Callable[..., Any], store: FeatureStore, split: dict[str, Any]
) -> None:
    sources = lab("255 - a")
    first = int(noise(8, 16)[0, 0, 0])
    assert feature(store, FilesSource(**split)) == (first, False)
    assert feature(store, sources.Worded(**split)) == (first, True)  # its pictures are the files
    assert feature(store, sources.Levelled(**split)) == (255 - first, False)
    assert feature(store, sources.Levelled(**split)) == (255 - first, True)
    source = sources.Levelled(**split)
    source.processing = "gamma 2"
    assert feature(store, source)[1] is False
    known = FileIdentity(None)
    before = training_record(sources.Levelled(**split), known)
    assert [*differences(before, training_record(source, known))] == ["processing"]
    older = training_record(FilesSource(**split), known)  # as earlier versions recorded all sources
    assert differences(older, before) == {}
    lab("255 - a  # inverted")
    assert feature(store, sources.Levelled(**split))[1] is True
    lab("254 - a")
    assert feature(store, sources.Levelled(**split))[1] is False
    assert [*differences(before, training_record(sources.Levelled(**split), known))] == ["processing"]


def test_questions_about_processed_pictures_are_others(lab: Callable[..., Any], split: dict[str, Any]) -> None:
    known, plain = FileIdentity(None), FilesSource(**split)
    asked = lab("255 - a").Asked(**split)
    assert np.array_equal(asked.panorama(0), plain.panorama(0))
    assert not np.array_equal(*(one.question_panorama(one.questions()[0]) for one in (asked, plain)))
    assert questions_record(plain, known) == questions_record(asked, known)
    assert processing_of(asked) != processing_of(plain) == ""


def test_our_sources_have_the_keys_of_their_pictures(split: dict[str, Any]) -> None:
    assert processing_of(FilesSource(**split)) == processing_of(WorldSource(split="test", scenes=1)) == ""
