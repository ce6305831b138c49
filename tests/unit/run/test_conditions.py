"""The record of conditions: the same for the same content wherever it lies, another for any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.picture_files import by_pillow, gradient, noise
from support.toy_data import PlainSource

from panollava.checkpoint import FORMAT_VERSION
from panollava.component import outside_types
from panollava.crop.boxes import PictureBoxes, Places
from panollava.data.files import FilesSource
from panollava.data.source import Record
from panollava.data.world import WorldSource
from panollava.run import conditions as conditions_module
from panollava.run.conditions import (
    describe,
    differences,
    mismatch,
    place_conditions,
    places_digest,
    questions_record,
    scoring,
    training_record,
    unequal,
    unlike_times,
    unusable_places,
)
from panollava.store.identity import FileIdentity, package_digest

WORLD = WorldSource(split="test", scenes=1)
ROWS = ["a.png,what?,red", "a.png,what?,crimson", "b.png,where?,left"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of two pictures and two questions."""
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.png").write_bytes(by_pillow(gradient(), "PNG"))
    (folder / "b.png").write_bytes(by_pillow(noise(64, 128), "PNG"))
    return written(folder, ROWS)


def written(folder: Path, rows: list[str]) -> Path:
    (folder / "test.csv").write_text("\n".join(["image,question,answer", *rows]) + "\n", encoding="utf-8")
    return folder


def asked(folder: Path) -> dict[str, str]:
    source = FilesSource(path=str(folder / "test.csv"), reader=lambda path: noise(64, 128), name="csv-test")
    return questions_record(source, FileIdentity(None))


def changed(folder: Path, before: dict[str, str]) -> list[str]:
    return list(differences(before, asked(folder)))


def test_a_split_is_its_texts_and_pictures_in_their_order(folder: Path) -> None:
    before = asked(folder)
    copy = shutil.copytree(folder, folder.with_name("elsewhere"))
    assert asked(copy) == before
    assert changed(written(copy, [ROWS[0], ROWS[1], "b.png,where?,right"]), before) == ["references"]
    assert changed(written(copy, [ROWS[0], ROWS[1], "b.png,where now?,left"]), before) == ["questions"]
    assert "questions" in changed(written(copy, ROWS[::-1]), before)
    assert "questions" in changed(written(copy, ROWS[:2]), before)
    written(copy, ROWS)
    (copy / "a.png").write_bytes(by_pillow(gradient()[:, ::-1], "PNG"))
    assert changed(copy, before) == ["pictures"]


def test_the_world_is_known_by_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    known = FileIdentity(None)
    test = [questions_record(WorldSource(split="test", scenes=2, seed=1), known) for _ in range(2)]
    assert test[0] == test[1]
    other = questions_record(WorldSource(split="test", scenes=2, seed=1, turn_deg=45.0), known)
    assert set(differences(test[0], other)) == {"questions", "references", "pictures"} - {
        key for key in other if other[key] == test[0][key]
    }
    assert "pictures" in differences(test[0], other)
    harder = questions_record(WorldSource(split="test", scenes=2, seed=1, level=2), known)
    assert set(differences(test[0], harder)) == {"questions", "references", "pictures"}
    train = training_record(WorldSource(split="train", scenes=2), known)
    monkeypatch.setattr("numpy.__version__", "0")  # a library of another version draws the same
    assert training_record(WorldSource(split="train", scenes=2), known) == train
    painted = WorldSource.panorama
    monkeypatch.setattr(WorldSource, "panorama", lambda self, index: 255 - painted(self, index))
    assert list(differences(train, training_record(WorldSource(split="train", scenes=2), known))) == ["pictures"]


def test_each_text_of_an_outside_source_is_digested() -> None:
    """Also where its pictures are texts, as those of records of one file are."""

    class Plain(PlainSource):
        corrected = -1

        def record(self, index: int, epoch: int) -> Record:
            return Record(f"plain-{index}", (("what?", "red" if index == self.corrected else "grey"),))

    before, after = Plain(200), Plain(200)
    after.corrected = 100
    known = FileIdentity(None)
    found = [training_record(source, known) for source in (before, after)]
    assert list(differences(*found)) == ["texts"]


def test_what_one_does_not_know_is_not_compared() -> None:
    now = {"generation": {"max_new_tokens": 16, "beams": 1}, "precision": None, "language": "x"}
    assert differences({"generation": {"max_new_tokens": 16, "beams": 1}, "precision": "bfloat16"}, now) == {}
    found = differences({"generation": {"max_new_tokens": 1, "beams": 1}, "language": "y"}, now)
    assert describe(found) == "generation.max_new_tokens: 1 there, 16 now; other language"


@pytest.mark.parametrize(("limit", "wanted", "fits"), [(None, 5, True), (5, 5, True), (9, 5, True), (5, None, False)])
def test_a_limited_evaluation_is_no_full_one(limit: int | None, wanted: int | None, fits: bool) -> None:
    found = mismatch({"conditions": {"weights": "w"}, "max_samples": limit}, {"weights": "w"}, wanted)
    assert found == ({} if fits else {"max_samples": (limit, wanted)})
    assert mismatch({"max_samples": limit}, {"weights": "w"}, wanted) is None


def test_unequal_ways_of_answering_are_named() -> None:
    one = {"generation": {"max_new_tokens": 16}, "precision": "float32", "crop": {"type": "e2p"}}
    assert unequal({"a": one, "b": {**one, "crop": {"type": "resize"}}}) == []
    assert unequal({"a": one, "b": {**one, "precision": "bfloat16"}}) == [
        "precision is not the same for all: 'float32' (a), 'bfloat16' (b)"
    ]


class _Annotated(PlainSource):
    """Pictures of a file, each with a box and a mask."""

    class_names = ("chair",)

    def __init__(self, box: float = 20.0, label: int = 0) -> None:
        super().__init__(3)
        self.box, self.label = box, label

    def picture(self, index: int) -> Path:  # type: ignore[override]
        return Path(f"{index}.jpg")

    def boxes(self, index: int) -> PictureBoxes:
        return PictureBoxes(np.array([[0.0, 0.0, self.box, 20.0, 0.0]]), np.zeros(1, int))

    def places(self, index: int) -> Places:
        return Places(self.boxes(index), np.full((4, 8), self.label, np.int16))


def test_boxes_and_masks_are_part_of_the_conditions() -> None:
    """A changed mask is another truth, though its boxes stay: an evaluation on record is then made again."""
    known = places_digest(_Annotated())
    assert known == "a59c7fb718fced77"  # as recorded by earlier versions, whose records stand
    assert places_digest(_Annotated(box=21.0)) != known
    assert places_digest(_Annotated(label=-1)) != known


def conditions(tmp_path: Path, **changes: str) -> dict[str, object]:
    """Of detections of a checkpoint whose encoder is a folder with one file."""
    for name in ("run.ckpt", "encoder"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "run.ckpt" / "trained.safetensors").write_text("weights")
    (tmp_path / "run.ckpt" / "state.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "stage": "detect"}))
    (tmp_path / "encoder" / "model.safetensors").write_text(changes.get("encoder", "encoder"))
    settings = {"model": {"vision": {"name": str(tmp_path / "encoder")}}, "crop": {"type": "cubemap"}}
    source = _Annotated()
    if "folder" in changes:
        source.image_id = lambda index: f"{changes['folder']}/{index}.jpg"  # type: ignore[method-assign]
    for index in range(len(source)):
        (tmp_path / f"{index}.jpg").write_text(str(index))
    source.picture = lambda index: tmp_path / f"{index}.jpg"  # type: ignore[method-assign, assignment, return-value]
    return place_conditions(
        tmp_path / "run.ckpt", settings, source, FileIdentity(None), precision=changes.get("precision")
    )


def test_detections_are_used_again_under_the_same_conditions_alone(tmp_path: Path) -> None:
    """The encoder and the names of the pictures count, and a record that lacks them is not used."""
    recorded = conditions(tmp_path, precision="bfloat16")
    assert recorded["precision"] == "bfloat16"
    settings = {"conditions": recorded, "max_samples": None}
    assert unusable_places(settings, conditions(tmp_path), None) == ""
    assert unusable_places(settings, conditions(tmp_path), 2) == "max_samples: null there, 2 now"
    assert unusable_places(settings, conditions(tmp_path, precision="float32"), None).startswith("precision: ")
    assert unusable_places(settings, conditions(tmp_path, encoder="another"), None) == "other vision"
    assert unusable_places(settings, conditions(tmp_path, folder="../data"), None) == "other names"
    older = {key: value for key, value in recorded.items() if key not in ("vision", "names")}
    assert unusable_places({"conditions": older}, conditions(tmp_path), None) == "their record lacks names, vision"
    assert unusable_places({}, conditions(tmp_path), None).startswith("their record lacks")


@pytest.mark.parametrize("kind", ["adaptive", "panollava.crop.strategies:AdaptiveCrop"])
def test_answers_depend_on_the_rule_that_chooses_views(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the crop is of another package, which is named by its class."""
    monkeypatch.setenv("PANOLLAVA_ALLOW", "panollava")
    settings = {"model": {}, "crop": {"type": kind}}
    before = conditions_module._newer_parts(settings, WORLD)
    monkeypatch.setattr(conditions_module, "class_digest", lambda *_: "another rule")
    found = differences(before, conditions_module._newer_parts(settings, WORLD))
    assert describe(found) == "other choice"
    others = {"model": {"tokens_per_side": None, "resampler": {"type": "mlp"}}, "crop": {"type": "e2p"}}
    assert conditions_module._newer_parts(others, WORLD) == {}
    others["model"]["tokens_per_side"] = 3
    assert conditions_module._newer_parts(others, WORLD) == {"tokens_per_side": 3}


def test_other_packages_of_which_the_answers_are_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their versions and their code, also of a metric; of packages that are here, and none is imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name, settings = f"lab_{tmp_path.name}", {"model": {}, "crop": {"type": "e2p"}}
    (tmp_path / name).mkdir()
    settings["model"]["resampler"] = {"type": f"{name}.parts:Own"}
    settings["model"]["position"] = {"type": "no_such_package:Own"}
    options = options_of(metrics=["BLEU", f"{name}.parts:Score"])

    def now(code: str, version: str = "unknown") -> tuple[dict[str, object], dict[str, object]]:
        (tmp_path / name / "parts.py").write_text(f"{code}\nraise SystemExit\n")
        package_digest.cache_clear()
        monkeypatch.setattr(conditions_module, "outside_packages", lambda found: dict.fromkeys(names(found), version))
        return conditions_module._newer_parts(settings, WORLD), scoring(options, {})

    def names(config: dict[str, object]) -> list[str]:
        return sorted({value.split(":")[0].split(".")[0] for _, value in outside_types(config)})

    answers, scores = now("x = 1")
    assert list(answers["packages"]) == list(scores["packages"]) == [name]  # type: ignore[call-overload]
    assert now("x = 1  # one") == (answers, scores)
    for changed in (now("x = 2"), now("x = 1", "lab==2")):
        reason = describe(differences(answers, changed[0]))
        assert reason.startswith(f"packages.{name}: 'unknown, code ")
        assert list(differences({"scores": scores}, {"scores": changed[1]})) == [f"scores.packages.{name}"]
    assert differences({}, answers) == {}
    assert unusable_places({"conditions": {"weights": "w"}}, answers, None) == "their record lacks packages"


def test_a_source_that_processes_pictures_is_named() -> None:
    (name,) = conditions_module._newer_parts({"model": {}, "crop": {"type": "e2p"}}, PlainSource(1))["packages"]
    assert name == PlainSource.__module__.split(".")[0]
    assert scoring(options_of(metrics=["BLEU"]), {})["packages"] == {}
    assert "packages" not in scoring(options_of(), {})


def options_of(**given: object) -> Any:
    """Options of an evaluation, as far as scores depend on them."""
    plain = {"blank": False, "words": "auto", "meteor": None, "clip": None, "metrics": None, "measure": "auto"}
    return SimpleNamespace(**{**plain, **given})


def test_times_of_an_answer_are_said_not_to_compare() -> None:
    timing = {"device": "cpu", "batch_size": 8, "encoder": "timed"}
    assert unlike_times({"a": timing, "b": dict(timing)}) == []
    (line,) = unlike_times({"a": timing, "b": {**timing, "device": "cuda"}, "c": timing, "old": {}})
    assert line == (
        "The times of an answer may not compare: device is cpu (a, c), cuda (b); how it was measured is not recorded "
        "for old"
    )
    assert unlike_times({"a": {}, "b": {}})[0].endswith("not recorded for any")
