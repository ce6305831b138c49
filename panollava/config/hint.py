"""Finds misspelt keys on the command line before Hydra does, to say which key was meant."""

from __future__ import annotations

from collections.abc import Collection

from panollava.component import meant
from panollava.config.canonical import SHORT_KEYS
from panollava.config.command_line import CommandLine, known_keys


def check_keys(line: CommandLine) -> set[str]:
    """Whether the configs of a command line, one or those of a sweep's jobs, have the keys that it changes.

    Returns:
        Keys that every job has and the config without what is swept has not: those of a swept group's options.

    Raises:
        ValueError: about the first key that is wrong.
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
            raise ValueError(_unknown(key, set().union(*variants.values())))
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
    """Whether every group keeps an option; Hydra composes nothing of a line that takes one away.

    Raises:
        ValueError: about the first that does not.
    """
    for override in line.parsed:
        if line.is_group(override) and (override.is_delete() or override.value() in (None, "")):
            options = ", ".join(line.options(override.key_or_group))
            raise ValueError(f"{override.input_line}: a group always has an option. Choose one of {options}.")


def _unknown(key: str, known: Collection[str]) -> str:
    section = key.rpartition(".")[0]
    same = [other for other in known if other.endswith(f".{key}")]
    is_clear = len(same) == 1 and same[0].partition(".")[2] == key  # without its section, as in overlap=0
    spellings = {short: full for short, full in SHORT_KEYS.items() if full in known}
    close = meant(key, [*known, *spellings]) or (same[0] if is_clear else None)
    siblings = sorted(k for k in known if k.rpartition(".")[0] == section) or sorted(k for k in known if "." not in k)
    hint = f" Did you mean {spellings.get(close, close)}?" if close else ""
    return f"{key} is not a key of this config.{hint} There are: {', '.join(siblings)}."
