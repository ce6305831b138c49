"""The items of a public benchmark as questions, and their answers as answers to items."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.benchmark_files import SETS, Fixture

from panollava.crop.image_file import check_panorama
from panollava.evaluation.benchmarks.files import picture_file
from panollava.evaluation.benchmarks.protocol import BENCHMARKS, Answered, find_benchmark
from panollava.evaluation.benchmarks.source import BenchmarkSource
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.results import newest_evaluation
from panollava.run.benchmark import BenchmarkFiles
from panollava.store.identity import FileIdentity


def read(path: Path) -> None:
    check_panorama(path)


def source_of(fixture: Fixture) -> BenchmarkSource:
    return BenchmarkSource(fixture.benchmark, fixture.items, read)  # type: ignore[arg-type]


def said_to(source: BenchmarkSource, answer: str, first: int | None = None) -> list[Prediction]:
    """One answer to the first questions, in another order than they are asked in."""
    return [
        Prediction(one.sample_id, one.image_id, "", one.question, f"{answer}{number}", one.references, 0.0)
        for number, one in reversed([*enumerate(source.questions()[:first])])
    ]


@pytest.mark.parametrize("name", SETS)
def test_each_item_is_asked_once_with_its_prompt_and_picture(name: str, tmp_path: Path) -> None:
    fixture = Fixture(name, tmp_path / "set")
    source = source_of(fixture)
    questions = source.questions()
    assert len({one.sample_id for one in questions}) == len(questions) == len(source) == len(fixture.cases)
    first = {item.group if fixture.benchmark.shares_answers else item.id: item for item in reversed(fixture.items)}
    for index, (item, one) in enumerate(zip(reversed(first.values()), questions, strict=True)):
        assert (one.sample_id, one.image_id, one.question) == (f"{fixture.name}-{item.id}", item.image, item.prompt)
        assert source.question_picture(one) == source.picture(index) == item.picture
        assert source.record(index, 0).turns == ((one.question, one.references[0]),)
        assert all(text in one.question for _, text in item.options)
        source.question_panorama(one)
    assert sum(len(one.references) for one in questions) == len(fixture.items)
    answered = source.answered(said_to(source, "x"))
    assert [one.item for one in answered] == fixture.items
    answers = {one.sample_id: f"x{number}" for number, one in enumerate(questions)}
    if not fixture.benchmark.shares_answers:
        assert answered == [Answered(one, answers[f"{fixture.name}-{one.id}"]) for one in fixture.items]


def test_one_answer_is_given_to_all_references_of_a_question(tmp_path: Path) -> None:
    source = source_of(Fixture("quic360", tmp_path / "set"))
    found: dict[str, set[str | None]] = {}
    for one in source.answered(said_to(source, "x")):
        found.setdefault(one.item.group, set()).add(one.answer)
    assert {len(said) for said in found.values()} == {1}
    assert len({*map(min, found.values())}) == len(found) == len(source)


def test_items_that_were_not_asked_have_no_part(tmp_path: Path) -> None:
    fixture = Fixture("bench360", tmp_path / "set")
    source = source_of(fixture)
    assert [one.item for one in source.answered(said_to(source, "x", 5))] == fixture.items[:5]


@pytest.mark.parametrize("name", SETS)
def test_the_digest_is_of_the_contents_of_all_files(name: str, tmp_path: Path) -> None:
    fixture, other = (Fixture(name, tmp_path / folder) for folder in ("set", "other"))
    known = FileIdentity(None)
    found = [BenchmarkFiles(one.benchmark, one.path, None).digest(known) for one in (fixture, other)]
    assert found[0] == found[1]
    file = other.benchmark.files(other.path)[-1]
    file.write_bytes(file.read_bytes() + b"\n")
    assert BenchmarkFiles(other.benchmark, other.path, None).digest(known) != found[0]


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "images/../../a.jpg", "", "https://host/.."])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="names no picture inside set"):
        picture_file(Path("set"), name)


@pytest.mark.parametrize("key", ["item_id", "task_id", "question"])
def test_texts_that_no_file_can_hold_are_refused(key: str, tmp_path: Path) -> None:
    fixture = Fixture("panospace", tmp_path / "set")
    first, *rest = fixture.path.read_text("utf-8").splitlines()
    fixture.path.write_text("\n".join([json.dumps(json.loads(first) | {key: "a\ud800b"}), *rest]))
    with pytest.raises(ValueError, match=r"benchmark_files=.*: the item '.*': .*\. Mend the file\."):
        fixture.benchmark.read(fixture.path)


def test_a_folder_with_the_name_of_the_file_is_not_it(tmp_path: Path) -> None:
    (tmp_path / "test.csv").mkdir()
    with pytest.raises(FileNotFoundError, match=r"the folder has no test\.csv or \*\.csv"):
        find_benchmark("quic360").read(tmp_path)


def test_every_set_states_how_long_its_answers_may_be() -> None:
    assert {name: find_benchmark(name).new_tokens for name in BENCHMARKS} == {
        "panospace": 16,
        "bench360": 64,
        "panoenv": 512,
        "direction360": 64,
        "quic360": 128,
    }


def test_the_newest_evaluation_of_a_model_is_none_of_a_benchmark(tmp_path: Path) -> None:
    def kept(name: str, conditions: object) -> None:
        file = tmp_path / "eval_results" / "demo" / f"predictions_{name}" / "metrics.json"
        file.parent.mkdir(parents=True)
        settings = {"fingerprint": "ab" * 8, "conditions": conditions}
        file.write_text(json.dumps({"created": name, "settings": settings}))

    kept("3", {"benchmark": {"name": "panospace", "files": "0"}})
    assert newest_evaluation([tmp_path], "demo", "ab" * 32) is None
    for name, conditions in (("0", None), ("1", "older"), ("2", {"questions": "0"})):
        kept(name, conditions)
        found = newest_evaluation([tmp_path], "demo", "ab" * 32)
        assert found is not None
        assert found["created"] == name


def test_addresses_of_two_pictures_with_one_file_are_refused(tmp_path: Path) -> None:
    fixture = Fixture("quic360", tmp_path / "set")
    text = fixture.path.read_text("utf-8")
    row = "{}/1.jpg,sky,blue\n"
    fixture.path.write_text(text + row.format("http://example.org/panoramas"), encoding="utf-8")
    assert len(fixture.benchmark.read(fixture.path)) == len(fixture.items) + 1
    fixture.path.write_text(text + row.format("https://example.org/other"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"1\.jpg would be the picture of //example\.org/panoramas/1\.jpg and of"):
        fixture.benchmark.read(fixture.path)
