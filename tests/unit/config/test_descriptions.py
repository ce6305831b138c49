"""``python -m panollava`` lists the commands by the first sentence of their help, and runs one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from panollava import __main__, __version__
from panollava.config.command_line import CONF
from panollava.config.descriptions import _first_sentence, descriptions

COMMANDS = sorted(path.stem for path in Path(CONF).glob("*.yaml"))


def ran(monkeypatch: pytest.MonkeyPatch, *typed: str, program: str = "/bin/panollava") -> object:
    """The exit status of the program; None where it came to its end."""
    monkeypatch.setattr(sys, "argv", [program, *typed])
    try:
        __main__.main()
    except SystemExit as error:
        return error.code
    return None


def test_every_command_has_a_sentence_that_fits_a_line() -> None:
    assert sorted(descriptions()) == COMMANDS
    for command, sentence in descriptions().items():
        assert 20 < len(sentence) < 109, command
        assert sentence.endswith(".")
        assert sentence[0].isupper()


def test_the_first_sentence_of_a_help_text() -> None:
    help_of = "# what\nhydra:\n  help:\n    template: |-\n      {}\n"
    assert _first_sentence(help_of.format("Draws a.b (1.5)\n      and more. Then this.")) == "Draws a.b (1.5) and more."
    assert _first_sentence(help_of.format("Draws\n\n      $CONFIG")) == "Draws"
    assert _first_sentence("# python -m panollava.toy\nmaterial: wood\n") == "python -m panollava.toy"


@pytest.mark.parametrize("typed", [[], ["--help"], ["-h"], ["help"]])
def test_commands_are_listed(
    typed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(monkeypatch, *typed) is None
    lines = capsys.readouterr().out.splitlines()
    assert "panollava <command> [group=option] [key=value] …" in lines
    assert [line.split()[0] for line in lines if line.startswith("  ")] == COMMANDS
    assert max(map(len, lines)) <= 120


def test_the_list_names_the_program_as_it_was_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(monkeypatch, program=str(Path(__main__.__file__)))
    assert "python -m panollava <command> --help" in capsys.readouterr().out


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(monkeypatch, "--version") is None
    assert capsys.readouterr().out == f"panollava {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("trian", "trian is no command. Did you mean train?"),
        ("panollava.eval", "panollava.eval is no command. Did you mean eval?"),
        ("train.py", "train.py is no command. Did you mean train?"),
        ("dance", "dance is no command.\n"),
        ("seed=1", "seed=1: the name of a command comes first, such as panollava train seed=1."),
        ("-m", "-m: the name of a command comes first"),
    ],
)
def test_what_is_no_command(
    typed: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(monkeypatch, typed) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert all(f"\n  {command} " in shown.err for command in COMMANDS)


def test_a_command_gets_the_words_after_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    command = SimpleNamespace(main=lambda: seen.append(sys.argv))
    monkeypatch.setattr("importlib.import_module", lambda name: {"panollava.predict": command}[name])
    assert ran(monkeypatch, "predict", "--help", "is a=b?") is None
    assert seen == [["/bin/panollava predict", "--help", "is a=b?"]]
