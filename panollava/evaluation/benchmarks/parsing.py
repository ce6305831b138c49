"""What an answer says: the letter of an option, numbers, and a direction. Used by the corrected scores."""

import re
from collections.abc import Mapping, Sequence

NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:\.\d+)?(?![\w.]*\d)")
"""A number that is no part of a word or of a longer number."""

_STATED = re.compile(
    r"\b(?:answer|option|choice)(?:\s+is)?[\s:=(\[*\"'`]*([A-Za-z])(?=[).\]:,;*\"'`!]|\s*$|\s*\n)",
    re.IGNORECASE,
)
# A comma ends it too, unless another letter follows: "D, because", but not "A, B".
_FIRST = re.compile(r"[\s(\[*\"'`]*([A-Za-z])(?:[).\]:*\"'`]|,(?!\s*(?:and\s+|or\s+)?[A-Z]\b)|\s*\n|\s*$)")
_LAST = re.compile(r"[\s(\[*\"'`]*([A-Za-z])[).\]*\"'`\s]*")
_ALONE = re.compile(r"(?<![\w'’])(?<!\bnot )([A-Z])(?![\w'’])")
# A capital that is the article or the pronoun: "A sofa", "I see"; but "A or B" and "A because" name an option.
_WORD = re.compile(r"(?:A|I)(?=\s+(?!(?:or|and|because|since|but|is|as)\b)\w)")


def find_letter(answer: str, options: Sequence[tuple[str, str]]) -> str | None:
    """The letter of the option that an answer names; None where it names none, or several.

    It is, in this order, the letter that the answer states (``The answer is D``), the letter that is its last line, the
    letter it begins with (``B.``, ``(c) behind``), the only capital letter of an option that stands alone and not after
    ``not``, or the letter of the only option whose text occurs as whole words. An option within a longer one that
    occurs does not count.

    Args:
        answer: of the model.
        options: (letter, text) pairs.
    """
    letters = {letter.upper() for letter, _ in options}
    stated = {one.upper() for one in _STATED.findall(answer)} & letters
    if len(stated) == 1:
        return stated.pop()
    for found in (_LAST.fullmatch(answer.strip().rpartition("\n")[2]), _FIRST.match(answer)):
        if not stated and found and found[1].upper() in letters:
            return found[1].upper()
    alone = {one[1] for one in _ALONE.finditer(answer) if not _WORD.match(answer, one.start())} & letters
    if len(alone) == 1:
        return alone.pop()
    return None if alone or stated else find_text(answer, dict(options))


def find_text(answer: str, texts: Mapping[str, str]) -> str | None:
    """The key of the only text that occurs in an answer as whole words, in any case; None for none or several."""
    spans: list[tuple[int, int, str]] = []
    for key, text in texts.items():
        wanted = re.escape(text.strip().rstrip(".").lower())
        if wanted:
            found = re.finditer(rf"(?<![\w-]){wanted}(?![\w-])", answer.lower())
            spans += [(one.start(), one.end(), key) for one in found]
    longest = {
        key
        for start, end, key in spans
        if not any(a <= start and end <= b and b - a > end - start for a, b, _ in spans)
    }
    return longest.pop() if len(longest) == 1 else None


def find_numbers(answer: str) -> list[float]:
    """All numbers of an answer, in its order; a minus may be the typographic one."""
    return [float(one.replace("−", "-")) for one in NUMBER.findall(answer)]


def find_direction(answer: str) -> tuple[float, float] | None:
    """Yaw and pitch that an answer states, in degrees.

    Numbers after the words ``yaw`` or ``azimuth`` and ``pitch`` or ``elevation`` count, in any order; without these
    words an answer with exactly two numbers is (yaw, pitch). Others are None.
    """
    named = [_after(answer, words) for words in ("yaw|azimuth", "pitch|elevation")]
    if named[0] is not None and named[1] is not None:
        return named[0], named[1]
    numbers = find_numbers(answer)
    return (numbers[0], numbers[1]) if len(numbers) == 2 and named == [None, None] else None


def _after(answer: str, words: str) -> float | None:
    """The number that follows one of the words, with at most a unit and signs between."""
    found = re.search(
        rf"(?:{words})(?:_degrees|_deg)?[\"'*\s:=(]*(?:(?:is|of|angle)[\s:=]*)?([-+−]?\d+(?:\.\d+)?)", answer, re.I
    )
    return None if found is None else float(found[1].replace("−", "-"))
