"""``eval benchmark=…``: a run is asked each public set, and both forms of the scores are the fixtures' own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.benchmark_files import SETS, Fixture, different
from support.runs import Recorder, command, predictions, stage_folder

from panollava import compare, score
from panollava import eval as evaluation
from panollava.batch import Batch
from panollava.evaluation.benchmarks.protocol import FormScores
from panollava.evaluation.predictions import AnswerLog
from panollava.evaluation.results import newest_evaluation
from panollava.evaluation.statistics import Interval
from panollava.model.api import PanoLlava
from panollava.run import reevaluation

QUIET = ("num_workers=0", "device=cpu")
SHORT = (*QUIET, "tracking=none", "store.enabled=false", "generation.max_new_tokens=8")
FORMS = ("as_released", "corrected")
Capture = pytest.CaptureFixture[str]
Refused = Callable[..., str]


@pytest.fixture
def place(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with nothing but the recorded run."""
    (tmp_path / "runs").symlink_to(recorded / "runs", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def panospace(place: Path) -> Fixture:
    return Fixture("panospace", place / "set")


def asked(monkeypatch: pytest.MonkeyPatch, fixture: Fixture, *arguments: str) -> tuple[Path, dict[str, Any]]:
    """Evaluates the recorded run on a set; returns the folder of the evaluation and its scores."""
    folder = fixture.path if fixture.path.is_dir() else fixture.folder
    line = ["runs/recorded", f"benchmark={fixture.name}", f"data.dir={folder}", *arguments]
    assert command(monkeypatch, evaluation, *line) == 0
    found = max(Path("results/eval_results/recorded").glob("predictions_*"))
    return found, json.loads((found / "benchmark.json").read_text("utf-8"))


def says_its_cases(monkeypatch: pytest.MonkeyPatch, fixture: Fixture) -> list[str]:
    """The model says what the fixture's cases do; returns the samples in the order in which they are asked."""
    answers = {f"{fixture.name}-{one.item.id}": one.answer or "" for one in fixture.answered()}
    order: list[str] = []

    def answer(_self: PanoLlava, batch: Batch, **_options: Any) -> list[str]:
        order.extend(batch.sample_ids)
        return [answers[name] for name in batch.sample_ids]

    monkeypatch.setattr(PanoLlava, "answer", answer)
    return order


def of_record(record: dict[str, Any]) -> FormScores:
    scores = {name: Interval(**one) for name, one in record["scores"].items() if one is not None}
    return FormScores(**{**record, "scores": scores})


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_asked_and_scored(name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    fixture = Fixture(name, place / "set")
    order = says_its_cases(monkeypatch, fixture)
    named = ["benchmark_files=eagle360.jsonl"] if name == "eagle" else []  # whose authors' name is not known
    folder, kept = asked(monkeypatch, fixture, *SHORT, *named)
    printed = capsys.readouterr().err
    for form in FORMS:
        assert different(of_record(kept[form]), fixture.expected[form]) == {}
        assert kept[form]["unanswered"] == 0
    assert (kept["items"], kept["items_of_set"], kept["blank"]) == (len(fixture.items), len(fixture.items), None)
    assert "| as released | corrected |" in printed
    assert "exact match" not in printed
    # Each question once, one for all references of it, and those about a picture together.
    assert len(order) == len({*order}) == len(fixture.cases)
    images = [next(one.image for one in fixture.items if f"{fixture.name}-{one.id}" == each) for each in order]
    assert [one for one, before in zip(images, [None, *images], strict=False) if one != before] == [
        *dict.fromkeys(images)
    ]
    # ``score`` reads the file, and finds the same.
    path = f"benchmark_files={fixture.path}"
    assert command(monkeypatch, score, str(folder / "predictions.csv"), f"benchmark={fixture.name}", path) == 0
    again = json.loads((folder / "predictions_scores.json").read_text("utf-8"))
    assert {form: again[form] for form in FORMS} == {form: kept[form] for form in FORMS}


def test_the_model_sees_the_picture_and_the_prompt(
    panospace: Fixture, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    tracker = Recorder()
    monkeypatch.setattr(reevaluation, "open_tracker", lambda *args, **options: tracker)
    arguments = (*QUIET, "store.dir=kept", "blank=true", "max_samples=6", "batch_size=4")
    folder, kept = asked(monkeypatch, panospace, *arguments)
    printed = capsys.readouterr().err
    assert "at most 16 new tokens" in printed  # the authors'
    assert "These are 6 of 53 items (max_samples): not the set's scores." in printed
    assert "The same with blank pictures:" in printed
    assert (kept["items"], kept["items_of_set"], kept["max_new_tokens"]) == (6, 53, 16)
    assert kept["blank"]["corrected"]["scored"] == 6
    pano = PanoLlava.from_pretrained(stage_folder("recorded", "finetune"), device="cpu")
    items = {f"panospace-{one.id}": one for one in panospace.items}
    rows = predictions("recorded")
    for row in rows:
        item = items[row["sample_id"]]
        assert (row["image_id"], row["question"]) == (item.image, item.prompt)
        assert row["prediction"] == pano.generate(str(item.picture), item.prompt, max_new_tokens=16)
    assert (folder / "answers.png").is_file()
    invalid = tracker.kept["panospace/corrected/invalid", 0]
    assert invalid == kept["corrected"]["scores"]["invalid"]["value"]
    assert {"panospace/as_released/IoU@0.5", "panospace/blank/corrected/unparsed"} <= {key for key, _ in tracker.kept}
    assert not any(key.startswith("test/") for key, _ in tracker.kept)
    # Again with the stored features, which are those of the pictures that were asked about.
    monkeypatch.setattr("panollava.data.dataset.QuestionDataset._cut", lambda *_: pytest.fail("a picture was cut"))
    asked(monkeypatch, panospace, *arguments)
    assert predictions("recorded") == rows


def test_what_is_wrong_with_the_files_is_said_before_the_model_is_opened(
    panospace: Fixture, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr(PanoLlava, "from_checkpoint", None)
    start = ("runs/recorded", *SHORT, "benchmark=panospace")
    pictures = sorted((panospace.folder / "images").iterdir())
    pictures[1].write_bytes(b"")
    said = refused(evaluation, *start, "data.dir=set")
    assert (
        f"1 of {len(pictures)} pictures of panospace cannot be used:\n  {pictures[1].relative_to(Path.cwd())}" in said
    )
    for one in pictures[:2]:
        one.unlink()
    said = refused(evaluation, *start, "data.dir=set")
    assert "data.dir=set: 2 pictures of panospace are not there" in said
    assert all(one.name in said for one in pictures[:2])
    said = refused(evaluation, *start, "data.dir=set", "images=elsewhere")
    assert f"{len(pictures)} pictures of panospace are not there (elsewhere/images/" in said
    assert "data.dir=nowhere: there is no such file or folder" in refused(evaluation, *start, "data.dir=nowhere")
    said = refused(evaluation, *start, "data.dir=set", "benchmark_files=other.jsonl")
    assert "benchmark_files=set/other.jsonl: there is no such file" in said
    assert "the folder has no *.tsv" in refused(evaluation, *start, "data.dir=set", "benchmark=bench360")
    assert not Path("results").exists()


def test_the_files_may_lie_elsewhere(panospace: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    says_its_cases(monkeypatch, panospace)
    other = panospace.folder / "lists" / "my.jsonl"
    other.parent.mkdir()
    panospace.path.rename(other)
    _, kept = asked(monkeypatch, panospace, *SHORT, "benchmark_files=lists/my.jsonl")
    assert (kept["files"], kept["images"]) == (str(panospace.folder / "lists/my.jsonl"), str(panospace.folder))
    assert different(of_record(kept["corrected"]), panospace.expected["corrected"]) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("benchmark=panospace", "meteor=true", "csv_input=a.csv"), "csv_input, meteor: no effect with benchmark=pano"),
        (("benchmark=panospace", "words=ptb", "measure=CIDEr"), "words, evaluation.measure: no effect"),
        (("benchmark=panospace",), "data.dir is missing: name the folder"),
        (("data.dir=set", "images=a"), "data.dir, images: no effect without benchmark="),
        (("benchmark=pano", "data.dir=set"), "benchmark=.*allowed is 'panospace', 'bench360'"),
        (("benchmark=panospace", "data=csv"), r"data=csv: .*csv_input=<file>\. There are the keys data\.dir\.$"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    arguments: tuple[str, ...], message: str, place: Path, refused: Refused
) -> None:
    assert place.is_dir()
    said = refused(evaluation, "runs/recorded", *SHORT, *arguments)
    assert re.search(message, said, re.DOTALL), said


def test_a_stage_without_answers_is_refused_by_name(panospace: Fixture, refused: Refused) -> None:
    folder = stage_folder("recorded", "vision")
    said = refused(evaluation, str(folder), *SHORT, "benchmark=panospace", f"data.dir={panospace.folder}")
    assert "is of stage vision, which gives no answers" in said


def test_an_evaluation_that_was_stopped_continues_with_the_same_files_alone(
    panospace: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = says_its_cases(monkeypatch, panospace)
    whole, add = AnswerLog.add, list[int]()

    def dies(self: AnswerLog, answers: Any) -> None:
        whole(self, answers)
        add.append(len(answers))
        if len(add) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(AnswerLog, "add", dies)
    line = ("runs/recorded", *SHORT, "benchmark=panospace", f"data.dir={panospace.folder}")
    assert command(monkeypatch, evaluation, *line) != 0
    monkeypatch.setattr(AnswerLog, "add", whole)
    text = panospace.path.read_text("utf-8")
    panospace.path.write_text(text.replace('"metadata": "{}"', '"metadata": "{ }"'), encoding="utf-8")
    order.clear()
    asked(monkeypatch, panospace, *SHORT)
    assert len(order) == 53
    panospace.path.write_text(text, encoding="utf-8")
    order.clear()
    _, kept = asked(monkeypatch, panospace, *SHORT)
    assert len(order) == 53 - sum(add)
    assert different(of_record(kept["corrected"]), panospace.expected["corrected"]) == {}


def test_its_answers_are_no_evaluation_of_the_test_split(
    recorded: Path, panospace: Fixture, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    Path("results/eval_results/recorded").mkdir(parents=True)
    (own,) = (recorded / "results/eval_results/recorded").glob("predictions_*")
    linked = Path("results/eval_results/recorded") / own.name
    linked.symlink_to(own, target_is_directory=True)
    says_its_cases(monkeypatch, panospace)
    folder, _ = asked(monkeypatch, panospace, *SHORT)
    assert folder != linked
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    fingerprint = metrics["settings"]["fingerprint"]
    found = newest_evaluation([Path("results")], "recorded", f"{fingerprint}{'0' * 48}")
    assert found == json.loads((own / "metrics.json").read_text("utf-8"))
    # Nor with the conditions of the test split beside its own.
    metrics["settings"]["conditions"] = found["settings"]["conditions"] | {
        "benchmark": metrics["settings"]["conditions"]["benchmark"]
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    capsys.readouterr()
    runs = (str(stage_folder("recorded", "finetune")),) * 2
    assert command(monkeypatch, compare, *runs, "tracking=none", "device=cpu", "num_workers=0") == 0
    said = capsys.readouterr().err
    assert said.count(f"Reusing the answers in {linked}") == 2
    assert str(folder) not in said
