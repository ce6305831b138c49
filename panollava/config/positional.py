"""Words without a key: which words of a command line they are, and the keys that they stand for by their order."""

import os
import re
from collections.abc import Callable, Sequence

SENTENCES = frozenset({"question"})
"""Text keys whose values nobody quotes for Hydra, sweeps or interpolates: quotes and ``${`` are part of the text."""

_KEYED = re.compile(r"(?:(?:\+\+?)?(?P<key>[A-Za-z_][\w./-]*(?:@[\w.:]*)?)=.*|~[A-Za-z_].*)", re.DOTALL)


def separate(
    arguments: Sequence[str], positional: Sequence[str], is_key: Callable[[str], bool]
) -> tuple[list[str], list[tuple[str, str]]]:
    """The arguments that have a key, and the others as pairs of key and value.

    Args:
        arguments: overrides, in the order in which they were typed.
        positional: keys of words without one, in order. The last may end in ``[]`` and then takes all that are left,
            as in ``compare runs/a runs/b``.
        is_key: whether the command, or another tool, has a key of this name; asked only where a text may stand.

    Raises:
        ValueError: there are too many words, or one has a key that is given as well.
    """
    keyed: list[str] = []
    words: list[str] = []
    for argument in arguments:
        (keyed if _has_key(argument, _place(positional, len(words)), is_key) else words).append(argument)
    if words and not positional:
        raise ValueError(
            f"{words[0]!r} has no key. An argument is key=value (see --help), in quotes where there are spaces in it."
        )
    if len(words) > len(positional) and not positional[-1].endswith("[]"):
        is_text = positional[-1] in SENTENCES
        raise ValueError(
            f"{_shown(words[len(positional)])} is one word too many: without a key, {_meanings(positional)}. "
            + ("Put a text of several words in quotes" if is_text else "Put a path with spaces in quotes")
            + "; anything else is key=value (see --help)."
        )
    pairs = [(_place(positional, index), word) for index, word in enumerate(words)]
    for key, word in pairs:
        twice = next((one for one in keyed if one.lstrip("+").partition("=")[0] == key.removesuffix("[]")), None)
        if twice is not None:
            raise ValueError(
                f"{key.removesuffix('[]')} is given twice: {_shown(word)} and {twice}. Give it once; without a key, "
                f"{_meanings(positional)}."
            )
    return keyed, pairs


def _place(positional: Sequence[str], index: int) -> str:
    """The key that the next word without one stands for; empty where there is none."""
    if index < len(positional):
        return positional[index]
    return positional[-1] if positional and positional[-1].endswith("[]") else ""


def _has_key(argument: str, place: str, is_key: Callable[[str], bool]) -> bool:
    match = _KEYED.fullmatch(argument)
    if place in SENTENCES:  # "is a=b?" is a question
        return match is not None and (match["key"] is None or argument.startswith("+") or is_key(match["key"]))
    if place and not argument.startswith(("+", "~")) and os.path.exists(argument):
        return False  # seed=1.csv may be the name of a file
    return match is not None or argument.startswith(("+", "~")) or (not place and "=" in argument)


def _meanings(positional: Sequence[str]) -> str:
    """What words without a key are, such as "the first is checkpoint and the second image"."""
    if positional[-1].endswith("[]"):
        return f"all words are {positional[-1].removesuffix('[]')}"
    ordinals = ("first", "second", "third", "fourth")
    found = [f"the {ordinal} is {key}" for ordinal, key in zip(ordinals, positional, strict=False)]
    return " and ".join(filter(None, [", ".join(found[:-1]), found[-1]]))


def _shown(word: str) -> str:
    return repr(word if len(word) <= 60 else f"{word[:59]}…")
