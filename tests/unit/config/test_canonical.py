"""What users type reaches Hydra as they meant it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from panollava.config.command_line import CONF, canonical, quoted, short_names


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("resampler=bimamba", "model/resampler=bimamba"),
        ("model/resampler=bimamba", "model/resampler=bimamba"),
        ("lora.rank=16", "model.lora.rank=16"),
        ("+resampler.x=1", "+model.resampler.x=1"),
        ("resampler=mlp,bimamba", "model/resampler=mlp,bimamba"),
        ("stage.vision.loss.type=vicreg", "objective=vicreg"),
        ("stage.vision.loss=vicreg", "objective=vicreg"),
        ("stage.vision.loss={type: vicreg}", "stage.vision.loss={type: vicreg}"),
        ("~stage.vision.loss.type", "~stage.vision.loss.type"),
        ("crop.overlap=0.0", "crop.overlap=0.0"),
        ("stage=vision", "stage=vision"),
        ("stage.vision.epochs=2", "stage.vision.epochs=2"),
        ("-m", "--multirun"),
        ("vision.name=some/folder", "model.vision.name='some/folder'"),
        ("data.train_csv=../a (1)/b,c.csv", "data.train_csv='../a (1)/b,c.csv'"),
        ("out=views (1).png", "out='views (1).png'"),
        ("language.revision=1234567", "model.language.revision='1234567'"),
        ("vision.revision=12e4567", "model.vision.revision='12e4567'"),
        ("experiment_name=null", "experiment_name=null"),
        ("max_new_tokens=8", "generation.max_new_tokens=8"),
        ("evaluation.max_new_tokens=8,16", "generation.max_new_tokens=8,16"),
        ("++evaluation.max_new_tokens=8", "++generation.max_new_tokens=8"),
        ("generation.max_new_tokens=8", "generation.max_new_tokens=8"),
        ("init_from='runs/a b'", "init_from='runs/a b'"),
    ],
)
def test_spellings(typed: str, meant: str) -> None:
    assert canonical([typed]) == [meant]


def test_every_group_below_model_has_a_short_name() -> None:
    assert {"vision", "resampler", "position", "projector", "language", "lora"} == set(short_names())


@pytest.mark.parametrize(
    "text",
    [
        "무엇이 보입니까, 뒤에?",
        r"C:\very long (1)\pano.jpg",
        "http://host/a?b=c&d=e",
        'it\'s "quoted"',
        "back\\",
        "\\'",
    ],
)
def test_text_reaches_hydra_unchanged(text: str) -> None:
    [argument] = canonical([f"question={text}"])
    assert OverridesParser.create().parse_override(argument).value() == text


@pytest.mark.parametrize("text", ["'who' or 'what'?", '"a", "b"', "what does ${HOME} mean?", r"a\${b} \\${c}", "a,b"])
def test_a_question_is_taken_as_it_is(text: str) -> None:
    arguments = canonical([f"question={text}"]) + canonical(["checkpoint=x", "image=y"])
    with initialize_config_dir(CONF, version_base="1.3"):
        assert compose("predict", overrides=arguments).question == text


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
def test_any_text_survives_quoting(text: str) -> None:
    assert OverridesParser.create().parse_override(f"question={quoted(text)}").value() == text


def test_cfg_shows_final_numbers() -> None:
    assert canonical(["--cfg", "job"]) == ["--cfg", "job", "--resolve"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["predictions.csv"], ["predictions='predictions.csv'"]),
        (["/a/my (1), b.csv", "form=single"], ["form=single", "predictions='/a/my (1), b.csv'"]),
        (["--cfg", "job", "a.csv"], ["--cfg", "job", "--resolve", "predictions='a.csv'"]),
        (["predictions=a.csv", "--help"], ["--help", "predictions='a.csv'"]),
        (["+x=1"], ["+x=1"]),
    ],
)
def test_an_argument_without_a_key_is_given_one(typed: list[str], meant: list[str]) -> None:
    assert canonical(typed, positional=["predictions"]) == meant


def test_a_file_with_an_equals_sign_in_its_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=1.csv").touch()
    assert canonical(["seed=1.csv"], positional=["predictions"]) == ["predictions='seed=1.csv'"]
    assert canonical(["seed=2.csv"], positional=["predictions"]) == ["seed=2.csv"]


def test_keys_of_a_loose_section_may_be_new() -> None:
    typed = ["crop.overlap=0.5", "crop=cubemap", "cropped=1", "seed=1"]
    meant = ["++crop.overlap=0.5", "++crop.type=cubemap", "cropped=1", "seed=1"]
    assert canonical(typed, loose=("crop",)) == meant


@pytest.mark.parametrize(
    ("typed", "said"), [(["warm", "clear"], "'clear' is one word too many"), (["clear", "action=list"], "given twice")]
)
def test_one_argument_without_a_key_where_one_is_meant(typed: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        canonical(typed, positional=["action"])


@pytest.mark.parametrize("typed", [["my_data/train.csv"], ["stage.run=[resampler,", "finetune]"]])
def test_an_argument_that_belongs_to_no_key_is_refused(typed: list[str]) -> None:
    with pytest.raises(ValueError, match="has no key"):
        canonical(typed)


def test_several_arguments_without_a_key_are_a_list() -> None:
    meant = ["split=val", "runs=['runs/a','runs/b, c']"]
    assert canonical(["runs/a", "split=val", "runs/b, c"], positional=["runs[]"]) == meant
    assert canonical(["runs=[a,b]"], positional=["runs[]"]) == ["runs=[a,b]"]


FLAGS = [
    (["a=1", "-m"], ["--multirun", "a=1"]),
    (["-m", "a=1", "b=2"], ["--multirun", "a=1", "b=2"]),
    (["a=1", "--multi", "b=2"], ["--multirun", "a=1", "b=2"]),
    (["a=1", "--cfg", "job", "-p", "crop", "b=2"], ["--cfg", "job", "--resolve", "--package", "crop", "a=1", "b=2"]),
    (["--package=crop", "a=1", "--cfg=job"], ["--cfg", "job", "--resolve", "--package", "crop", "a=1"]),
    (["a=1", "-c", "hydra", "~b"], ["--cfg", "hydra", "a=1", "~b"]),
    (["a=1", "--info", "defaults"], ["--info", "defaults", "a=1"]),
    (["a=1", "b=2", "-i"], ["--info", "all", "a=1", "b=2"]),
    (["a=1", "-m", "-cd", "mine", "+b=2"], ["--multirun", "--config-dir", "mine", "a=1", "+b=2"]),
    (["a=1", "-cn", "my", "b=2"], ["--config-name", "my", "a=1", "b=2"]),
    (["a=1", "--hydra-help"], ["--hydra-help", "a=1"]),
    (["install=bash", "-sc"], ["--shell-completion", "install=bash"]),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "meant"), FLAGS)
def test_hydras_flags_stand_anywhere(typed: list[str], meant: list[str]) -> None:
    assert canonical(typed) == meant


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["a=1", "--sweep"], "--sweep is no option"),
        (["--cfg", "jobs", "a=1"], "invalid choice: 'jobs'"),
        (["-m", "a=1", "--cfg", "job"], "--cfg and --multirun exclude each other"),
        (["--resolve", "a=1"], "--resolve needs --cfg"),
        (["a=1", "-p"], "expected one argument"),
    ],
)
def test_flags_that_cannot_be_meant(typed: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        canonical(typed)


@pytest.mark.parametrize(
    ("value", "values"),
    [
        ("o (1),o é2", ["o (1)", "o é2"]),
        ("a,b", ["a", "b"]),
        ("1,2.0,none", ["1", "2.0", "none"]),
        ("'a,b',c d", ["a,b", "c d"]),
        ("choice(a b,c)", ["a b", "c"]),
        ("가,나/다", ["가", "나/다"]),
    ],
)
def test_texts_of_a_sweep_arrive_as_they_are(value: str, values: list[str]) -> None:
    _, argument = canonical(["-m", f"data.dir={value}"])
    override = OverridesParser.create().parse_override(argument)
    found = [getattr(each, "text", each) for each in override.sweep_iterator()]
    assert found == values


def test_one_text_of_a_sweep_is_no_sweep() -> None:
    assert canonical(["-m", "data.dir=o (1)"]) == ["--multirun", "data.dir='o (1)'"]
