"""What earlier versions left is opened, resumed, evaluated and finished (``tests/fixtures/make_landed.py`` made it)."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.make_landed import COMMANDS, EVALUATION, SWEEP, UNFINISHED, WARM, machine
from hydra.core.hydra_config import HydraConfig
from safetensors.torch import load_file
from support import ROOT
from support.runs import command

from panollava import PanoLlava, compare, features, train
from panollava import eval as evaluation

ARCHIVES = ROOT / "tests" / "fixtures" / "landed"
FINISHED = COMMANDS[0][1]
QUIET = ("tracking=none", "device=cpu", "num_workers=0")
Run = Callable[..., str]
STOPPED = Path("runs/unfinished/finetune/anyres-e2p_mlp")
"""The stage that was killed in the middle."""


@pytest.fixture(scope="module", params=["0.1", "0.2"])
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a version left (``given``) and what its unfinished work ends in (``expected``)."""
    folder = tmp_path_factory.mktemp("landed")
    with tarfile.open(ARCHIVES / f"{request.param}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def landed(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a version left, as the working directory, and the number of threads that it ran with."""
    shutil.copytree(unpacked / "given", tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "here"
    torch.set_num_threads(threads)
    HydraConfig.instance().cfg = None  # a sweep's mode would stay for tests that run without Hydra


@pytest.fixture
def expected(unpacked: Path) -> Path:
    """What version 0.2 made of it."""
    return unpacked / "expected"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run(module, arguments)``: what a command says that ends well."""

    def start(module: object, arguments: str, *more: str) -> str:
        status = command(monkeypatch, module, *arguments.split(), *more)
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out + captured.err

    return start


def is_landed_machine(expected: Path) -> bool:
    """Whether this machine rounds as the one where the archives were made.

    The mathematical library chooses other kernels on processors of other makers, also where they know the same
    instructions. Archives that name no maker are of an AMD processor.
    """
    made_on = {"processor": "AuthenticAMD", **json.loads((expected / "machine.json").read_text())}
    return bool(made_on == machine())


def assert_same_weights(folder: str, expected: Path) -> None:
    """Every stage below a folder ended with the expected weights."""
    wanted = sorted((expected / folder).glob("**/model_final.safetensors"))
    assert wanted
    for path in wanted:
        assert_same_tensors(last_weights(path.parent.relative_to(expected)), load_file(path), expected)


def last_weights(stage: Path) -> dict[str, torch.Tensor]:
    return load_file(stage / "last.ckpt" / "trained.safetensors")


def assert_same_tensors(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], expected: Path) -> None:
    """Equal to the bit where the expected ones were made on such a machine."""
    assert found.keys() == wanted.keys()
    tolerance = 0.0 if is_landed_machine(expected) else 1e-3
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


def contents(folder: str) -> dict[Path, tuple[int, bytes]]:
    """Time and content of every weight file below a folder."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(folder).rglob("*.safetensors")}


def answers(folder: Path, experiment: str) -> dict[str, dict[str, str]]:
    """Rows of the newest predictions of an experiment by sample."""
    newest = max((folder / "results" / "eval_results" / experiment).glob("predictions_*/predictions.csv"))
    with newest.open(encoding="utf-8-sig", newline="") as file:
        return {row["sample_id"]: row for row in csv.DictReader(file)}


def texts(rows: dict[str, dict[str, str]]) -> dict[str, str]:
    return {sample: row["prediction"] for sample, row in rows.items()}


def tracked() -> dict[str, tuple[str, str]]:
    """Name -> (id, status) of MLflow's runs."""
    with sqlite3.connect("mlflow.db") as database:
        rows = database.execute("select name, run_uuid, status from runs").fetchall()
    assert len(rows) == len({name for name, *_ in rows})
    return {name: (uuid, status) for name, uuid, status in rows}


def losses(experiment: str) -> dict[tuple[str, int], float]:
    """MLflow's training losses of an experiment: (key, step) -> value, each logged once."""
    with sqlite3.connect("mlflow.db") as database:
        query = "select key, step, value from metrics where run_uuid = ? and key like '%loss%'"
        rows = database.execute(query, (tracked()[experiment][0],)).fetchall()
    assert len(rows) == len({(key, step) for key, step, _ in rows})
    return {(key, step): value for key, step, value in rows}


def is_current(landed: Path) -> bool:
    """Of version 0.2, which records the content of its inputs, and whose answers and features are used again."""
    return "inputs" in json.loads(next(landed.glob("runs/finished/finetune/*/checkpoint_metadata.json")).read_text())


def test_a_finished_run_is_not_trained_again(landed: Path, run: Run) -> None:
    before, was = contents("runs/finished"), tracked()
    run(train, FINISHED)
    assert contents("runs/finished") == before
    assert tracked()["finished"][0] == was["finished"][0]
    assert len(list(Path("results/eval_results/finished").glob("predictions_*"))) == 1


def test_a_finished_run_answers_as_it_did(landed: Path, run: Run) -> None:
    """Evaluated anew from its folder; opened from its folder and as an export."""
    before = texts(answers(landed, "finished"))
    run(evaluation, "checkpoint=runs/finished max_samples=4 results_dir=again", *QUIET)
    newest = landed / "again"
    (newest / "results").mkdir()
    (newest / "eval_results").rename(newest / "results" / "eval_results")
    assert texts(answers(newest, "finished")) == before
    picture = np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    said = [
        PanoLlava.from_pretrained(folder).generate(picture, "what is it?", max_new_tokens=8)
        for folder in ("runs/finished", "runs/finished/finetune/anyres-e2p_mlp", "export")
    ]
    assert said[0]
    assert said == [said[0]] * 3


def test_an_unfinished_run_ends_as_it_would_have(landed: Path, expected: Path, run: Run) -> None:
    """The same weights, losses and answers; MLflow goes on in the same run."""
    (uuid, status), before = tracked()["unfinished"], losses("unfinished")
    assert status in ("RUNNING", "KILLED")
    vision, stopped = contents("runs/unfinished/vision"), last_weights(STOPPED)
    run(train, UNFINISHED)
    assert contents("runs/unfinished/vision") == vision
    assert_same_weights("runs/unfinished", expected)
    assert any(not torch.equal(value, last_weights(STOPPED)[name]) for name, value in stopped.items())
    states = [json.loads((each / "runs/unfinished/stage_state.json").read_text()) for each in (landed, expected)]
    ended = [{name: one["validation_loss"] for name, one in state["stages"].items()} for state in states]
    assert ended[0] == pytest.approx(ended[1], rel=0 if is_landed_machine(expected) else 1e-3)
    assert {one["status"] for one in states[0]["stages"].values()} == {"finished"}
    assert texts(answers(landed, "unfinished")) == texts(answers(expected, "unfinished"))
    assert tracked()["unfinished"] == (uuid, "FINISHED")
    after = losses("unfinished")
    assert after.items() > before.items()


def test_a_half_done_evaluation_asks_what_is_missing(landed: Path, expected: Path, run: Run) -> None:
    """An answer that was given before has the time that it took then."""
    (unfinished,) = Path("results/eval_results/finished/.unfinished").iterdir()
    given = [json.loads(line) for line in unfinished.read_text().splitlines()]
    given = [one for one in given if "sample_id" in one]
    run(evaluation, EVALUATION)
    rows = answers(landed, "finished")
    assert texts(rows) == texts(answers(expected, "finished"))
    assert 0 < len(given) < len(rows)
    kept = [one for one in given if float(rows[one["sample_id"]]["latency_s"]) == pytest.approx(one["latency_s"], 1e-3)]
    assert len(kept) == (len(given) if is_current(landed) else 0)
    assert unfinished.exists() != is_current(landed)


def test_a_killed_sweep_is_finished(landed: Path, expected: Path, run: Run) -> None:
    was, done = tracked(), contents("runs/sweep/resampler.depth-1")
    run(train, SWEEP)
    assert contents("runs/sweep/resampler.depth-1") == done
    assert_same_weights("runs/sweep", expected)
    now = tracked()
    assert [now[name] for name in ("sweep", "resampler.depth-1", "resampler.depth-2")] == [
        (was[name][0], "FINISHED") for name in ("sweep", "resampler.depth-1", "resampler.depth-2")
    ]
    for job in ("sweep/resampler.depth-1", "sweep/resampler.depth-2"):
        assert texts(answers(landed, job)) == texts(answers(expected, job))
    with Path("runs/sweep/sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["status"]) for row in rows] == [
        ("resampler.depth-1", "finished"), ("resampler.depth-2", "finished"),
    ]  # fmt: skip
    assert rows[0]["still_learning"] == "unknown"
    assert "version recorded no learning curve" in rows[0]["still_learning_why"]
    assert "not trained alike" not in Path("runs/sweep/sweep.md").read_text("utf-8")


def test_a_job_that_its_sweep_had_not_begun_has_the_defaults_of_the_others(
    landed: Path, expected: Path, run: Run
) -> None:
    shutil.rmtree(landed / "runs/sweep/resampler.depth-2")
    run(train, SWEEP)
    assert_same_weights("runs/sweep", expected)


@pytest.mark.usefixtures("landed")
def test_recorded_runs_are_compared(run: Run) -> None:
    said = run(compare, "runs/finished runs/sweep/resampler.depth-1 max_samples=4", *QUIET)
    assert "not distinguishable" in said
    assert "not known whether finished was still learning" in said
    assert Path("results/comparison/pairs.csv").is_file()


def test_a_first_stage_is_measured(landed: Path, run: Run) -> None:
    run(evaluation, "checkpoint=runs/tiny split=val", *QUIET)
    (measures,) = Path("results").glob("**/measures*.json")
    found = json.loads(measures.read_text())
    metadata = json.loads(next(Path("runs/tiny/vision").glob("*/checkpoint_metadata.json")).read_text())
    assert metadata["validation_loss"] == pytest.approx(found["measures"]["loss"], rel=1e-4)


def feature_bits(store: Path) -> set[str]:
    """A digest of the features of each panorama, whatever it is called."""
    values = [load_file(path)["features"].numpy() for path in store.rglob("*.safetensors")]
    return {hashlib.sha256(value.tobytes()).hexdigest() for value in values}


@pytest.fixture
def store(landed: Path, expected: Path) -> Path:
    """The features of the encoder that the package brings."""
    if not is_landed_machine(expected):
        pytest.skip("features belong to the kind of machine that made them")
    (found,) = Path("cache/features").glob("tiny-siglip*")
    return found


def test_features_under_an_equivalent_digest_are_the_same_bits(store: Path, run: Run) -> None:
    """From the seed to the features; ``panollava/store/identity.py`` says what to do about a new digest."""
    run(features, WARM, "store.dir=anew")
    made = feature_bits(Path("anew"))
    assert len(made) == 5
    assert made == feature_bits(store)


def test_features_under_an_equivalent_digest_are_read(landed: Path, store: Path, run: Run) -> None:
    if not is_current(landed):
        pytest.skip("features of version 0.1 are made anew")
    before, stores = contents(str(store)), set(Path("cache/features").iterdir())
    run(features, WARM)
    assert contents(str(store)) == before
    assert set(Path("cache/features").iterdir()) == stores
