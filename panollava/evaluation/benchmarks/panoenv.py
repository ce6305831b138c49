"""PanoEnv-QA: questions about rendered surroundings, whose answers are compared by a method that each item names.

An answer is correct where its reward is at least .99. Of the methods only ``yes_no`` is known by name, and the rewards
are not stated; ``reward`` has the nearest rule.
"""

import math
import re
from pathlib import Path
from typing import Any, ClassVar

from panollava.data.csv import drop_placeholders
from panollava.evaluation.benchmarks.files import field, picture_file, read_objects
from panollava.evaluation.benchmarks.parsing import find_letter, find_numbers, find_text
from panollava.evaluation.benchmarks.protocol import Benchmark, Item, Mark
from panollava.evaluation.words import normalise

LEAST_REWARD = 0.99
YES_NO = "yes_no"
_TAG = re.compile(r"<Answer>(.*?)</Answer>", re.DOTALL)
_ANY_TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
_OPTION = re.compile(r"(?m)^\s*\(?([A-H])[.):]\s*(\S.*?)\s*$")
_YES, _NO = re.compile(r"\b(?:yes|true)\b"), re.compile(r"\b(?:no|false|not (?:true|correct))\b")


class PanoEnv(Benchmark):
    """Reads the JSON Lines and scores the answers; see the module."""

    name: ClassVar[str] = "panoenv"
    patterns: ClassVar[tuple[str, ...]] = ("test.jsonl", "*test*.jsonl", "*.jsonl")
    new_tokens: ClassVar[int] = 512  # the reasoning comes before the answer

    def items(self, path: Path, images: Path | None) -> list[Item]:
        """The items, named by their line; pictures are below `images` or the folder of the file."""
        (file,) = self.files(path)
        return [_item(file, place, row, images or file.parent) for place, row in read_objects(file)]

    def released_mark(self, item: Item, answer: str) -> Mark:
        """Whether an answer has a reward of ``LEAST_REWARD`` or more."""
        text = released_text(answer)
        value = reward(text, item.references[0], item.method)
        return Mark({"accuracy": float(value >= LEAST_REWARD)}, text != "")

    def corrected_mark(self, item: Item, answer: str) -> Mark:
        """Whether an answer is right, with yes, no, numbers and letters found in whole sentences."""
        said = corrected_answer(answer, item)
        right = said is not None and _is_same(said, item.references[0])
        return Mark({"accuracy": float(right)}, said is not None)


def released_text(answer: str) -> str:
    """What the released rule compares: the text of the first ``<Answer>``, or the whole answer without the tag."""
    found = _TAG.search(answer)
    return (found[1] if found else answer).strip()


def reward(text: str, expected: str, method: str) -> float:
    """The reward of an answer, from 0 to 1.

    With ``yes_no``, and for other methods where the expected answer is no number, it is 1 for the same text in any case
    and else 0. For a number it is 1 less the relative error, so that .99 asks for one per cent; a sentence is none.
    Rewards other than that of ``yes_no`` are not stated by the authors.
    """
    wanted = _number(expected)
    if method == YES_NO or wanted is None:
        return float(text.lower() == expected.strip().lower())
    said = _number(text)
    if said is None:
        return 0.0
    return max(0.0, 1 - abs(said - wanted) / abs(wanted)) if wanted else float(said == 0)


def corrected_answer(answer: str, item: Item) -> str | None:
    """What an answer says to an item; None where it says nothing, or several things.

    The last ``<Answer>`` counts, also one that is not closed or of another case, else the whole text.
    """
    tags = _ANY_TAG.findall(answer)
    text, expected = (tags[-1] if tags else answer).strip(), item.references[0]
    if item.method == YES_NO:
        return _yes_no(text)
    if item.options:
        letter = find_letter(text, item.options)
        is_letter = expected.strip().upper() in dict(item.options)
        return letter if is_letter or letter is None else dict(item.options)[letter]
    if _number(expected) is not None:
        numbers = find_numbers(text)
        return repr(numbers[0]) if len(numbers) == 1 else None
    if not normalise(text):
        return None
    return expected if find_text(text, {"": expected}) is not None else text


def _is_same(said: str, expected: str) -> bool:
    """Equal texts or, of numbers, at most one per cent apart."""
    wanted, number = _number(expected), _number(said)
    if wanted is not None and number is not None:
        return reward(said, expected, "") >= LEAST_REWARD
    usual = _yes_no(expected.strip()) if said in ("yes", "no") else None
    return normalise(said) == normalise(usual or expected)


def _yes_no(text: str) -> str | None:
    """Yes or no: the first word if it is one, else the only one that occurs."""
    text = text.lower()
    first = re.match(r"\W*(yes|true|no|false)\b", text)
    if first:
        return "yes" if first[1] in ("yes", "true") else "no"
    denied = _NO.search(text) is not None
    affirmed = _YES.search(re.sub(r"\bnot true\b", "", text)) is not None
    return None if denied == affirmed else "no" if denied else "yes"


def _number(text: str) -> float | None:
    try:
        found = float(text.strip())
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _item(path: Path, place: str, row: dict[str, Any], folder: Path) -> Item:
    said = field(path, place, row, "conversations", list)
    asked = [one["value"] for one in said if isinstance(one, dict) and one.get("from") == "human" and "value" in one]
    if len(asked) != 1 or not isinstance(asked[0], str):
        raise ValueError(f"{path}, {place}, key conversations: {len(asked)} turns of human. Give one, with a text.")
    question, _ = drop_placeholders(asked[0])
    keys = ("image", "question_type", "accu_reward_method", "expected_answer")
    image, kind, method, expected = (field(path, place, row, key) for key in keys)
    if not expected.strip():
        raise ValueError(f"{path}, {place}, key expected_answer: it is empty. Give the right answer.")
    id = place.split()[-1]
    picture = picture_file(folder, image)
    options = tuple(_OPTION.findall(question))
    return Item(id, image, picture, question, question, (expected,), id, kind, options, method)
