"""Words without a key stand for keys by their order; a question arrives as it was typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

import panollava
from panollava.config.command_line import CONF, canonical
from panollava.config.sweep_arguments import register_resolvers

SOURCES = {file.stem: file.read_text("utf-8") for file in Path(panollava.__file__).parent.glob("*.py")}
DECLARED = {
    command: tuple(re.findall(r'"(.+?)"', declared[1]))
    for command, text in SOURCES.items()
    if (declared := re.search(r"@entrypoint\(.*?positional=\((.*?)\)", text))
}
"""Command -> keys of its words without one, as its entrypoint has them."""
QUESTIONS = [
    "where is the red ring?",
    "is a=b?",
    "a=b?",
    "what, left?",
    "'who' or \"what\"?",
    "{what} [is] (this)?",
    "무엇이 보이나요, 뒤에?",
    "what does ${HOME} mean?",
    r"a\${b} \\${c}",
    "null",
    "1e3",
    "back\\",
    "two\nlines?",
    "http://host/a?b=c&d=e",
    "~50 people?",
    "choice(a,b)",
    "x: 1",
    " around ",
]


def composed(command: str, *typed: str) -> dict[str, object]:
    """The plain keys of a command that are not those of its defaults' sections."""
    register_resolvers()
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(command, canonical(typed, positional=DECLARED[command], command=command))
    return {key: config[key] for key in ("checkpoint", "image", "question", "out", "runs") if key in config}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("command", ["predict", "explain"])
def test_a_question_arrives_as_it_is(command: str, question: str) -> None:
    found = composed(command, "runs/x", "pano.jpg", question, "out=a b.csv")
    assert found == {"checkpoint": "runs/x", "image": "pano.jpg", "question": question, "out": "a b.csv"}
    assert (
        command == "explain"
        or question == "null"
        or composed(command, "runs/x", f"question={question}", "image=pano.jpg") == {**found, "out": None}
    )


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(lambda text: text[0] not in "-+~"))
def test_any_question_arrives_as_it_is(text: str) -> None:
    if not re.match(r"\w[\w.]*=", text):
        assert composed("predict", "runs/x", "pano.jpg", text)["question"] == text


def test_words_and_keys_may_be_mixed() -> None:
    found = composed("predict", "batch_size=2", "runs/x", "out=a.csv", "my (1), pano.jpg", "generation.seed=3", "what?")
    assert found == {"checkpoint": "runs/x", "image": "my (1), pano.jpg", "question": "what?", "out": "a.csv"}
    assert composed("export", "runs/x", "out", "merge=false") == {"checkpoint": "runs/x", "out": "out"}
    assert composed("predict", "runs/x", "https://host/a.jpg?b=c", "d?")["image"] == "https://host/a.jpg?b=c"
    assert composed("compare", "runs/a, b", "split=val", "runs/c")["runs"] == ["runs/a, b", "runs/c"]


@pytest.mark.parametrize(
    "word",
    [
        "out=a.csv",
        "generation.temperature=0",
        "generation.tmperature=0",  # refused with a hint further on, and no question
        "max_new_tokens=8",
        "batchsize=2",
        "fetch=default",
        "hydra.verbose=true",
        "lora_r=8",
        "prompt=what?",
        "++new=1",
        "~fetch",
    ],
)
def test_a_key_in_the_place_of_a_question_is_one(word: str) -> None:
    found = canonical(["runs/x", "pano.jpg", word], positional=DECLARED["predict"], command="predict")
    assert [one for one in found if one.startswith("question=")] == []


def refused(positional: Sequence[str], *typed: str) -> str:
    with pytest.raises(ValueError) as raised:
        canonical(typed, positional=positional, command="predict")
    return str(raised.value)


def test_too_many_words_are_told_what_each_means() -> None:
    said = refused(DECLARED["predict"], "runs/x", "pano.jpg", "where", "is", "it?")
    assert said.startswith(
        "'is' is one word too many: without a key, the first is checkpoint, the second is image and "
    )
    assert "the third is question. Put a text of several words in quotes" in said
    assert "the first is predictions. Put a path with spaces in quotes" in refused(("predictions",), "a", "b")
    assert len(refused(DECLARED["predict"], "runs/x", "pano.jpg", "where", "x" * 1000)) < 300


@pytest.mark.parametrize("typed", [["pano.jpg", "checkpoint=runs/x"], ["++checkpoint=runs/x", "pano.jpg"]])
def test_a_word_whose_key_is_given_as_well(typed: list[str]) -> None:
    said = refused(DECLARED["predict"], *typed)
    assert said.startswith("checkpoint is given twice: 'pano.jpg' and ")
    assert "Give it once; without a key, the first is checkpoint, the second is image" in said


def test_a_list_is_given_once() -> None:
    assert "runs is given twice: 'runs/a' and runs=[b]. Give it once; without a key, all words are runs." in refused(
        ("runs[]",), "runs/a", "runs=[b]"
    )


def test_the_page_has_the_words_of_every_command() -> None:
    page = (ROOT / "conf" / "README.md").read_text("utf-8").partition("### Words without a key")[2].partition("###")[0]
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    shown = {
        command: re.findall("`(.+?)`", keys) for commands, keys in rows for command in re.findall("`(.+?)`", commands)
    }
    assert shown == {command: [key.removesuffix("[]") for key in keys] for command, keys in DECLARED.items()}
