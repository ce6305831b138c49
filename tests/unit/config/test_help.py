"""``--help``: each key with its value, its comment in ``conf/`` and what is allowed."""

from __future__ import annotations

import re
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Interval, Len

from experiments.allowed import allowed, text
from panollava.config.command_line import CONF, CommandLine, canonical, known_keys, split
from panollava.config.help import ALLOWED, WIDTH, help_text, notes_of, read_comments
from panollava.config.sweep_arguments import register_resolvers
from panollava.score import main as score
from panollava.train import main as train

COMMANDS = sorted(path.stem for path in Path(CONF).glob("*.yaml"))


def line_of(command: str, *typed: str) -> CommandLine:
    register_resolvers()
    return CommandLine(command, *split(canonical([*typed, "--help"])))


def shown(command: str, *typed: str) -> str:
    """The help of a command in one line, so that no sentence is broken."""
    return " ".join(help_text(line_of(command, *typed)).replace("# ", "").split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_and_comment_of_a_command_is_shown_once(command: str) -> None:
    line = line_of(command)
    found = help_text(line)
    names = [part.partition(":")[0].strip() for part in found.splitlines() if ":" in part.partition("#")[0]]
    for key in known_keys(line.compose([])):
        assert key.rpartition(".")[2] in names, key
    words = " ".join(found.replace("# ", "").split())
    notes = notes_of(line)
    assert all(" ".join(note.comment.split()) in words for note in notes.values())
    assert sum(bool(note.comment) for note in notes.values()) >= 2
    config = found.partition("\nExamples:")[0]
    assert max(map(len, config.splitlines())) <= WIDTH


def test_values_ranges_and_choices_stand_beside_their_keys() -> None:
    found = shown("train")
    assert "overlap: 0.5 at least; the effective overlap closes the ring (0 to 0.9)" in found
    assert "parallel: ddp several processes (torchrun): ddp, each has the whole model; fsdp, each a shard" in found
    assert "rank: 16 1 or more" in found
    assert "crop: adaptive, anyres, anyres_e2p, anyres_max, cubemap, e2p, resize, sliding_window" in found
    assert "(grouped or single)" in shown("score")


def listed_groups(command: str) -> dict[str, list[str]]:
    """Group, as it is written -> its options, of the help of a command."""
    _, _, rest = help_text(line_of(command)).partition("choose with group=option ==\n")
    lines = rest.partition("\n\n")[0].replace("\n  ", " ").splitlines()
    return {group: options.split(", ") for group, _, options in (line.partition(": ") for line in lines)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_help_lists_composes_as_it_is_written(command: str) -> None:
    groups = listed_groups(command)
    chosen = {group: options for group, options in groups.items() if not group.startswith("+")}
    rows = zip_longest(*([f"{group}={option}" for option in options] for group, options in chosen.items()))
    added = [[f"{group}={groups[group][0]}"] for group in groups.keys() - chosen.keys()]  # all: test_conf
    line = CommandLine(command, *split(canonical([], command=command)))
    for row in [*rows, *added]:  # options of different groups are composed together
        _, overrides = split(canonical([one for one in row if one], command=command))
        line.compose(overrides)


def test_groups_that_a_command_lacks_are_not_listed() -> None:
    train, overlays = listed_groups("train"), {"+debug", "+experiment", "+experiment/decisive"}
    assert train.keys() & {"crop", "model/resampler", *overlays} == {"crop", "model/resampler", *overlays}
    assert not train.keys() & {"fetch", "experiment", "data/augment", "stage/settings", "generation/recorded"}
    assert not [group for group in listed_groups("features") if group.startswith(("+", "stage", "tracking"))]
    assert listed_groups("fetch") == {"data": ["csv", "json", "quic360"]}


@pytest.mark.parametrize("typed", ["experiment=overlap_sweep", "experiment/decisive=mlp_overlap0", "debug=default"])
def test_an_overlay_is_added_with_a_plus_sign(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", typed])
    with pytest.raises(SystemExit, match=re.escape(f"is added with a plus sign: +{typed}")):
        train()


def test_options_and_values_of_the_command_line_are_those_shown() -> None:
    found = shown("train", "resampler=bimamba", "crop.overlap=0.25", "model.size=full")
    assert "(conf/model/resampler/bimamba.yaml)" in found
    assert "(conf/model/resampler/mlp.yaml)" not in found
    assert "overlap: 0.25" in found
    assert "epochs: 10 1 or more; model.size=tiny: 1" in found
    assert "batch_size: 8 1 or more; model.size=tiny: 32" in shown("train", "model=siglip_qwen")


def test_resolve_keeps_what_is_missing() -> None:
    found = shown("chat", "--resolve")
    assert "checkpoint: ??? " in found
    assert "image: null " in found


def test_resolve_shows_values_in_place_of_references() -> None:
    assert "${" in shown("train", "output_dir=${experiment_name}")
    assert "output_dir: demo" in shown("train", "experiment_name=demo", "output_dir=${experiment_name}", "--resolve")


def test_help_takes_the_commands_own_forms_and_ends_before_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["score", "a.csv", "--help"])
    with pytest.raises(SystemExit) as ended:
        score()
    assert not ended.value.code  # 0 where Weights & Biases has replaced sys.exit in this process
    assert "predictions: a.csv" in capsys.readouterr().out


def test_a_misspelt_key_beside_help_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["score", "outt=a.json", "--help"])
    with pytest.raises(SystemExit, match=r"outt is not a key of this config\. Did you mean out\?"):
        score()


def test_a_reader_that_takes_the_first_lines_alone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []

    def broken(_: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("panollava.config.help.say", broken)
    monkeypatch.setattr("os.dup2", lambda _, target: closed.append(target))
    monkeypatch.setattr(sys, "argv", ["score", "--help"])
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    with pytest.raises(SystemExit) as ended:
        score()
    assert not ended.value.code  # 0 where Weights & Biases has replaced sys.exit in this process
    assert len(closed) == 1


def test_comments_are_read_beside_below_and_above_their_keys() -> None:
    file = """\
# What the file is,
# in two lines.
# @package _global_
defaults:
  - other   # no key
first: 1    # beside
            # and below
# above
second:
  inner: "#" # of the inner key
third: {a: 1}
# of the fourth,
# in two lines
fourth: [1,
  2]
"""
    head, comments = read_comments(file)
    assert head == "What the file is, in two lines."
    assert comments == {
        "first": "beside and below",
        "second": "above",
        "second.inner": "of the inner key",
        "third": "",
        "third.a": "",
        "fourth": "of the fourth, in two lines",
    }


def test_types_and_limits_in_words() -> None:
    assert allowed(bool | None) == "true, false or null"
    assert allowed(Literal["a", "b"] | None) == "a, b or null"
    assert allowed(Annotated[int, Interval(ge=0, lt=16)]) == "0 to 15"
    assert allowed(Annotated[float, Interval(gt=0, le=1)]) == "above 0, at most 1"
    assert allowed(Annotated[float, Ge(0)]) == "0 or more"
    assert allowed(Annotated[list[int], Len(1)]) == "list: whole number, at least 1"
    assert allowed(tuple[str, float]) == "list of 2: text; number"


@pytest.mark.slow
def test_what_is_allowed_is_what_the_checks_allow() -> None:
    assert ALLOWED.read_text("utf-8") == text(), "make tables"
