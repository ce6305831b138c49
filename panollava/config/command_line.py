r"""Command lines: short forms written out for Hydra, what Hydra composes of them, and a check of their keys.

``resampler=bimamba`` becomes ``model/resampler=bimamba`` and ``lora.rank=8`` becomes ``model.lora.rank=8`` before
Hydra sees the arguments, so that every record has one name for each group and key. Values of text and path keys are
quoted, since commas, quotes, ``=`` and parentheses have a meaning in Hydra's grammar, which a question or
``C:\my (1)\pano.jpg`` does not intend.
"""

import functools
import os
import re
import shlex
from argparse import ArgumentError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from panollava.component import closest
from panollava.config.foreign import Names, example, is_foreign, sentence
from panollava.config.outside import GROUPS
from panollava.config.positional import SENTENCES, separate

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE.parent / "conf", _PACKAGE / "_conf")

CONF = next((str(folder) for folder in _PLACES if (folder / "train.yaml").is_file()), "")
"""Absolute path of the config folder."""

if not CONF:
    raise FileNotFoundError(
        f"panollava's config folder is neither {_PLACES[0]} nor {_PLACES[1]}: the installation is incomplete. "
        "Reinstall with `pip install .` in the repository."
    )

VERSION_BASE = "1.3"

_COMMANDS = ("run", "cfg", "multirun", "shell_completion", "info")
"""Flags of which Hydra takes one."""

_TEXT = {
    "": "answer benchmark_files checkpoint clip config csv_input experiment_name folder image images init_from "
    "mlflow_experiment out output_dir predictions question results_dir resume truth",
    "data.": "annotation_column dir image_column image_dir masks name query_column query_template test_boxes test_csv "
    "test_json train_boxes train_csv train_json val_boxes val_csv val_json",
    "evaluation.": "clip measure results_dir",
    "fetch.": "folder",
    "hydra.sweep.": "dir",
    "model.language.": "name revision system",
    "model.vision.": "name revision",
    "store.": "dir",
    "tracking.": "alias experiment register run_name uri wandb_project",
}

TEXT_KEYS = frozenset(section + name for section, names in _TEXT.items() for name in names.split())
"""Keys whose values are free text or paths: taken literally, never parsed."""

SHORT_KEYS = {
    "evaluation.max_new_tokens": "generation.max_new_tokens",
    "max_new_tokens": "generation.max_new_tokens",
    "measure": "evaluation.measure",
}
"""Other spellings of a key."""

_GROUP_OF_TYPE = {f"{section}.type": group for group, (section, _, _) in GROUPS.items()}
"""Key with the type of a component -> the group whose options have the keys of one type."""

_ARGUMENT = re.compile(r"^(?P<op>\+\+|\+|~)?(?P<key>[A-Za-z_][\w/]*)(?P<rest>(?:[=@.].*)?)$", re.DOTALL)

NO_REMOTE = (
    "Training and evaluation read pictures from files. Those at addresses are fetched once by "
    "python -m panollava.fetch data=…, which also writes the data file to train on; a command that takes one "
    "picture, such as panollava.predict, fetches image=https://… by itself, from the hosts of fetch.hosts"
)
"""What replaces the keys ``data.remote*``."""


def canonical(
    arguments: Sequence[str], *, positional: Sequence[str] = (), loose: Sequence[str] = (), command: str = "train"
) -> list[str]:
    """The arguments as Hydra should see them.

    Args:
        arguments: command line after the program name.
        positional: keys of arguments without a key, in their order, as in ``predict runs/a a.jpg "what is behind?"``;
            one that ends in ``[]`` takes all of them as a list, as in ``compare runs/a runs/b``.
        loose: sections whose keys are not known beforehand, such as those of a recorded crop.
        command: name of the root config, whose keys tell a key from a text and are named where a flag is wrong.

    Returns:
        Hydra's flags, then the overrides with short group names written out and text values quoted. ``--cfg job``
        gains ``--resolve``, so that it shows the final numbers.

    Raises:
        ValueError: a flag is wrong, or an argument has no key and there is none for it.
    """
    flags, overrides = split(arguments, command)
    if flags.cfg == "job":  # Hydra's own section does not resolve
        flags.resolve = True
    keyed, pairs = separate(overrides, positional, functools.partial(_is_key, command=command))
    named = [_canonical_argument(_addable(argument, loose), bool(flags.multirun)) for argument in keyed]
    lists = {key: ",".join(quoted(word) for each, word in pairs if each == key) for key, _ in pairs}
    whole = [f"{key[:-2]}=[{texts}]" for key, texts in lists.items() if key.endswith("[]")]
    return [
        *words(flags),
        *named,
        *(f"{key}={_literal(word)}" for key, word in pairs if not key.endswith("[]")),
        *whole,
    ]


def split(arguments: Sequence[str], command: str = "train") -> tuple[Namespace, list[str]]:
    """Flags and overrides of a command line, in any order.

    Raises:
        ValueError: a flag that Hydra does not have, or some that exclude each other.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    parser.error = _raise  # type: ignore[method-assign]  # that of an ambiguous flag ends the process
    try:
        flags, unknown = parser.parse_known_intermixed_args(list(arguments))
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    if unknown:
        wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
        raise ValueError(_wrong_flag(wrong, arguments, command))
    given = [f"--{name.replace('_', '-')}" for name in _COMMANDS if getattr(flags, name) not in (None, False)]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one of them.")
    if flags.resolve and not (flags.cfg or flags.help):
        raise ValueError("--resolve needs --cfg or --help.")
    if flags.config_path is not None and "://" not in flags.config_path:
        flags.config_path = os.path.abspath(flags.config_path)  # Hydra would take it from this package's folder
    return flags, list(flags.overrides or [])


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


def _wrong_flag(wrong: str, arguments: Sequence[str], command: str) -> str:
    """What to say of a flag that Hydra does not have: most are keys, here or in another tool, with dashes."""
    typed, equals, value = wrong.partition("=")
    if not equals:
        after = list(arguments)[list(arguments).index(wrong) + 1 :][:1]
        value = next((word for word in after if not word.startswith("-") and "=" not in word), "")
    shown = "…" if not value or "@" in value else shlex.quote(value)  # an address may have a password
    key = typed.lstrip("-").replace("-", "_")
    names = names_of(command)
    said = f"{typed} is no option of this command"
    spellings = (SHORT_KEYS.get(key, key), f"model.{key}", f"model/{key}")
    if any(name in names.keys or name in names.groups for name in spellings):
        return f"{said}. Settings are key=value, without dashes: {key}={shown}."
    if hint := _hint(key, names, command):
        return f"{said}. Settings are key=value, without dashes. {hint}"
    return f"{said}. Options are Hydra's; --hydra-help lists them."


def words(flags: Namespace) -> list[str]:
    """Flags as words of a command line."""
    found = []
    for name, value in vars(flags).items():
        if name != "overrides" and value not in (None, False):
            found += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return found


@functools.cache
def names_of(command: str) -> Names:
    """The keys and groups of a command at its defaults."""
    config = CommandLine(command, get_args_parser().parse_args([]), []).base
    return Names(frozenset(known_keys(config)), frozenset(config.hydra.runtime.choices))


def _is_key(name: str, command: str) -> bool:
    """Whether what stands before a ``=`` is meant as a key, not as part of a text: a misspelt one is, too."""
    names, first = names_of(command), re.split(r"[./@]", name)[0]
    is_in_section = first != name and (first in names.keys or first in ("hydra", "model", *short_names()))
    known = {*names.keys, *names.groups, *(short for short, full in SHORT_KEYS.items() if full in names.keys)}
    return is_in_section or name in known or is_foreign(name) or closest(name, known) is not None


def _addable(argument: str, loose: Sequence[str]) -> str:
    """Lets a key of a loose section be added; ``crop=cubemap`` is its type."""
    for section in loose:
        if argument.startswith(f"{section}."):
            return f"++{argument}"
        if argument.startswith(f"{section}="):
            return f"++{section}.type{argument.removeprefix(section)}"
    return argument


def short_names() -> dict[str, str]:
    """Short group name -> real group, read from the folders below ``conf/model``."""
    return {path.name: f"model/{path.name}" for path in sorted((Path(CONF) / "model").iterdir()) if path.is_dir()}


def _canonical_argument(argument: str, sweep: bool) -> str:
    match = _ARGUMENT.match(argument)
    if not match:
        return argument
    operator, key, rest = match["op"] or "", match["key"], match["rest"]
    if key in (names := short_names()):
        key = names[key].replace("/", ".") if rest.startswith(".") else names[key]
    key, equals, value = (key + rest).partition("=")
    if key.startswith("objective."):
        key = GROUPS["objective"][0] + key.removeprefix("objective")
    if key == GROUPS["objective"][0] and not value.startswith("{"):
        key = f"{key}.type"
    group = _GROUP_OF_TYPE.get(key)
    if (group == "objective" and equals) or (group and ":" in value and not operator):
        return f"{group}{equals}{value}"  # an option of the group brings the keys of this type with it
    key = SHORT_KEYS.get(key, key)
    if key in TEXT_KEYS and value not in ("", "null"):
        is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        if key in SENTENCES:
            value = _literal(value)
        elif not is_quoted and "${" not in value:
            value = _swept_text(value) if sweep else quoted(value)
    return f"{operator}{key}{equals}{value}"


def _literal(value: str) -> str:
    """``value`` quoted so that Hydra and OmegaConf leave all of it as it is."""
    # OmegaConf 2.3: a backslash escapes ``${``, and backslashes before it.
    return quoted(re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", value))


def _swept_text(value: str) -> str:
    """A text value of a sweep: as it is where Hydra reads texts in it, else each part between commas quoted."""
    try:
        override = OverridesParser.create().parse_override(f"text={value}")
    except HydraException:
        return ",".join(quoted(part.strip()) for part in value.split(","))
    if not override.is_sweep_override():
        return quoted(value)
    if override.value_type != ValueType.SIMPLE_CHOICE_SWEEP:
        return value
    pairs = zip(override.sweep_iterator(), override.sweep_string_iterator(), strict=True)
    return ",".join(quoted(text) if isinstance(each, int | float) else text for each, text in pairs)


def quoted(value: str) -> str:
    """``value`` as a Hydra single-quoted string that parses back to exactly ``value``.

    Source: Hydra 1.3 override grammar: inside quotes only the quote itself, and backslashes before it, are escaped.
    """
    body = re.sub(r"(\\*)'", lambda m: m[1] * 2 + "\\'", value)
    trailing = len(body) - len(body.rstrip("\\"))
    return "'" + body + "\\" * trailing + "'"


@dataclass
class CommandLine:
    """A command line and the configs that Hydra composes of it; nothing is run.

    Args:
        config_name: root config of the application.
        flags, overrides: from ``split``, the overrides in canonical form.

    Raises:
        HydraException: an override is not of Hydra's grammar.
    """

    config_name: str
    flags: Namespace
    overrides: Sequence[str]

    def __post_init__(self) -> None:
        version.setbase(VERSION_BASE)
        search = create_config_search_path(self.flags.config_path or CONF)
        if self.flags.config_dir:
            path = f"file://{os.path.abspath(self.flags.config_dir)}"
            search.prepend(provider="command-line", path=path, anchor=SearchPathQuery(provider="schema"))
        self._loader = ConfigLoaderImpl(config_search_path=search)
        self._composed: dict[tuple[str, ...], DictConfig] = {}  # each takes a tenth of a second
        self.parsed = self.parse(self.overrides)

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Overrides as Hydra parses them."""
        return OverridesParser.create(config_loader=self._loader).parse_overrides(list(overrides))

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config of some overrides, Hydra's own section included; what is swept is left out."""
        if (key := tuple(overrides)) not in self._composed:
            name = self.flags.config_name or self.config_name
            self._composed[key] = self._loader.load_configuration(name, list(key), run_mode=RunMode.MULTIRUN)
        return self._composed[key]

    def is_group(self, override: Override) -> bool:
        """Whether an override chooses an option of a group."""
        return self._loader.repository.group_exists(override.key_or_group)

    def options(self, group: str) -> list[str]:
        """The options of a group."""
        return list(self._loader.get_group_options(group))

    def groups(self) -> dict[str, list[str]]:
        """The options of each group but Hydra's. (The loader's own list copies all of the configs for each group.)"""
        repository, found, left = self._loader.repository, dict[str, list[str]](), [""]
        while left:
            group = left.pop()
            below = repository.get_group_options(group, ObjectType.GROUP)
            left += [f"{group}/{name}".lstrip("/") for name in below if group or name != "hydra"]
            if group and (options := repository.get_group_options(group)):
                found[group] = options
        return found

    def overlays(self) -> list[str]:
        """The groups whose options change keys of all sections of ``train``; they are added with a plus sign."""
        if self.config_name != "train":
            return []
        repository = self._loader.repository
        files = {group: repository.load_config(f"{group}/{options[0]}") for group, options in self.groups().items()}
        return [group for group, file in files.items() if file and file.header.get("package") == "_global_"]

    def files(self) -> list[tuple[Path, str]]:
        """The YAML files of which the config of the overrides is composed, in that order, and the package of each."""
        name = self.flags.config_name or self.config_name
        folders = [Path(one.path) for one in self._loader.repository.get_sources() if one.scheme() == "file"]
        listed = self._loader.compute_defaults_list(name, list(self.overrides), RunMode.MULTIRUN).defaults
        found = []
        for one in listed:
            package = one.package or ""
            paths = (folder / f"{one.config_path}.yaml" for folder in folders)
            path = next((path for path in paths if path.is_file()), None)
            if path is not None and package.partition(".")[0] != "hydra":
                found.append((path, package))
        return found

    @cached_property
    def choices(self) -> list[str]:
        """Overrides that choose one option, and Hydra's own."""
        chosen = [o for o in self.parsed if not o.is_sweep_override() and (self.is_group(o) or o.is_hydra_override())]
        return [str(o.input_line) for o in chosen]

    @cached_property
    def base(self) -> DictConfig:
        """The config of ``choices``."""
        return self.compose(self.choices)

    @cached_property
    def swept(self) -> list[Override]:
        """The sweep of an overlay, then the overrides; the last one of a key counts."""
        params = self.base.hydra.sweeper.get("params") or {}
        return [*self.parse([f"{key}={value}" for key, value in params.items()]), *self.parsed]

    @property
    def is_sweep(self) -> bool:
        """Whether Hydra would run several jobs."""
        return bool(self.flags.multirun) or self.base.hydra.mode == RunMode.MULTIRUN

    @cached_property
    def variants(self) -> dict[str, DictConfig]:
        """The config of each option that is swept, by ``group=option``, of the others the first; else ``base``."""
        if not self.is_sweep:
            return {"": self.base}
        found: dict[str, list[str]] = {}
        for override in self.swept:
            if override.is_discrete_sweep() and self.is_group(override):
                found[override.get_key_element()] = list(override.sweep_string_iterator())
        first = {key: f"{key}={options[0]}" for key, options in found.items() if options}
        result = {}
        for key, options in found.items():
            for option in dict.fromkeys(options):
                label = f"{key}={option}"
                result[label] = self.compose([*self.choices, *{**first, key: label}.values()])
        return result or {"": self.base}


def known_keys(config: DictConfig, prefix: str = "") -> set[str]:
    """Every key of a config, sections included, but Hydra's."""
    found: set[str] = set()
    for key in config.keys() - {"hydra"}:
        name = f"{prefix}{key!s}"
        found.add(name)
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
            found |= known_keys(node, f"{name}.")
    return found


def check_keys(line: CommandLine) -> set[str]:
    """Checks that the configs of a command line, one or those of a sweep's jobs, have the keys that it changes.

    Returns:
        Keys that every job has and the config without what is swept has not: those of a swept group's options.

    Raises:
        ValueError: one does not; the message is about the first such key.
        HydraException: an option of a swept group does not exist.
    """
    variants = {label: known_keys(config) for label, config in line.variants.items()}
    base, theirs = known_keys(line.base), set()
    for override in line.swept if line.is_sweep else line.parsed:
        key, is_change = override.key_or_group, override.get_key_element() == override.key_or_group
        if not is_change or override.is_hydra_override() or line.is_group(override):
            continue
        lacking = [label for label, known in variants.items() if key not in known]
        if len(lacking) == len(variants):
            names = Names(set().union(*variants.values()), line.base.hydra.runtime.choices)
            raise ValueError(_unknown(key, names, line.config_name))
        if lacking:
            having = [label for label in variants if label not in lacking]
            groups = {label.partition("=")[0] for label in lacking} & {label.partition("=")[0] for label in having}
            without, having = ([x for x in each if x.partition("=")[0] in groups] for each in (lacking, having))
            raise ValueError(
                f"{override.input_line}: {', '.join(without)} has no such key, {', '.join(having)} has. Give it in a "
                "start with the options that have it, and start the others without it."
            )
        if key not in base:
            theirs.add(key)
    return theirs


def check_groups(line: CommandLine) -> None:
    """Checks that every group keeps an option; Hydra cannot compose a line that takes one away.

    Raises:
        ValueError: one has none.
    """
    for override in line.parsed:
        if line.is_group(override) and (override.is_delete() or override.value() in (None, "")):
            options = ", ".join(line.options(override.key_or_group))
            raise ValueError(f"{override.input_line}: a group always has an option. Choose one of {options}.")


def without_group(error: str, overrides: Sequence[str], command: str) -> str:
    """What to say where Hydra finds that a command has not the group of an override; empty for its other errors."""
    found = re.match(r"Could not override '([^'@]+)'\. No match in the defaults list", error)
    if found is None:
        return ""
    group, keys = found[1], names_of(command).keys
    typed = next((one for one in overrides if one.partition("=")[0] == group), group)
    if group in CommandLine(command, get_args_parser().parse_args([]), []).overlays():
        return f"{group} is added with a plus sign: +{typed}"
    own = ", ".join(sorted(key for key in keys if key.startswith(f"{group}.")))
    said = f"{typed}: panollava.{command} has no group {group}."
    if group == "data" and "csv_input" in keys:
        said += " It takes the data of the run; another file of questions is csv_input=<file>."
    return f"{said} There are the keys {own}." if own else said


def _unknown(key: str, names: Names, command: str = "train") -> str:
    known = names.keys
    if key.startswith("data.remote"):
        return f"{key} is not a key any more. {NO_REMOTE}."
    if re.fullmatch(r"stage\.\w+\.type", key):
        return f"{key} is not a key of this config. A stage of another package is added with a plus sign: +{key}=…"
    hint = _hint(key, names, command)
    if hint.startswith("Here "):
        return f"{key} is not a key of this config. {hint}"
    section = key.rpartition(".")[0]
    siblings = sorted(k for k in known if k.rpartition(".")[0] == section) or sorted(k for k in known if "." not in k)
    return f"{key} is not a key of this config.{f' {hint}' if hint else ''} There are: {', '.join(siblings)}."


def _hint(key: str, names: Names, command: str) -> str:
    """What was probably meant by a name that a command has not: another tool's, or a slip."""
    if is_foreign(key) and (hint := _elsewhere(key, names, command)):
        return hint
    known = names.keys
    same = [other for other in known if other.endswith(f".{key}")]
    is_clear = len(same) == 1 and same[0].partition(".")[2] == key  # without its section, as in overlap=0
    spellings = {short: full for short, full in SHORT_KEYS.items() if full in known}
    close = closest(key, [*known, *spellings]) or (same[0] if is_clear else None)
    return f"Did you mean {spellings.get(close, close)}?" if close else _elsewhere(key, names, command)


def _elsewhere(key: str, names: Names, command: str) -> str:
    """What to say of another tool's name; empty where nothing is known of it."""
    if found := example(key, names):
        return f"Here that is {found}."
    if command != "train" and (found := example(key, names_of("train"))):
        return f"Here that is a setting of training: python -m panollava.train {found}."
    return f"Here {said}." if (said := sentence(key)) else ""
