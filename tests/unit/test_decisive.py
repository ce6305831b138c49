"""The decisive study: its arms are equal, its contrasts cannot change, and its verdicts are those of the tests."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from support.runs import config

from experiments.decisive import results as study_results
from experiments.decisive import run as study_run
from experiments.decisive.report import judge, write_report
from experiments.decisive.results import CONTRASTS, RAW, UNEQUAL, Result, Study, read_results, read_study
from panollava.config.command_line import CONF
from panollava.evaluation.seeds import compare_seeds
from panollava.evaluation.statistics import holm
from panollava.model.backbones import Backbones
from panollava.run.config_check import checked

STUDY = read_study()
OVERLAY = Path(CONF) / "experiment" / "decisive.yaml"
PICTURES = [9, 8, 9, 9, 7, 9, 9, 9]


def result(arm: str, seed: int, score: float, *, digest: str = STUDY.digest, learning: str = "no") -> Result:
    """A result with about this share of right answers."""
    total = round(score * sum(PICTURES))
    right = [len(part) for part in np.array_split(np.arange(total), len(PICTURES))]
    return Result(
        arm=arm, seed=seed, contrasts=digest, exact_match=total / sum(PICTURES), kinds={"colour": (total, 69)},
        right=right, asked=PICTURES, test_set="questions", setting=arm, image_tokens=80, resampler_parameters=1000,
        seconds={"resampler": 60.0, "finetune": 30.0}, losses={"finetune": 0.1}, learning=learning, learning_why="",
        latency_s=0.01, libraries={}, commit="", processor="",
    )  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A copy of the contrasts in a folder without results."""
    (tmp_path / CONTRASTS).write_bytes((STUDY.folder / CONTRASTS).read_bytes())
    return read_study(tmp_path)


def keep(study: Study, *results: Result) -> None:
    (study.folder / RAW).mkdir(exist_ok=True)
    for one in results:
        (study.folder / RAW / f"{one.name}.json").write_text(json.dumps(asdict(one)))


def test_the_sweep_has_the_arms_and_seeds_of_the_contrasts() -> None:
    params = OmegaConf.load(OVERLAY).hydra.sweeper.params
    assert [int(seed) for seed in params.seed.split(",")] == list(STUDY.seeds)
    arms = params["+experiment/decisive"].split(",")
    assert sorted(arms) == sorted(STUDY.arms) == sorted(path.stem for path in OVERLAY.with_suffix("").glob("*.yaml"))
    assert len(STUDY.jobs) == len(set(STUDY.jobs)) <= 120
    assert len(STUDY.contrasts) <= 15
    assert {seed for _, seed in STUDY.jobs[: len(STUDY.arms)]} == {STUDY.seeds[0]}


@pytest.mark.parametrize("model", ["tiny", "siglip_qwen"])
def test_all_arms_have_equal_image_tokens(model: str, tmp_path: Path) -> None:
    """Of the real encoder from its sizes alone: 14 x 14 patches."""
    counts = {}
    for arm in STUDY.arms:
        typed = ["+experiment=decisive", f"+experiment/decisive={arm}", f"model={model}"]
        cfg, swept = checked(config(*typed)), checked(config(*reversed(typed)))  # a sweep writes the arm first
        assert cfg == swept
        assert (cfg.data.level, cfg.data.seed) == (2, 11)
        stages = ["vision"] * arm.endswith("stage1") + ["resampler"] * (model != "tiny") + ["finetune"]
        assert list(cfg.stage.run) == stages
        section = OmegaConf.to_container(cfg.model, resolve=True)
        assert isinstance(section, dict)
        if model != "tiny":
            section["vision"]["name"] = str(siglip_base(tmp_path / "siglip"))
        counts[arm] = Backbones(section, dict(cfg.crop), weights=False).image_tokens
    middle = (min(counts.values()) + max(counts.values())) / 2
    assert max(counts.values()) - middle <= UNEQUAL * middle, counts
    assert max(counts.values()) == {"tiny": 81, "siglip_qwen": 324}[model]


def siglip_base(folder: Path) -> Path:
    """The configuration of the SigLIP base encoder with narrow layers, and weights that are never read."""
    if not folder.is_dir():
        folder.mkdir()
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        shape |= {"image_size": 224, "patch_size": 16}
        text = {"model_type": "siglip", "architectures": ["SiglipModel"], "vision_config": shape}
        (folder / "config.json").write_text(json.dumps(text))
        processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 224, "width": 224}}
        processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_contrasts_that_changed_after_a_result_are_refused(study: Study) -> None:
    keep(study, result("mlp_overlap50", 11, 0.8))
    assert [one.name for one in read_results(study)] == ["mlp_overlap50_seed-11"]
    path = study.folder / CONTRASTS
    path.write_bytes(path.read_bytes() + b"# a second thought\n")
    changed = read_study(study.folder)
    for use in (read_results, write_report, runner):
        with pytest.raises(ValueError, match=r"contrasts\.yaml has changed since mlp_overlap50_seed-11\.json"):
            use(changed)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"test_set": "others"}, "answered other questions"),
        ({"asked": [9] * 8}, "answered other questions"),
        ({"image_tokens": 96}, "mlp_overlap50_seed-11 has 80 image tokens and mlp_overlap50_seed-12 96"),
        ({"setting": "longer"}, "has another config than mlp_overlap50_seed-11"),
        ({"arm": "pool_overlap50"}, "no job of this study"),
        ({"seed": 99}, "no job of this study"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(study: Study, wrong: dict[str, object], said: str) -> None:
    one = result("mlp_overlap50", 12, 0.8)
    keep(study, result("mlp_overlap50", 11, 0.8), replace(one, **wrong))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=said):
        read_results(study)


def test_jobs_that_were_made_otherwise_are_named(study: Study) -> None:
    """A version of panollava is of older files, and of the installed package."""
    old = {"panollava": "0.2.0", "torch": "2.15.0", "transformers": "5.23.0", "numpy": "2.4.6"}
    made = {"commit": "1a419fb6bba0", "libraries": old, "processor": "one, 2 cores"}
    new = {key: value for key, value in old.items() if key != "panollava"}
    ways = ({}, {"libraries": new}, {"commit": "ffff", "libraries": {**new, "torch": "2.16.0"}})
    found = [replace(result("mlp_overlap50", 11 + at, 0.8), **{**made, **way}) for at, way in enumerate(ways)]
    keep(study, *found[:2])
    assert "not all made alike" not in write_report(study)
    keep(study, found[2])
    said = "commit is 1a419fb6bba0 (2 jobs), ffff (1 job); torch is 2.15.0 (2 jobs), 2.16.0 (1 job)."
    assert f" The jobs were not all made alike: {said}\n" in write_report(study)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"arm": "x"}', "\x00"])
def test_a_damaged_result_is_named(study: Study, content: str) -> None:
    keep(study)
    (study.folder / RAW / "mlp_overlap50_seed-11.json").write_text(content)
    with pytest.raises(ValueError, match=r"mlp_overlap50_seed-11\.json is no result"):
        read_results(study)


@pytest.mark.parametrize(
    "document",
    [
        {"seeds": [1]},
        {"seeds": [1], "contrasts": []},
        {"seeds": [1, 1], "contrasts": [{"about": "x", "first": "a", "second": "b"}]},
        {"seeds": ["1"], "contrasts": [{"about": "x", "first": "a", "second": "b"}]},
        {"seeds": [1], "contrasts": [{"about": "x", "first": "a", "second": "a"}]},
        {"seeds": [1], "contrasts": [{"about": "x", "first": "a", "second": f"b{n}"} for n in range(16)]},
        {"seeds": [1], "contrasts": [{"about": "x", "first": f, "second": s} for f, s in ("ab", "ba")]},
    ],
)
def test_contrasts_that_make_no_study_are_refused(tmp_path: Path, document: object) -> None:
    (tmp_path / CONTRASTS).write_text(yaml.safe_dump(document))
    with pytest.raises(ValueError, match=r"contrasts\.yaml"):
        read_study(tmp_path)


def some_results() -> list[Result]:
    """Of two contrasts: a clear difference by overlap of mlp, and a small one of bimamba with a marked job."""
    scores = {
        "mlp_overlap0": (0.52, 0.54, 0.55, 0.53, 0.52),
        "mlp_overlap50": (0.75, 0.77, 0.74, 0.76, 0.78),
        "bimamba_overlap0": (0.70, 0.75, 0.72, 0.80),
    }
    found = [
        result(arm, seed, score) for arm, own in scores.items() for seed, score in zip(STUDY.seeds, own, strict=False)
    ]
    marked = [0.71, 0.77, 0.76, 0.79, 0.74]
    return found + [
        result("bimamba_overlap50", seed, score, learning="yes" if seed == 13 else "no")
        for seed, score in zip(STUDY.seeds, marked, strict=True)
    ]


def test_verdicts_are_of_welch_and_holm_over_all_contrasts() -> None:
    found = {(one.contrast.first, one.contrast.second): one for one in judge(STUDY, some_results())}
    assert len(found) == len(STUDY.contrasts)
    mine = [(f"{kind}_overlap0", f"{kind}_overlap50") for kind in ("mlp", "bimamba")]
    mine.append(("mlp_overlap50", "bimamba_overlap50"))
    tested = [pair for pair, one in found.items() if one.seeds is not None]
    assert sorted(tested) == sorted(mine)
    scores = {arm: [one.exact_match for one in some_results() if one.arm == arm] for arm in STUDY.arms}
    alone = [compare_seeds([(scores[first], scores[second])])[0].p_value for first, second in mine]
    adjusted, _ = holm([*(p or 1.0 for p in alone), *[1.0] * (len(STUDY.contrasts) - len(mine))])
    for pair, p in zip(mine, adjusted, strict=False):
        seeds = found[pair].seeds
        assert seeds is not None
        assert seeds.adjusted_p == pytest.approx(p)
    assert found[mine[0]].word == "better"
    assert found[mine[0]].notes == ""
    cannot = found[mine[1]]
    assert cannot.word.startswith("cannot tell (would need ")
    assert "1 job missing" in cannot.notes
    assert "1 of 5 of bimamba_overlap50 still learning; no verdict on quality" in cannot.notes
    assert found["mlp_overlap50", "mlp_stage1"].word == "not tested yet"
    assert "5 jobs missing" in found["mlp_overlap50", "mlp_stage1"].notes


def test_jobs_of_which_it_is_unknown_are_counted_apart(study: Study) -> None:
    learning = {"mlp_overlap0_seed-12": "unknown", "bimamba_overlap0_seed-11": "unknown"}
    found = [replace(one, learning=learning.get(one.name, one.learning)) for one in some_results()]
    notes = {(one.contrast.first, one.contrast.second): one.notes for one in judge(STUDY, found)}
    assert notes["mlp_overlap0", "mlp_overlap50"] == (
        "1 of 5 of mlp_overlap0 perhaps still learning; perhaps this ranks how fast, not how well"
    )
    both = "1 of 4 of bimamba_overlap0 perhaps still learning; 1 of 5 of bimamba_overlap50 still learning; no verdict"
    assert both in notes["bimamba_overlap0", "bimamba_overlap50"]
    keep(study, *found)
    text = write_report(study)
    assert "1 job still learning when training ended: bimamba_overlap50_seed-13. Not known of 2 jobs: " in text
    assert "| 0, unknown 1 |" in text


def test_scores_are_those_of_the_counts(study: Study) -> None:
    """The recorded score is rounded, and equal sums of right answers would differ."""
    right = {"mlp_overlap0": (60, 57, 63), "mlp_overlap50": (61, 58, 61)}
    found = [result(arm, 11 + at, n / sum(PICTURES)) for arm, own in right.items() for at, n in enumerate(own)]
    rounded = [replace(one, exact_match=round(one.exact_match, 6)) for one in found]
    (one, *_) = judge(STUDY, rounded)
    assert one.seeds is not None
    assert abs(one.seeds.difference.value) < 1e-12
    assert one.word == "cannot tell"


def test_a_worse_arm_is_called_worse() -> None:
    swapped = [
        replace(one, arm={"mlp_overlap0": "mlp_overlap50", "mlp_overlap50": "mlp_overlap0"}.get(one.arm, one.arm))
        for one in some_results()
    ]
    assert judge(STUDY, swapped)[0].word == "worse"


@pytest.mark.parametrize("count", [0, 1, 3, 19])
def test_a_report_is_written_at_any_time(study: Study, count: int) -> None:
    keep(study, *some_results()[:count])
    text = write_report(study)
    assert f"{count} of {len(STUDY.jobs)} jobs have results" in text
    assert text.count("\n| overlap 0.5 or 0 |") == 3
    assert (study.folder / "table.md").read_text() == text
    assert (study.folder / "decisive.png").is_file() == (study.folder / "rows.csv").is_file() == (count > 0)
    if count:
        assert len((study.folder / "rows.csv").read_text().splitlines()) == count + 1


def runner(study: Study, *, minutes: float | None = None) -> study_run.Runner:
    end = None if minutes is None else time.monotonic() + 60 * minutes
    return study_run.Runner(study, end=end, threads=1, overrides=())


@pytest.fixture
def started(study: Study, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Jobs that a runner has started: they end at once, and fail for ``mlp_stage1``."""
    jobs: list[tuple[str, int]] = []

    def command(arm: str, seed: int, overrides: Sequence[str]) -> list[str]:
        jobs.append((arm, seed))
        return [sys.executable, "-S", "-c", f"import sys; sys.exit({int(arm == 'mlp_stage1')})"]

    def written(study: Study, arm: str, seed: int, run: Path, workplace: Path) -> Result:
        one = result(arm, seed, 0.8)
        keep(study, one)
        return one

    monkeypatch.chdir(study.folder)
    monkeypatch.setattr(study_run, "command", command)
    monkeypatch.setattr(study_run, "write_result", written)
    monkeypatch.setattr(Study, "jobs", [(arm, seed) for seed in (11, 12) for arm in STUDY.arms])
    return jobs


def test_jobs_run_seed_by_seed_and_never_again(study: Study, started: list[tuple[str, int]]) -> None:
    keep(study, result("mlp_overlap50", 11, 0.8))
    first = runner(study)
    first.run(2)
    assert first.failed == ["mlp_stage1_seed-11", "mlp_stage1_seed-12"]
    assert sorted(started) == sorted(job for job in study.jobs if job != ("mlp_overlap50", 11))
    assert {seed for _, seed in started[: len(STUDY.arms) - 2]} == {11}
    started.clear()
    runner(study).run(1)
    assert started == [("mlp_stage1", 11), ("mlp_stage1", 12)]


def test_no_job_starts_that_would_not_end_in_time(study: Study, started: list[tuple[str, int]]) -> None:
    runner(study, minutes=5).run(1)
    assert started == []  # nothing is known of their time yet: twenty minutes each
    keep(study, result("mlp_overlap50", 11, 0.8))  # a minute and a half
    runner(study, minutes=5).run(1)
    assert len(started) == len(study.jobs) - 1
    started.clear()
    runner(study, minutes=1).run(1)
    assert started == []


def test_the_command_of_a_job_is_that_of_the_overlay() -> None:
    asked = study_run.command("mlp_overlap0", 12, ["trainer.device=cpu"])
    assert asked[1:3] == ["-m", "panollava.train"]
    cfg = checked(config(*asked[3:]))
    assert (cfg.seed, cfg.crop.overlap, cfg.model.tokens_per_side, cfg.trainer.device) == (12, 0.0, 4, "cpu")
    assert cfg.experiment_name == study_results.job_name("mlp_overlap0", 12)
