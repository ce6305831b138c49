"""``--help`` of a command: each key with its value, its comment in ``conf/`` and what is allowed.

Comments are read from the files that Hydra composes. What is allowed is read from ``allowed.json``, which
``make tables`` writes from the signatures that check the configs, since most of these need PyTorch.
"""

import contextlib
import json
import os
import re
import string
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panollava.config.command_line import CONF, CommandLine
from panollava.logs import say

ALLOWED = Path(__file__).with_name("allowed.json")
WIDTH = 120
COLUMN = 32
"""Column of the comments."""
_SIZED = re.compile(r"\$\{for_size:(\{.*\})\}", re.DOTALL)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Note:
    """What the files say of a key."""

    comment: str = ""
    file: str = ""  # of a section, the file whose keys it has; else empty


def show_help(line: CommandLine) -> None:
    """Writes the help of a command line to standard output, of which ``head`` may take the first lines alone.

    Raises:
        HydraException, OmegaConfBaseException: the config cannot be composed.
    """
    text = help_text(line)
    try:
        say(text)
    except BrokenPipeError:
        # Source: the note on SIGPIPE in Python's documentation of `signal`; the interpreter flushes when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def help_text(line: CommandLine) -> str:
    """The template ``hydra.help.template`` with ``$CONFIG`` and, for groups that it takes, ``$APP_CONFIG_GROUPS``."""
    config = line.compose(line.overrides)
    template = string.Template(config.hydra.help.template)
    marks = dict.fromkeys(config.hydra.runtime.choices, "") | dict.fromkeys(line.overlays(), "+")
    groups = sorted((group, options) for group, options in line.groups().items() if group in marks)
    listed = (f"{marks[group]}{group}: {', '.join(options)}" for group, options in groups)
    filled = "".join(
        textwrap.fill(one, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) + "\n"
        for one in listed
    )
    shown = _Config(line, config)
    return template.safe_substitute(CONFIG="\n".join(shown.lines()) + "\n", APP_CONFIG_GROUPS=filled)


class _Config:
    """A composed config as text."""

    def __init__(self, line: CommandLine, config: DictConfig) -> None:
        self._config, self._resolve = config, bool(line.flags.resolve)
        self._command = line.config_name
        self._notes = notes_of(line)
        self._allowed = json.loads(ALLOWED.read_text("utf-8"))

    def lines(self) -> Iterator[str]:
        """Each key, in the order of the config."""
        values: Any = OmegaConf.to_container(self._config, resolve=False)
        values.pop("hydra", None)
        yield from self._section(values, "", "")

    @cached_property
    def _size(self) -> str:
        return str(OmegaConf.select(self._config, "model.size"))

    def _section(self, values: Mapping[str, Any], place: str, indent: str) -> Iterator[str]:
        """Lines of a section; ``place`` is its key with a full stop, empty at the root."""
        allowed = self._allowed_in(place.rstrip("."), values)
        for name, value in values.items():
            key = f"{place}{name}"
            note = self._notes.get(key, Note())
            if isinstance(value, dict) and value:
                yield from _pieces(f"{indent}{name}:", f"({note.file})" if note.file else "", mark="")
                for line in _wrapped(note.comment, len(indent) + 2):
                    yield f"{indent}  {line}"
                yield from self._section(value, f"{key}.", f"{indent}  ")
            else:
                text, sizes = self._value(key, value)
                limits = "; ".join(filter(None, (_completed(allowed.get(name, ""), value, note.comment), sizes)))
                comment = f"{note.comment} ({limits})" if note.comment and limits else note.comment or limits
                yield from _pieces(f"{indent}{name}: {text}", comment)

    def _allowed_in(self, section: str, values: Mapping[str, Any]) -> Mapping[str, str]:
        """What the keys of a section may be, of those that the command or all commands check."""
        if not section:
            found: Mapping[str, str] = self._allowed["commands"].get(self._command, {})
            return found
        types: Mapping[str, Mapping[str, str]] = self._allowed["sections"].get(section, {})
        return types.get(str(values.get("type", "")), {})

    def _value(self, key: str, raw: Any) -> tuple[str, str]:
        """A value as YAML, and what it is with backbones of another size."""
        sized = _SIZED.fullmatch(raw) if isinstance(raw, str) else None
        sizes = ""
        if sized or self._resolve:
            with contextlib.suppress(OmegaConfBaseException):  # a value that is not to be had
                found = OmegaConf.select(self._config, key, default=raw)  # which a missing value stays
                raw = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
        if sized:
            others = {size: value for size, value in yaml.safe_load(sized[1]).items() if size != self._size}
            sizes = ", ".join(f"model.size={size}: {_written(value)}" for size, value in others.items())
        return _written(raw), sizes


def _written(value: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(value, str) and value == "":
        return '""'
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _completed(allowed: str, value: Any, comment: str) -> str:
    """What is allowed, with the null that a command gives; that any text is allowed is no news beside a comment."""
    if allowed in ("text", "text or null") and comment:
        return ""
    return f"{allowed} or null" if allowed and value is None and not allowed.endswith("null") else allowed


def _pieces(head: str, comment: str, *, mark: str = "# ") -> Iterator[str]:
    """A key with its comment beside it, in lines of at most ``WIDTH`` columns."""
    if comment and len(head) >= COLUMN and len(line := f"{head}  {mark}{comment}") <= WIDTH:
        yield line
        return
    if not comment or len(head) >= COLUMN:
        yield head
        head = ""
    for line in _wrapped(comment, COLUMN, mark):
        yield f"{head:<{COLUMN}}{line}"
        head = ""


def _wrapped(comment: str, start: int, mark: str = "# ") -> list[str]:
    """A comment in lines that begin at a column."""
    width = WIDTH - start - len(mark)
    return [f"{mark}{line}" for line in textwrap.wrap(comment, width, break_long_words=False, break_on_hyphens=False)]


def notes_of(line: CommandLine) -> dict[str, Note]:
    """Full key -> what the composed files say of it; a file without a comment on a key keeps the earlier file's."""
    found: dict[str, Note] = {}
    for file, package in line.files():
        head, comments = read_comments(file.read_text("utf-8"))
        package = "" if package == "_global_" else package
        if package:
            found[package] = Note(head, _shown(file))
        for path, comment in comments.items():
            key = f"{package}.{path}".lstrip(".")
            if comment or key not in found:
                found[key] = Note(comment)
    return found


def _shown(file: Path) -> str:
    """A file as documentation names it; an installed package has ``conf`` elsewhere."""
    return f"conf/{file.relative_to(CONF).as_posix()}" if file.is_relative_to(CONF) else str(file)


def read_comments(text: str) -> tuple[str, dict[str, str]]:
    """What a file says of itself at its top, and its comment of each key, by path.

    A comment stands on the line of its key and goes on in lines of comment below it, or in lines above the key.
    """
    lines = text.splitlines()
    top = [line for line in _leading(lines) if not line.startswith("# @package")]
    root = yaml.compose(text, Loader=_LOADER)
    comments: dict[str, str] = {}

    def visit(node: yaml.MappingNode, prefix: str) -> None:
        for key, value in node.value:
            if not prefix and key.value in ("defaults", "hydra"):
                continue
            comments[f"{prefix}{key.value}"] = _comment(lines, key, value, len(_leading(lines)))
            if isinstance(value, yaml.MappingNode) and value.value:
                visit(value, f"{prefix}{key.value}.")

    if isinstance(root, yaml.MappingNode):
        visit(root, "")
    return " ".join(line.removeprefix("#").strip() for line in top), comments


def _leading(lines: list[str]) -> list[str]:
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:count]


def _comment(lines: list[str], key: yaml.Node, value: yaml.Node, first: int) -> str:
    """The comment of a key; lines before ``first`` are about the whole file."""
    is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
    end = key.end_mark if is_block else value.end_mark
    rest = lines[end.line][end.column :].lstrip(":")
    found = []
    if rest.lstrip().startswith("#"):
        found.append(rest.lstrip())
        for line in lines[end.line + 1 :]:
            if not line.startswith(" " * (key.start_mark.column + 1)) or not line.lstrip().startswith("#"):
                break
            found.append(line.lstrip())
    else:
        for number in range(key.start_mark.line - 1, first - 1, -1):
            if not re.match(rf" {{{key.start_mark.column}}}#", lines[number]):
                break
            found.insert(0, lines[number].lstrip())
    return " ".join(line.removeprefix("#").strip() for line in found)
