"""python -m panollava: lists the commands, or runs one; the console script ``panollava`` is the same."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import NoReturn


def main() -> None:
    """Runs the command that the first word names, in this process, with the words after it."""
    from panollava.config.descriptions import descriptions  # here: a worker that imports this module needs none of it
    from panollava.logs import say

    words = sys.argv[1:]
    first = words[0] if words else "--help"
    program = _program()
    if first in ("--help", "-h", "help"):
        say(_listed(program, descriptions()))
    elif first == "--version":
        say(f"panollava {importlib.import_module('panollava').__version__}")
    elif first in (commands := descriptions()):
        # As if the command's own module had been started: it reads the words after the name.
        sys.argv = [f"{sys.argv[0]} {first}", *words[1:]]
        importlib.import_module(f"panollava.{first}").main()
    else:
        _refuse(first, program, commands)


def _program() -> str:
    """What was typed to get here."""
    started = Path(sys.argv[0])
    return "python -m panollava" if started.name == "__main__.py" else "panollava"


def _listed(program: str, commands: dict[str, str]) -> str:
    width = max(map(len, commands))
    return "\n".join(
        [
            "An open experiment platform for panoramic (360°) vision-language models.",
            "",
            f"{program} <command> [group=option] [key=value] …",
            f"{program} <command> --help    the keys of a command",
            f"{program} --version",
            "",
            "Commands:",
            *(f"  {name:<{width}}  {description}" for name, description in commands.items()),
        ]
    )


def _refuse(word: str, program: str, commands: dict[str, str]) -> NoReturn:
    """Ends the process with status 2, as programs do whose command line is wrong."""
    if word.startswith("-") or "=" in word:
        said = f"{word}: the name of a command comes first, such as {program} train {word}."
    else:
        name = word.removeprefix("panollava.").removesuffix(".py")
        close = [name] if name in commands else difflib.get_close_matches(name, commands, n=1)
        said = f"{word} is no command.{f' Did you mean {close[0]}?' if close else ''}"
    sys.stderr.write(f"\n{said}\n\n{_listed(program, commands)}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
