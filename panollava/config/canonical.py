"""Turns what users type into what Hydra reads: one real group, several spellings.

``resampler=bimamba`` becomes ``model/resampler=bimamba`` and ``lora.rank=8`` becomes ``model.lora.rank=8``,
before Hydra sees the arguments, so that there is one group, one choice and one name in every record.
Values of text and path keys are quoted, since Hydra's grammar gives commas, quotes, ``=`` and parentheses a
meaning that a question or ``C:\\my (1)\\pano.jpg`` does not intend.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException

from panollava.config.command_line import split, words
from panollava.config.locate import CONF

TEXT_KEYS = frozenset(
    {
        "answer",
        "checkpoint",
        "clip",
        "config",
        "csv_input",
        "data.annotation_column",
        "data.dir",
        "data.image_column",
        "data.image_dir",
        "data.name",
        "data.query_column",
        "data.query_template",
        "data.remote_cache",
        "data.test_csv",
        "data.test_json",
        "data.train_csv",
        "data.train_json",
        "data.val_csv",
        "data.val_json",
        "evaluation.clip",
        "evaluation.results_dir",
        "experiment_name",
        "folder",
        "hydra.sweep.dir",
        "image",
        "images",
        "init_from",
        "measure",
        "mlflow_experiment",
        "model.language.name",
        "model.language.revision",
        "model.language.system",
        "model.vision.name",
        "model.vision.revision",
        "out",
        "predictions",
        "output_dir",
        "question",
        "results_dir",
        "resume",
        "store.dir",
        "tracking.alias",
        "tracking.experiment",
        "tracking.register",
        "tracking.run_name",
        "tracking.uri",
    }
)
"""Keys whose values are free text or paths: taken literally, never parsed."""

_SENTENCES = frozenset({"question"})
"""Text keys whose values nobody quotes for Hydra, sweeps or interpolates: quotes and ``${`` are part of the text."""

_ARGUMENT = re.compile(r"^(?P<op>\+\+|\+|~)?(?P<key>[A-Za-z_][\w/]*)(?P<rest>(?:[=@.].*)?)$", re.DOTALL)


def canonical(arguments: Sequence[str], *, bare: str | None = None, loose: Sequence[str] = ()) -> list[str]:
    """The arguments as Hydra should see them.

    Args:
        arguments: command line after the program name.
        bare: key that an argument without a key is the value of, as in ``score predictions.csv``; one that ends in
            ``[]`` takes all of them as a list, as in ``compare runs/a runs/b``.
        loose: sections whose keys are not known beforehand, such as those of a recorded crop.

    Returns:
        Hydra's flags, wherever they stood, and then the other arguments with short group names written out and text
        values quoted. ``--cfg job`` gains ``--resolve``, so that what it shows are the final numbers.

    Raises:
        ValueError: an argument has no key and none that it could be of, or that key has one already; or a flag is
            wrong.
    """
    flags, overrides = split(arguments)
    if flags.cfg == "job":  # Hydra's own section does not resolve
        flags.resolve = True
    named = _named(overrides, bare)
    return [*words(flags), *(_canonical_argument(_opened(argument, loose), bool(flags.multirun)) for argument in named)]


def _named(arguments: Sequence[str], key: str | None) -> list[str]:
    """The arguments with the key before those that have none."""
    result: list[str] = []
    values: list[str] = []
    for argument in arguments:
        is_option = argument.startswith(("+", "~"))
        is_bare = not is_option and ("=" not in argument or (key is not None and Path(argument).exists()))
        (values if is_bare else result).append(argument)
    if not values:
        return result
    if key is None:
        raise ValueError(
            f"{values[0]!r} has no key. An argument is key=value (see --help), in quotes where there are spaces in it."
        )
    if key.endswith("[]"):
        return [*result, f"{key[:-2]}=[{','.join(map(quoted, values))}]"]
    given = [*values, *(argument for argument in result if argument.startswith(f"{key}="))]
    if len(given) > 1:
        raise ValueError(f"{' '.join(given)}: this command takes one {key}.")
    return [*result, f"{key}={values[0]}"]


def _opened(argument: str, loose: Sequence[str]) -> str:
    """A key of a loose section as one that may be added; ``crop=cubemap`` is its type."""
    for section in loose:
        if argument.startswith(f"{section}."):
            return f"++{argument}"
        if argument.startswith(f"{section}="):
            return f"++{section}.type{argument.removeprefix(section)}"
    return argument


SHORT_KEYS = {
    "evaluation.max_new_tokens": "generation.max_new_tokens",
    "max_new_tokens": "generation.max_new_tokens",
}
"""Other spellings of a key."""


def short_names() -> dict[str, str]:
    """Short group name -> real group, read from the folders below ``conf/model``."""
    return {path.name: f"model/{path.name}" for path in sorted((Path(CONF) / "model").iterdir()) if path.is_dir()}


def _canonical_argument(argument: str, sweep: bool) -> str:
    match = _ARGUMENT.match(argument)
    if not match:
        return argument
    operator, key, rest = match["op"] or "", match["key"], match["rest"]
    if key in (names := short_names()):
        target = names[key]
        key = target.replace("/", ".") if rest.startswith(".") else target
    dotted, equals, value = (key + rest).partition("=")
    return operator + _quote_text(SHORT_KEYS.get(dotted, dotted), equals + value, sweep)


def _quote_text(key: str, rest: str, sweep: bool) -> str:
    dotted, equals, value = (key + rest).partition("=")
    if not equals or dotted not in TEXT_KEYS or value in ("", "null"):
        return key + rest
    if dotted in _SENTENCES:
        return f"{dotted}={quoted(_without_interpolation(value))}"
    already_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if already_quoted or "${" in value:
        return key + rest
    return f"{dotted}={_swept_text(value) if sweep else quoted(value)}"


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


def _without_interpolation(value: str) -> str:
    """``value`` as OmegaConf text that resolves to exactly ``value``.

    Source: OmegaConf 2.3 grammar: a backslash escapes ``${``, and backslashes before it.
    """
    return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", value)


def quoted(value: str) -> str:
    """``value`` as a Hydra single-quoted string that parses back to exactly ``value``.

    Source: Hydra 1.3 override grammar: inside quotes only the quote itself, and backslashes before it, are escaped.
    """
    body = re.sub(r"(\\*)'", lambda m: m[1] * 2 + "\\'", value)
    trailing = len(body) - len(body.rstrip("\\"))
    return "'" + body + "\\" * trailing + "'"
