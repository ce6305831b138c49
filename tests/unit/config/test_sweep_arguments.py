"""What a command line means as a sweep."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from panollava.config.command_line import CommandLine, canonical, check_keys, split
from panollava.config.entrypoint import _hydra_arguments
from panollava.config.sweep_arguments import as_sweep, check_plugins, register_resolvers, slug


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_resolvers()
    monkeypatch.chdir(tmp_path)


def line(*typed: str) -> CommandLine:
    return CommandLine("train", *split(canonical(typed)))


def sweep(*typed: str) -> list[str]:
    """The overrides of a sweep."""
    asked = line(*typed)
    assert asked.is_sweep
    return as_sweep(asked, check_keys(asked), Path("scratch"))


def folder(*typed: str) -> str:
    """The sweep's folder."""
    (word,) = [word for word in sweep(*typed) if word.startswith("hydra.sweep.dir=")]
    return word.partition("=")[2].strip("'")


def started(*typed: str) -> str:
    """The sweep's folder, with the record that Hydra leaves in it."""
    words = sweep(*typed)
    place = Path(folder(*typed))
    place.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(line("-m", *words).compose(words), place / "multirun.yaml")
    return str(place)


def test_a_sweep_is_named_after_what_it_sweeps() -> None:
    *same, place, constant = sweep("-m", "resampler=mlp,bimamba", "crop.overlap=0.0,0.5", "seed=3")
    assert same == ["model/resampler=mlp,bimamba", "crop.overlap=0.0,0.5", "seed=3"]
    assert place == "hydra.sweep.dir='runs/sweep_resampler_crop.overlap'"
    assert constant == "hydra.job.config.override_dirname.exclude_keys=['seed']"


SWEEPS = [
    "seed=0,1",
    "seed=choice(0,1)",
    "seed=range(1,3)",
    "seed=shuffle(range(1,3))",
    "seed=sort(2,1)",
    "seed=sort(shuffle(1,2))",
    "seed=shuffle(3,1)",
    "seed=tag(mine,choice(1,2))",
    "seed=int(choice(1.0,2.0))",
    "resampler=glob(*m*)",
    "resampler=glob(*,exclude=[i*,p*])",
    "stage.run=[vision],[vision,resampler]",
    "data.dir='a, b','c'",
]


@pytest.mark.parametrize("value", SWEEPS)
def test_whatever_hydra_calls_a_sweep_is_one(value: str) -> None:
    flags = ("-m", value) if len(value) % 2 else (value, "--multirun")
    key = value.partition("=")[0]
    *_, place, constant = sweep(*flags, "trainer.max_steps=1", *["data=csv"] * value.startswith("data."))
    assert place == f"hydra.sweep.dir='runs/sweep_{key}'"
    assert "trainer.max_steps" in constant
    assert repr(key) not in constant


def test_a_list_and_a_quoted_text_are_no_sweep() -> None:
    assert folder("-m", "stage.run=[vision,resampler]", "data.name='a,b'", "seed=1,2") == "runs/sweep_seed"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["seed=interval(0,1)"], "takes values one by one"),
        (["seed=0,0"], "has a job twice: seed=0"),
        (["resampler=mlp,bimambo"], "model/resampler/bimambo"),
        (["crop.overlap=0,0.5", "crop.overlp=0"], "Did you mean crop.overlap"),
        (["output_dir=o (1),o é2"], "a sweep has one output_dir"),
        (["tracking=mlflow,none"], "a sweep has one tracking"),
        (["+experiment=overlap_sweep,bimamba_overlap0"], "overlap_sweep is a sweep itself"),
        (["+experiment=glob(*)"], "decisive is a sweep itself"),
        (["seed=0,1", "hydra.job.chdir=true"], "hydra.job.chdir"),
        (["seed=0,1", "hydra.run.dir=x"], "hydra.run.dir=x"),
        (["crop=cubemap,e2p", "crop.poles=true"], "crop=e2p has no such key"),
        (["seed=0,1", "--cfg", "job"], "exclude each other"),
    ],
)
def test_what_cannot_be_swept_is_one_message(typed: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=said):
        _hydra_arguments("train", [*typed, "-m"], tmp_path, (), ())
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("typed", ["lora=null", "~lora", "tracking=null", "stage=", "+experiment=null"])
def test_a_group_keeps_an_option(typed: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"a group always has an option\. Choose one of [a-z]"):
        _hydra_arguments("train", [typed], tmp_path, (), ())


@pytest.mark.parametrize("flag", ["-m", "hydra.mode=MULTIRUN", "++hydra.mode=MULTIRUN", "+experiment=overlap_sweep"])
def test_texts_are_swept_however_a_sweep_is_asked_for(flag: str, tmp_path: Path) -> None:
    words = _hydra_arguments("train", [flag, "data=csv", "data.dir=한 글,b", "hydra.sweep.dir=o (1)"], tmp_path, (), ())
    assert "data.dir='한 글','b'" in words
    assert "hydra.sweep.dir='o (1)'" in words


@pytest.mark.parametrize("typed", [["-m"], ["--multi"], ["hydra.mode=MULTIRUN"]])
def test_only_training_sweeps(typed: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"only panollava\.train sweeps"):
        _hydra_arguments("eval", ["checkpoint=x", *typed], tmp_path, ("checkpoint",), ("crop",))


def test_a_key_of_the_swept_options_is_a_constant_of_the_jobs() -> None:
    *same, _, constant = sweep("-m", "resampler=qformer,perceiver", "resampler.heads=4")
    assert same == ["model/resampler=qformer,perceiver", "model.resampler.heads=choice(4)"]
    assert "'model.resampler.heads'" in constant


def test_sweeps_of_other_constants_have_folders_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    first = started("-m", "seed=0,1", "lora.rank=8")
    assert first == "runs/sweep_seed"
    second = started("-m", "seed=0,1", "lora.rank=16")
    assert second == "runs/sweep_seed_lora.rank-16"
    assert f"this one is in {second}" in capsys.readouterr().err
    assert folder("-m", "seed=0,1", "lora.rank=8") == first
    assert folder("-m", "seed=0,1,2", "lora.rank=16", "trainer.num_workers=1", "stage.vision.epochs=9") == second
    assert started("-m", "seed=0,1", "lora.rank=4") == "runs/sweep_seed_lora.rank-4"
    assert folder("-m", "seed=0,1", "crop=e2p") == "runs/sweep_seed_crop-e2p"
    one = started("-m", "resampler=qformer,perceiver", "resampler.heads=4")
    assert folder("-m", "resampler=qformer,perceiver", "resampler.heads=2") != one
    assert folder("-m", "resampler=qformer,perceiver") != one


def test_a_sweep_of_earlier_defaults_is_gone_on_with_unless_one_is_named() -> None:
    """Its record has interpolations where the numbers depended on the size."""
    typed = ("-m", "resampler=mlp,qformer", "experiment_name=mine")
    place = started(*typed)
    record = OmegaConf.load(f"{place}/multirun.yaml")
    record.form, record.model.language.attn_implementation = 3, "eager"
    record.stage.resampler.batch_size, record.stage.finetune.batch_size = 16, "${for_size:{tiny: 16, full: 8}}"
    OmegaConf.save(record, f"{place}/multirun.yaml")
    assert folder(*typed) == place
    with pytest.raises(ValueError, match=r"stage\.finetune\.batch_size: 16 there, 8 now"):
        folder(*typed, "stage.finetune.batch_size=8")
    with pytest.raises(ValueError, match=r"stage\.resampler\.batch_size: 16 there, 4 now"):
        folder(*typed, "stage.resampler.batch_size=4")


def test_a_folder_that_was_named_is_refused_to_a_sweep_of_other_constants() -> None:
    started("-m", "seed=0,1", "lora.rank=8", "experiment_name=x")
    with pytest.raises(ValueError, match=r"runs/x holds a sweep.*lora.rank: 8 there, 16 now.*experiment_name="):
        sweep("-m", "seed=0,1", "lora.rank=16", "experiment_name=x")
    with pytest.raises(ValueError, match=r"hydra.sweep.dir=<folder>"):
        sweep("-m", "seed=0,1", "lora.rank=16", "hydra.sweep.dir=runs/x")
    assert folder("-m", "seed=0,1", "lora.rank=16", "experiment_name=x", "overwrite=true") == "runs/x"


def test_slugs_need_no_quotes_and_stay_apart() -> None:
    assert slug("crop.overlap=0.0,model/resampler=mlp") == "crop.overlap-0.0_resampler-mlp"
    assert slug("objective=vicreg,seed=1") == "seed-1_stage.vision.loss.type-vicreg"  # as in version 0.2
    assert slug("sweep_seed,objective=vicreg") == "sweep_seed_stage.vision.loss.type-vicreg"
    assert slug("data.name=뒤") == "data.name-뒤"
    strange = [slug(f"question='{text}'") for text in ("a b", "a/b", "a:b", "뒤", "왼")]
    assert len(set(strange)) == len(strange)
    assert all(
        set(name) <= set("뒤왼abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for name in strange
    )
    assert len(slug("a=" + "파" * 500).encode()) <= 96
    assert slug("a=\u1111\u1161").startswith("a-파-")


@example(["=", "-"])
@example([",", "_"])
@given(st.lists(st.text("ab_-=.,1/[ 파", min_size=1, max_size=12), min_size=2, max_size=2, unique=True))
def test_two_texts_never_have_the_same_name(values: list[str]) -> None:
    for one in ("k={0}", "a={0},model.b=1", "a=1,b={0}"):
        assert len({slug(one.format(value)) for value in values}) == 2
    one, other = values
    assert slug(f"a={one},b={other}") != slug(f"a={other},b={one}")
    assert slug(f"a={one}_b-{other},b=1") != slug(f"a={one},b={other}_b-1")


@pytest.mark.parametrize(
    ("typed", "name", "constant"),
    [
        (["+experiment=overlap_sweep"], "overlap_sweep", "'experiment'"),
        (["+experiment=overlap_sweep", "-m", "seed=0,1"], "overlap_sweep_seed", "'experiment'"),
        (["+experiment=[bimamba_overlap0,resampler_sweep]", "seed=1"], "resampler_sweep", "'experiment','seed'"),
        (["+experiment=overlap_sweep", "experiment_name=my, sweep"], "my_-sweep-", "'experiment','experiment_name'"),
        (["seed=1,2", "hydra.mode=MULTIRUN"], "sweep_seed", None),
        (["objective=vicreg,densecl", "hydra.mode=MULTIRUN"], "sweep_stage.vision.loss.type", None),
    ],
)
def test_an_overlay_that_varies_something_is_a_sweep(typed: list[str], name: str, constant: str | None) -> None:
    excluded = [word for word in sweep(*typed) if word.startswith("hydra.job.config")]
    assert folder(*typed).removeprefix("runs/").startswith(name)
    assert excluded == ([f"hydra.job.config.override_dirname.exclude_keys=[{constant}]"] if constant else [])


def test_ones_own_overlay_is_a_sweep_of_its_own_name(tmp_path: Path) -> None:
    own = tmp_path / "mine" / "experiment"
    own.mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: range(0,3)\n"
    (own / "seeds.yaml").write_text(text)
    assert folder("+experiment=seeds", "--config-dir", str(tmp_path / "mine")) == "runs/seeds"
    with pytest.raises(ValueError, match="seeds is a sweep itself"):
        sweep("-m", "+experiment=seeds,bimamba_overlap0", "--config-dir", str(tmp_path / "mine"))


@pytest.mark.parametrize("typed", [["+experiment=bimamba_overlap0"], ["crop.overlap=0.0"], ["seed='1,2'"]])
def test_other_commands_are_none(typed: list[str], tmp_path: Path) -> None:
    assert _hydra_arguments("train", typed, tmp_path, (), ()) == canonical(typed)


@pytest.mark.parametrize("typed", [["-m", "seed=0,1"], ["+experiment=overlap_sweep"]])
def test_torchrun_starts_no_sweep(typed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ValueError, match=r"torchrun(.|\n)*hydra/launcher=parallel(.|\n)*tasks_per_node=2"):
        sweep(*typed)
    assert _hydra_arguments("train", ["seed=1"], tmp_path, (), ()) == ["seed=1"]


def test_a_missing_launcher_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panollava.config.sweep_arguments.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"hydra/launcher=parallel needs .*\.\[joblib\]"):
        check_plugins(line("-m", "seed=0,1", "hydra/launcher=parallel").parsed)


def test_a_dry_run_has_its_folder_elsewhere() -> None:
    for typed in (("-m", "seed=0,1", "dry_run=true"), ("-m", "hydra.sweep.dir=runs/x", "seed=0,1", "dry_run=True")):
        assert f"hydra.sweep.dir='{Path('scratch') / 'sweep_seed'}'" == sweep(*typed)[-2]


STUDY = ["-m", "hydra/sweeper=optuna"]
SPACE = "crop.overlap=interval(0.0,0.5)"


@pytest.mark.parametrize(
    "space", [SPACE, "seed=range(0,5)", "resampler=choice(mlp,pool)", "stage.finetune.lr=tag(log,interval(1e-4,1e-2))"]
)
def test_a_study_of_optuna_has_a_folder_a_direction_and_a_seed(space: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    key = space.partition("=")[0]
    words = sweep(*STUDY, space, "trainer.max_steps=1")
    assert f"hydra.sweep.dir='runs/sweep_{key}'" in words
    assert {"hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=0"} < set(words)
    config = line("-m", *words).compose(words)
    assert config.hydra.sweeper.direction == "maximize"
    assert config.hydra.sweeper.max_failure_rate == 1.0
    own = sweep(*STUDY, space, "hydra.sweeper.max_failure_rate=0.5", "hydra.sweeper.sampler.seed=7")
    assert not {"hydra.sweeper.max_failure_rate=1.0", "hydra.sweeper.sampler.seed=0"} & set(own)


def test_an_overlay_is_a_search_space_of_optuna_too() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert folder("hydra/sweeper=optuna", "+experiment=resampler_sweep", SPACE) == "runs/resampler_sweep_crop.overlap"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["seed=1"], "no key varies. Give one a range"),
        ([SPACE, "stage=vision"], "stage.run ends with vision, which has none. Train a stage that answers"),
        ([SPACE, "evaluation.enabled=false"], "evaluation.enabled=false has none"),
        ([SPACE, "hydra.sweeper.storage=sqlite:///x.db"], "hydra.sweeper.storage=sqlite:///x.db: a study is kept in"),
        ([SPACE, "hydra.sweeper.direction=minimize"], "higher is better"),
        ([SPACE, "hydra.sweeper.direction=[maximize,minimize]"], "higher is better"),
        ([SPACE, "hydra/sweeper/sampler=grid"], "-m runs every combination"),
        ([SPACE, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: allowed is 1 or more"),
        ([SPACE, "hydra.sweeper.search_space={seed:{type:int,low:0,high:3}}"], "Leave it out"),
        ([SPACE, "output_dir=choice(a,b)"], "a sweep has one output_dir"),
        (["crop.overlp=interval(0.0,0.5)"], "Did you mean crop.overlap"),
    ],
)
def test_what_optuna_cannot_search_is_one_message(typed: list[str], said: str, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with pytest.raises(SystemExit, match=re.escape(said)):
        _hydra_arguments("train", [*STUDY, *typed], tmp_path, (), ())
    assert list(Path().iterdir()) == []


def test_a_missing_sweeper_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panollava.config.sweep_arguments.find_spec", lambda name: None)
    asked = OverridesParser.create().parse_overrides(["hydra/sweeper=optuna"])
    with pytest.raises(ValueError, match=r"hydra/sweeper=optuna needs .*\.\[optuna\]"):
        check_plugins(asked)
