"""Public benchmarks: every answer of the fixtures in both forms, against values that were derived by hand."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.benchmark_files import SETS, Fixture, different

from panollava.crop.boxes import iou
from panollava.evaluation.benchmarks.angles import as_box
from panollava.evaluation.benchmarks.bench360 import released_letter
from panollava.evaluation.benchmarks.direction360 import corrected_hit, released_hit
from panollava.evaluation.benchmarks.panospace import planar_iou, released_choice
from panollava.evaluation.benchmarks.parsing import find_direction, find_letter
from panollava.evaluation.benchmarks.protocol import Answered, FormScores

FORMS = ("released", "corrected")


@pytest.fixture(params=list(SETS))
def fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Fixture:
    return Fixture(request.param, tmp_path / "set")


def of(name: str, tmp_path: Path) -> Fixture:
    return Fixture(name, tmp_path / "set")


def in_form(fixture: Fixture, form: str, answered: list[Answered]) -> FormScores:
    score = fixture.benchmark.as_released if form == "released" else fixture.benchmark.corrected
    return score(answered)


def test_both_forms_have_the_scores_of_the_fixture(fixture: Fixture) -> None:
    answered = fixture.answered()
    assert len(answered) >= 50
    assert different(fixture.benchmark.as_released(answered), fixture.expected["as_released"]) == {}
    assert different(fixture.benchmark.corrected(answered), fixture.expected["corrected"]) == {}


def test_scores_have_intervals_over_pictures(fixture: Fixture) -> None:
    for form in FORMS:
        scores = in_form(fixture, form, fixture.answered()).scores
        main = scores[next(iter(scores))]
        assert main.low is not None
        assert main.high is not None
        assert main.low < main.value < main.high


def test_cases_say_why(fixture: Fixture) -> None:
    assert [one for one in fixture.cases if not one["why"]] == []


def test_items_can_be_asked(fixture: Fixture) -> None:
    for item in fixture.benchmark.read(fixture.path):
        assert item.picture.is_file()
        assert item.question in item.prompt
        places = [item.prompt.index(f"{letter}. {text}") for letter, text in item.options]
        assert places == sorted(places)


def test_a_missing_picture_is_an_error_with_its_name(fixture: Fixture) -> None:
    gone = fixture.items[3].picture
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name if "hstar" not in fixture.items[3].method else "p1"):
        fixture.benchmark.read(fixture.path)


def test_items_without_an_answer_are_skipped_or_wrong(fixture: Fixture) -> None:
    answered = fixture.answered()
    group = answered[0].item.group
    partial = [replace(one, answer=None) if one.item.group == group else one for one in answered]
    without = sum(one.answer is None for one in partial)
    released, corrected = fixture.benchmark.as_released(partial), fixture.benchmark.corrected(partial)
    assert (released.skipped, released.unanswered) == (without, 0)
    assert released.scored == fixture.expected["as_released"]["scored"] - without
    assert corrected.skipped == 0
    assert corrected.scored == fixture.expected["corrected"]["scored"]
    assert corrected.unanswered == (1 if fixture.name == "quic360" else without)


@pytest.mark.parametrize("name", ["eagle", "hstar"])
@pytest.mark.parametrize("form", FORMS)
def test_each_direction_hits_or_misses(name: str, form: str, tmp_path: Path) -> None:
    fixture = of(name, tmp_path)
    wrong = {}
    for case in fixture.cases:
        found = in_form(fixture, form, [Answered(fixture.item(case["id"]), case["answer"])])
        said = None if found.unparsed else bool(found.scores["hits"].value)
        if said != case[form]:
            wrong[case["id"], case["answer"]] = said
    assert wrong == {}


def test_each_answer_of_360bench_is_read_as_the_fixture_says(tmp_path: Path) -> None:
    fixture = of("bench360", tmp_path)
    assert {one["answer"]: released_letter(one["answer"]) for one in fixture.cases} == {
        one["answer"]: one["released"] for one in fixture.cases
    }
    wrong = {one["id"]: found for one in fixture.cases
             if (found := find_letter(one["answer"], fixture.item(one["id"]).options)) != one["corrected"]}  # fmt: skip
    assert wrong == {}


@pytest.mark.parametrize("answer", ["", "The answer is", "("])
def test_360bench_reads_nothing_as_a(answer: str) -> None:
    assert released_letter(answer) == "A"


@pytest.mark.parametrize("answer", ["B.", "C. Behind", "The correct answer is D"])
def test_360bench_reads_some_letters_as_nothing(answer: str) -> None:
    assert released_letter(answer) == ""
    assert find_letter(answer, [(letter, letter * 3) for letter in "ABCD"]) in {"B", "C", "D"}


def test_the_orders_of_a_question_are_one_group_of_four(tmp_path: Path) -> None:
    fixture = of("bench360", tmp_path)
    groups = [one.group for one in fixture.items]
    assert {groups.count(one) for one in groups} == {4}
    assert len(set(groups)) == 13


@pytest.mark.parametrize("form", FORMS)
def test_each_answer_of_panospace_gets_its_mark(form: str, tmp_path: Path) -> None:
    fixture = of("panospace", tmp_path)
    wrong = {}
    for case in fixture.cases:
        item = fixture.item(case["id"])
        found = in_form(fixture, form, [Answered(item, case["answer"])])
        is_invalid = case[form] is None
        key, value = ("IoU", case[form] or 0) if item.box else ("accuracy", float(case[form] == item.references[0]))
        if abs(found.scores[key].value - value) > 1e-6 or bool(found.scores["invalid"].value) != is_invalid:
            wrong[case["id"]] = found.scores[key].value
        if form == "released" and not item.box and released_choice(case["answer"], item.options) != case[form]:
            wrong[case["id"]] = released_choice(case["answer"], item.options)
        if form == "corrected" and not item.box and find_letter(case["answer"], item.options) != case[form]:
            wrong[case["id"]] = find_letter(case["answer"], item.options)
    assert wrong == {}


def test_panospace_skips_missing_pictures_silently_as_released_alone(tmp_path: Path) -> None:
    fixture = of("panospace", tmp_path)
    answered = fixture.answered()
    (fixture.folder / "images" / "gone.jpg").unlink()
    assert different(fixture.benchmark.as_released(answered), fixture.expected["without_gone"]) == {}
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        fixture.benchmark.corrected(answered)


@pytest.mark.parametrize("form", FORMS)
def test_each_answer_of_panoenv_is_right_or_wrong(form: str, tmp_path: Path) -> None:
    fixture = of("panoenv", tmp_path)
    wrong = {}
    for case in fixture.cases:
        found = in_form(fixture, form, [Answered(fixture.item(case["id"]), case["answer"])])
        said = bool(found.scores["accuracy"].value), not found.unparsed
        if said != (case[form], case[f"{form}_parsed"]):
            wrong[case["id"], case["answer"]] = said
    assert wrong == {}


def test_quic360_counts_rows_as_released_and_questions_as_corrected(tmp_path: Path) -> None:
    fixture = of("quic360", tmp_path)
    assert sum(one["rows"] for one in fixture.cases) == len(fixture.items)
    for case in fixture.cases:
        own = [one for one in fixture.items if (one.image, one.question) == (case["image"], case["question"])]
        assert len(own) == case["rows"]
        assert sum(one.references[0] == case["answer"] for one in own) == case["equal_rows"]


def test_quic360_takes_several_answers_to_a_question(tmp_path: Path) -> None:
    fixture = of("quic360", tmp_path)
    answered = fixture.answered()
    changed = [replace(answered[0], answer="nothing of the kind"), *answered[1:]]
    assert fixture.benchmark.corrected(changed).scored == fixture.benchmark.corrected(answered).scored + 1


def test_the_circle_of_a_direction_is_larger_than_its_box(tmp_path: Path) -> None:
    item = of("eagle", tmp_path).items[0]
    assert released_hit(107, 0, item)
    assert not corrected_hit(107, 0, item)


@pytest.mark.parametrize(("low", "high", "is_over"), [(340, 360, False), (349.7, 360, False), (340, 361, True)])
def test_yaws_that_end_on_the_seam_do_not_go_over_it(low: float, high: float, is_over: bool, tmp_path: Path) -> None:
    """The released rule ignores the pitch of yaws that go over it."""
    item = replace(of("hstar", tmp_path).items[0], box=((low + high) / 2, 0.0, high - low, 20.0))
    assert released_hit(355, 5, item)
    assert released_hit(355, 50, item) == is_over


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A is the sofa, C is the lamp.\n\nB", "B"),
        ("A is the sofa, C is the lamp.\n**B.**", "B"),
        ("A is the sofa, C is the lamp. The answer is: (B) right", "B"),
        ("The answer is A. No, the answer is B.", None),
        ("It is not A but B", "B"),
        ("It is not A", None),
        ("$\\boxed{D}$", "D"),
        ("**Answer:** d", "D"),
        ("A sofa is in front.", "C"),
        ("I say A", "A"),
        ("A, B", None),
        ("in front of it, not right", None),
        ("Don't know", None),
    ],
)
def test_letters_are_found_wherever_they_stand(answer: str, letter: str | None) -> None:
    assert find_letter(answer, [("A", "left"), ("B", "right"), ("C", "in front"), ("D", "behind")]) == letter


@pytest.mark.parametrize(
    ("answer", "direction"),
    [
        ("pitch -5, yaw 10", (10, -5)),
        ("azimuth is 10.5°, elevation is −5°", (10.5, -5)),
        ("(10, -5)", (10, -5)),
        ("yaw 10", None),
        ("1 2 3", None),
    ],
)
def test_directions_are_found(answer: str, direction: tuple[float, float] | None) -> None:
    assert find_direction(answer) == direction


def test_boxes_overlap_across_the_seam_on_the_sphere_alone() -> None:
    pair = (175.0, 0.0, 20.0, 20.0), (-175.0, 0.0, 20.0, 20.0)
    assert planar_iou(*pair) == 0
    shifted = (0.0, 0.0, 20.0, 20.0), (10.0, 0.0, 20.0, 20.0)
    there, here = ([as_box(one)[None] for one in boxes] for boxes in (pair, shifted))
    assert float(iou(*there)[0]) == pytest.approx(float(iou(*here)[0]), abs=1e-9)


MALFORMED = {
    "panospace": ("benchmark.jsonl", '"answer_format": "4_way_multiple_choice"', '"answer_format": "essay"', "essay"),
    "bench360": ("bench360.tsv", "multi-choice options", "options", "multi-choice options"),
    "panoenv": ("test.jsonl", '"expected_answer": "yes"', '"expected_answer": 3', "expected_answer"),
    "eagle": ("eagle360.jsonl", '"bbox_width_degrees": 12', '"bbox_width_degrees": 0', "horizontal=0"),
    "hstar": ("set/p1/annotation.json", '"pitch": [-10, 10]', '"pitch": [10]', "pitch"),
    "quic360": ("test.csv", "url,query,annotation", "url,query,text", "annotation"),
}


def test_malformed_files_are_named_with_the_place(tmp_path: Path) -> None:
    for name, (file, old, new, message) in MALFORMED.items():
        fixture = Fixture(name, tmp_path / name)
        path = fixture.folder / file
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ValueError, match=message) as caught:
            fixture.benchmark.read(fixture.path)
        assert file.split("/")[-1] in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "line 1: this is no JSON"), ("[]", "no JSON object"), ("", "no items")]
)
def test_other_lines_are_refused(tmp_path: Path, text: str, message: str) -> None:
    fixture = of("panoenv", tmp_path)
    fixture.path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        fixture.benchmark.read(fixture.path)


def test_no_file_and_the_same_item_twice_are_refused(tmp_path: Path) -> None:
    fixture = of("panospace", tmp_path)
    with pytest.raises(FileNotFoundError, match="benchmark_files="):
        fixture.benchmark.read(tmp_path / "nowhere")
    line = fixture.path.read_text("utf-8").splitlines()[0]
    fixture.path.write_text(f"{line}\n{line}\n", encoding="utf-8")
    assert json.loads(line)["item_id"] == "ps_1"
    with pytest.raises(ValueError, match="ps_1 is there twice"):
        fixture.benchmark.read(fixture.path)


def test_long_answers_are_read_in_little_time() -> None:
    blank = " " * 20_000
    options = [("A", "left"), ("B", "right")]
    start = time.perf_counter()
    assert find_letter(f"answer{blank}xy", options) is None
    assert find_letter("answer " * 5_000, options) is None
    assert find_direction(f"yaw is{blank}x") is None
    assert time.perf_counter() - start < 5
