"""What a sweep can see: its jobs, the spread between seeds, and the sentences."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from support import ROOT

from panollava.config.command_line import CONF, CommandLine, canonical, split
from panollava.config.sweep_arguments import register_resolvers
from panollava.evaluation.seeds import seeds_needed, visible
from panollava.run.sweep_design import SPREADS, Design, Spread, announcement, known_spread

WORLD = {"data": {"type": "world", "dir": None}}


def sweep(
    folder: Path, scores: dict[tuple[str, int], float], record: str = "data: {type: world}", questions: str = ""
) -> None:
    """The files of an earlier sweep of resamplers; without questions that of a version that did not count them."""
    folder.mkdir(parents=True)
    (folder / "multirun.yaml").write_text(record)
    end = questions and f",{questions}"
    lines = [f"{name}-{seed},{name},{seed},finished,{score}{end}" for (name, seed), score in scores.items()]
    lines.append(f"mlp-9,mlp,9,failed,{questions and ','}")
    head = f"job,resampler,seed,status,exact_match{questions and ',questions'}"
    (folder / "sweep.csv").write_text("\n".join([head, *lines]) + "\n")


def test_the_built_in_spread_is_that_of_its_source() -> None:
    """A study that is made again changes it: put the new number into ``SPREADS``."""
    with (ROOT / "experiments/resamplers/rows.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    own: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        own.setdefault((row["model.resampler.type"], row["crop.overlap"]), []).append(float(row["exact_match"]))
    expected = statistics.fmean(map(statistics.variance, own.values())) ** 0.5
    assert SPREADS["exact match"][0] == pytest.approx(expected, abs=5e-5)


def test_the_spread_of_earlier_sweeps_on_the_same_data_comes_first(tmp_path: Path) -> None:
    assert known_spread(tmp_path, WORLD) == Spread(SPREADS["exact match"][0], f"as in {SPREADS['exact match'][1]}")
    sweep(tmp_path / "a", {("mlp", 0): 0.5, ("mlp", 1): 0.6, ("bimamba", 0): 0.8, ("bimamba", 1): 0.8})
    found = known_spread(tmp_path, WORLD)
    assert found is not None
    assert found.value == pytest.approx((0.005 / 2) ** 0.5)
    assert found.source == f"as in {tmp_path / 'a'}"
    sweep(tmp_path / "of_one_seed", {("mlp", 0): 0.1, ("bimamba", 0): 0.9})
    sweep(tmp_path / "of_files", {("mlp", 0): 0.1, ("mlp", 1): 0.9}, "data: {type: csv, dir: my_data}")
    assert known_spread(tmp_path, WORLD) == found
    of_files = known_spread(tmp_path, {"data": {"type": "csv", "dir": "my_data"}})
    assert of_files is not None
    assert of_files.value == pytest.approx(0.32**0.5)
    assert known_spread(tmp_path, WORLD, "CIDEr") is None


FULL = """
data: {type: world, level: 2, train_scenes: 1600, test_csv: a.csv}
model: {vision: {name: siglip}, size: tiny}
stage: {run: [finetune], finetune: {epochs: '${for_size:{tiny: 16, full: 3}}'}, vision: {epochs: 1}}
trainer: {max_steps: null}
"""


@pytest.mark.parametrize(
    ("before", "questions"),
    [
        (("max_steps: null", "max_steps: 2"), "892"),
        (("tiny: 16", "tiny: 2"), "892"),
        (("[finetune]", "[resampler, finetune]"), "892"),
        (("name: siglip", "name: clip"), "892"),
        (("train_scenes: 1600", "train_scenes: 16"), "892"),
        (("test_csv: a.csv", "test_csv: b.csv"), "892"),
        (("for_size", "a_resolver_that_is_gone"), "892"),
        (("", ""), "12"),
    ],
)
def test_a_pilot_says_nothing_of_the_spread(before: tuple[str, str], questions: str, tmp_path: Path) -> None:
    register_resolvers()
    config: Any = OmegaConf.to_container(OmegaConf.create(FULL), resolve=True)
    built_in = known_spread(tmp_path, config, questions=892)
    sweep(tmp_path / "pilot", {("mlp", 0): 0.25, ("mlp", 1): 0.58}, FULL.replace(*before), questions)
    assert known_spread(tmp_path, config, questions=892) == built_in
    whole = FULL.replace("vision: {epochs: 1}", "vision: {epochs: 2}")  # a stage that is not run
    sweep(tmp_path / "whole", {("mlp", 0): 0.9, ("mlp", 1): 0.91}, whole, "892")
    steps = tmp_path / "steps"  # swept themselves
    sweep(steps, {("2", 0): 0.1, ("2", 1): 0.6}, FULL, "892")
    table = (steps / "sweep.csv").read_text()
    (steps / "sweep.csv").write_text(
        table.replace("job,resampler", "job,trainer.max_steps").replace("mlp-9,mlp", "9,2")
    )
    found = known_spread(tmp_path, config, questions=892)
    assert found is not None
    assert found.source == f"as in {tmp_path / 'whole'}"
    assert found.value == pytest.approx(0.01 / 2**0.5)


def test_one_seed_can_show_nothing_of_settings() -> None:
    first, second = Design(4, 1, 892, 100).lines(Spread(0.04, "as in x"))
    assert first.startswith(
        "What this sweep can see by exact match: 4 settings, one seed each, 892 questions about 100 pictures. One seed "
        "each can show no difference between settings, only between these trained models. With 3 seeds each, a "
        f"difference of {100 * visible(3, 0.04, 0.05 / 6):.0f} points is found"
    )
    assert "over all 6 pairs" in first
    assert second.startswith("By picture, two trained models of 50 % are told apart at best from some ")


def test_several_seeds_see_what_the_power_says() -> None:
    (text,) = Design(2, 5).lines(Spread(0.03, "measured here"))
    assert f"With 5 seeds each, a difference of {100 * visible(5, 0.03):.1f} points is found with a probability" in text
    assert f"one of 2 points needs {seeds_needed(0.03, 0.02)} seeds each" in text
    assert "seeds of a setting differ by 3 points, measured here; Welch's test at 5 %)" in text
    assert "no difference is large enough" in Design(4, 2).lines(Spread(0.3, ""))[0]
    assert "not known yet" in Design(2, 3).lines(None)[0]
    assert Design(1, 3).lines(None)[0].endswith("3 seeds each. There is no other setting to compare it with.")
    assert (
        Design(2, 2, 40, 3).lines(None)[1] == "By picture nothing can be shown: there are 3, and it takes 6 at least."
    )
    assert "a difference of 1.2" in Design(2, 5).lines(Spread(0.58, "x"), "CIDEr", 10.0)[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["resampler=mlp,bimamba", "seed=0,1,2"], "2 settings, 3 seeds each, 18 questions about 2 pictures."),
        (["resampler=mlp,bimamba", "crop.overlap=0,0.5"], "4 settings, one seed each, 18 questions about 2 pictures."),
        (["seed=range(0,4)"], "1 setting, 4 seeds each, 18 questions about 2 pictures."),
        (["+experiment=overlap_sweep", "seed=0,1"], "3 settings, 2 seeds each, 18 questions about 2 pictures."),
        (["data.seed=1,2", "seed=0,1"], "2 settings, 2 seeds each."),
        (["resampler=glob(*,exclude=identity)"], "6 settings, one seed each, 18 questions about 2 pictures."),
        (["resampler=mlp,bimamba", "stage=vision"], None),
        (["resampler=mlp,bimamba", "evaluation.enabled=false"], None),
        (["resampler=mlp,bimamba", "measure=my_package.parts:Brevity"], None),
        (["resampler=mlp,bimamba", "data=csv", "data.dir=none"], "2 settings, one seed each."),
    ],
)
def test_a_sweep_announces_its_design(
    arguments: list[str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    scenes = [] if "data=csv" in arguments else ["data.test_scenes=2"]
    words = split(canonical(["-m", *scenes, *arguments]))
    with initialize_config_dir(CONF, version_base="1.3"):
        lines = announcement(CommandLine("train", *words).compose(words[1]))
    assert (lines == []) is (expected is None)
    if expected is not None:
        assert expected in lines[0]
