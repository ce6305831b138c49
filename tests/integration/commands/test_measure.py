"""Captions are ranked by CIDEr, and scores are given by the columns of a data set, in every command that scores."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import pytest
from hydra.core.hydra_config import HydraConfig
from mlflow.tracking import MlflowClient
from support.runs import QUICK, UNTRACKED, backbones, command, run_train

from panollava import compare, eval, score, train
from panollava.batch import Batch
from panollava.data.world import WorldSource
from panollava.model.api import PanoLlava
from panollava.tracking.location import absolute_uri

PLACES = ("hall", "kitchen", "garden", "attic", "office", "cellar")
FILES = ("data=csv", "data.dir=data", "stage=finetune", "trainer.max_steps=1", "evaluation.blank=false")
GROUPED = "data.score_by=[language,place]"


@pytest.fixture(scope="module")
def swept(
    backbone: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[str]]]:
    """A working directory with captions of six pictures and a finished sweep of two jobs, and its arguments."""
    folder = tmp_path_factory.mktemp("captions")
    (folder / "data").mkdir()
    world = WorldSource(split="test", scenes=len(PLACES))
    rows = [["url", "query", "annotation", "language", "place", "author"]]
    for at, place in enumerate(PLACES):
        cv2.imwrite(str(folder / f"data/{at}.jpg"), world.panorama(at)[..., ::-1])
        for language in ("en", "ko"):
            text = f"a view of the {place} with {at + 2} things in it, told in {language}"
            rows.append([f"{at}.jpg", f"describe it in {language}", text, language, "in" if at % 2 else "out", "me"])
    for split in ("train", "val", "test"):
        kept = rows if split == "test" else [row[:3] for row in rows]  # groups are needed where scores are
        with (folder / f"data/{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(kept)
    quick = [one for one in QUICK if not one.startswith("data.")]
    arguments = [*backbones(backbone), *quick, *FILES, GROUPED, "experiment_name=captions"]

    def answer(self: PanoLlava, batch: Batch, **options: Any) -> list[str]:
        """Captions that are better with more views, and best in the first pictures."""
        more = " with 2 things in it" if batch.view_mask.shape[1] > 5 else ""
        return [f"a view of the hall{more}"] * len(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(PanoLlava, "answer", answer)
        assert command(patch, train, "-m", *arguments, "crop.overlap=0.0,0.5") == 0
    yield folder, arguments
    HydraConfig.instance().cfg = None


@pytest.fixture
def say(
    swept: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a command in the folder and returns what it says."""
    monkeypatch.chdir(swept[0])

    def run(module: ModuleType, *arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        assert command(monkeypatch, module, *arguments) == status
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run


def newest(folder: Path) -> dict[str, Any]:
    path = max(folder.rglob("metrics.json"), key=lambda path: path.stat().st_mtime_ns)
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_a_sweep_on_captions_is_ranked_by_cider_with_the_others_beside_it(swept: tuple[Path, list[str]]) -> None:
    folder, _ = swept
    text = (folder / "runs/captions/sweep.md").read_text("utf-8")
    assert re.search(r"\| status \| CIDEr \| exact match \| BLEU-1 .* ROUGE-L \|", text)
    assert "By CIDEr: p-values" in text
    with (folder / "runs/captions/sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        metrics = newest(folder / "results/eval_results/captions" / row["job"])
        assert row["measure"] == metrics["measure"] == "CIDEr"
        scores = {name: one for name, one in metrics["captions"]["scores"].items() if one is not None}
        assert len(scores) == 6
        assert {name: float(row[name]) for name in scores} == {name: one["value"] for name, one in scores.items()}
        assert (float(row["CIDEr_low"]), float(row["CIDEr_high"])) == (scores["CIDEr"]["low"], scores["CIDEr"]["high"])
        assert float(row["exact_match"]) == metrics["exact_match"]
        job = json.loads((folder / "runs/captions" / row["job"] / "job.json").read_text())
        assert job["score"] == scores["CIDEr"]["value"]
    order = [line.split(" | ") for line in text.splitlines() if "| finished |" in line]
    assert [line[0] for line in order] == ["| 0.5", "| 0.0"]
    assert float(order[0][2].split()[0]) > float(order[1][2].split()[0]) > 0


def test_mlflow_has_the_measure_and_the_groups(say: Callable[..., str]) -> None:
    client = MlflowClient(absolute_uri())
    runs = client.search_runs([client.get_experiment_by_name("panollava").experiment_id])
    jobs = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(jobs) == 2
    for run in jobs:
        metrics = newest(Path("results/eval_results/captions") / run.info.run_name)
        assert run.data.tags["panollava.measure"] == "CIDEr"
        assert run.data.metrics["test/CIDEr"] == pytest.approx(metrics["captions"]["scores"]["CIDEr"]["value"])
        korean = metrics["groups"]["language"]["ko"]
        assert korean["count"] == 6
        assert run.data.metrics["test/CIDEr/language/ko"] == pytest.approx(korean["scores"]["CIDEr"]["value"])
        assert run.data.metrics["test/exact_match/place/in"] == 0.0


def test_the_log_says_which_measure_and_why_and_what_nothing_reads(swept: tuple[Path, list[str]]) -> None:
    log = next((swept[0] / "runs/captions").glob("*/logs/full_pipeline_*.log")).read_text("utf-8")
    assert "csv-test: Measure: CIDEr, since answers are open texts: " in log
    # Once in a process, so in the first job's.
    assert len(re.findall(r"test.csv: columns that nothing reads: author. data.score_by=\[…\]", log)) <= 1
    assert "By language:" in log
    assert re.search(r"ko: 6 questions, CIDEr \d\.\d{3}", log)


def test_a_finished_run_says_so_and_returns_its_measure(swept: tuple[Path, list[str]], say: Callable[..., str]) -> None:
    said = say(train, "-m", *swept[1], "crop.overlap=0.0,0.5")
    assert said.count("Every stage of this config is finished already") == 2
    assert len(list(Path("results/eval_results/captions").rglob("metrics.json"))) == 2


def test_other_commands_use_the_same_measure_and_groups(say: Callable[..., str]) -> None:
    runs = [f"runs/captions/crop.overlap-{overlap}" for overlap in ("0.0", "0.5")]
    said = say(compare, *runs, "out=compared", UNTRACKED, "device=cpu")
    assert "Measure: CIDEr, since answers are open texts" in said
    table = Path("compared/comparison.md").read_text("utf-8")
    assert table.startswith("# 2 runs on csv-test, by CIDEr")
    assert table.splitlines()[2].startswith("| run | CIDEr | exact match |")
    assert "CIDEr by language (questions):" in table
    assert "| run | language=en (6) | language=ko (6) |" in table
    say(compare, *runs, "out=compared", UNTRACKED, "device=cpu", "measure=exact match", "score_by=[author]")
    table = Path("compared/comparison.md").read_text("utf-8")
    assert "by exact match" in table
    assert "| run | author=me (12) |" in table

    asked = [f"checkpoint={runs[0]}", UNTRACKED, "device=cpu", "results_dir=elsewhere", "num_workers=0"]
    say(eval, *asked, "measure=ROUGE-L", "score_by=[place]")
    metrics = newest(Path("elsewhere"))
    assert (metrics["measure"], list(metrics["groups"])) == ("ROUGE-L", ["place"])
    assert {value: one["count"] for value, one in metrics["groups"]["place"].items()} == {"in": 6, "out": 6}
    predictions = next(Path("elsewhere").rglob("predictions.csv"))
    with predictions.open(encoding="utf-8-sig", newline="") as file:
        assert json.loads(next(csv.DictReader(file))["score_by"]) == {"place": "out"}

    said = say(score, str(predictions))
    assert "By place:" in said
    assert "in: 6 questions" in said
    scored = json.loads(predictions.with_name("predictions_scores.json").read_text("utf-8"))
    assert scored["measure"] == "CIDEr"
    assert scored["groups"]["place"]["in"]["scores"]["exact match"]["value"] == 0.0
    assert "By turn:" in say(score, str(predictions), "score_by=[turn]")


def test_a_name_that_is_not_there_is_refused_with_the_file_and_its_columns(say: Callable[..., str]) -> None:
    asked = ["checkpoint=runs/captions/crop.overlap-0.0", UNTRACKED, "device=cpu", "num_workers=0"]
    said = say(eval, *asked, "score_by=[langauge]", status=1)
    assert "data/test.csv: data.score_by names langauge, which is not there. Columns found: url, query, annot" in said
    assert "evaluation.measure: there is no 'CIDer'. Did you mean 'CIDEr'?" in say(
        eval, *asked, "measure=CIDer", status=1
    )
    said = say(train, *FILES, "data.score_by=[who]", UNTRACKED, status=1)
    assert "data/test.csv: data.score_by names who" in said
    predictions = next(Path("results").rglob("predictions.csv"))
    assert f"{predictions}: score_by names who, which is not there" in say(
        score, str(predictions), "score_by=[who]", status=1
    )


def test_a_metric_of_another_package_ranks_a_sweep(
    swept: tuple[Path, list[str]], say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("site/own_package").mkdir(parents=True)
    Path("site/own_package/__init__.py").write_text(
        "import numpy as np\nfrom panollava.evaluation.metrics import Metric\n\n\n"
        "class Commas(Metric):\n    name = 'commas'\n    top = 2.0\n\n"
        "    def per_answer(self, answers):\n        return np.full(len(answers.scored), 0.5)\n"
    )
    monkeypatch.syspath_prepend("site")
    monkeypatch.setenv("PANOLLAVA_ALLOW", "")
    arguments = [one for one in swept[1] if not one.startswith("experiment_name")]
    asked = ["-m", *arguments, UNTRACKED, "experiment_name=own", "measure=own_package:Commas", "crop.overlap=0.0,0.5"]
    assert "csv-test: Measure: commas, as evaluation.measure says." in say(train, *asked)
    text = Path("runs/own/sweep.md").read_text("utf-8")
    assert "| 0.0 | finished | 0.500 (" in text
    assert "not distinguishable: the same score on each of 6 pictures" in text
    metrics = newest(Path("results/eval_results/own"))
    assert (metrics["measure"], metrics["settings"]["scores"]["measure"]) == ("commas", "own_package:Commas")
    assert metrics["groups"]["language"]["en"]["scores"]["commas"]["value"] == 0.5
    assert say(train, *asked).count("Every stage of this config is finished already") == 2
    # Jobs of different measures have exact match in common.
    say(train, *asked[:-2], "crop.overlap=choice(0.0)")
    text = Path("runs/own/sweep.md").read_text("utf-8")
    assert "The jobs were evaluated with different measures (CIDEr, commas): they are ranked by exact match." in text
    assert "| status | exact match |" in text


def test_miniature_backbones_say_that_they_know_only_the_built_in_world(
    swept: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(swept[0])
    run_train("data=csv", "data.dir=data", "stage=finetune", "dry_run=true", UNTRACKED, "crop.overlap=0.0")
    said = capsys.readouterr().err
    assert said.count("know only the built-in world, and data=csv are others. Take real ones: model=siglip_qwen.") == 1
    run_train("data=small_world", "stage=finetune", "dry_run=true", UNTRACKED, "crop.overlap=0.0")
    assert "built-in world" not in capsys.readouterr().err
