"""How texts are compared: their usual spelling, and the words that caption scores count."""

import logging
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pycocoevalcap.tokenizer import ptbtokenizer

logger = logging.getLogger(__name__)
Words = Literal["ptb", "unicode"]
FINAL_PUNCTUATION = ".,!?;:。、।؟۔،؛…"
LEADING_ARTICLE = re.compile(r"^(?:a|an|the) ")
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\U000e0000-\U000e0fff]"
)
"""Characters without a glyph (Unicode's Default_Ignorable_Code_Point)."""
ALIKE = str.maketrans(
    dict.fromkeys("‘’‚‛ʼʹ′´`＇", "'")
    | dict.fromkeys("“”„‟″＂", '"')
    | dict.fromkeys("‐‑‒–—―−﹘﹣－", "-")
    | {"⁄": "/", "∕": "/", "˚": "°", "〜": "~"}
)
"""Characters that people type for each other."""
OTHER_MEANING = ("<super>", "<sub>", "<circle>", "<fraction>")  # forms with a meaning of their own: 10² is not 102
_SPACELESS = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts without spaces, by the first word of their letters' Unicode names: each letter is a word."""


def fold(text: str) -> str:
    """The text in lower case, with every character in its usual form.

    Full-width and half-width forms, ligatures, presentation forms, quotation marks, dashes and decomposed letters
    become the usual characters; invisible ones are removed. Superscripts, subscripts, fractions, numbers in circles, in
    brackets or combined with a unit, and the letters of the Hangul compatibility block stay.

    Source: Unicode Standard Annex 15, Unicode Normalization Forms, table 1 (kinds of compatibility forms).
    """
    visible = INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    return unicodedata.normalize("NFC", visible.translate(_USUAL).casefold().translate(_USUAL))


class _Table(dict[int, str]):
    """What ``str.translate`` replaces characters by: the function's values, computed once a character."""

    def __init__(self, function: Callable[[str], str]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, code: int) -> str:
        found = self[code] = self._function(chr(code))
        return found


def _usual(char: str) -> str:
    if (alike := char.translate(ALIKE)) != char:
        return alike
    form, *codes = unicodedata.decomposition(char).split() or [""]
    if not form.startswith("<") or form in OTHER_MEANING or "\u3130" <= char <= "\u318f":
        return char
    parts = [chr(int(code, 16)) for code in codes]
    if len(parts) > 1 and (parts[0] == " " or any(part.isdecimal() for part in parts)):
        return char  # an accent by itself; a number in brackets, with a full stop, or of a day or an hour
    return "".join(_usual(part) for part in parts)


_USUAL = _Table(_usual)


def normalise(text: str) -> str:
    """A text as exact match compares it.

    In this order: ``fold``, runs of white space as one space, no punctuation at the end, no leading "a", "an" or "the".
    A text of punctuation alone keeps its characters.
    """
    spaced = " ".join(fold(text).split())
    bare = spaced.rstrip(FINAL_PUNCTUATION + " ") or spaced
    return LEADING_ARTICLE.sub("", bare)


def choose_words(asked: Literal["auto", "ptb", "unicode"]) -> Words:
    """How caption scores split texts; ``auto``, of older configs, is ``unicode``. ValueError: ``ptb`` needs Java."""
    if asked == "ptb" and shutil.which("java") is None:
        raise ValueError("words=ptb needs Java, and no java is on the PATH. Install one, or use words=unicode.")
    if asked == "auto":
        logger.info("words=auto, of an older config, is words=unicode.")
    return "ptb" if asked == "ptb" else "unicode"


def split_words(texts: Sequence[str], words: Words) -> list[str]:
    """Each text as its words, separated by spaces, in lower case and without punctuation.

    ``ptb`` is Stanford's tokeniser without pycocoevalcap's list of punctuation (RuntimeError where Java fails);
    ``unicode`` are runs of letters, digits and their combining marks after ``fold``, where each letter of a script
    without spaces is a word.
    """
    return _ptb(texts) if words == "ptb" else [" ".join(_unicode(text)) for text in texts]


def _unicode(text: str) -> list[str]:
    folded = fold(text)
    if not any(_kind(char)[1] for char in set(folded)):
        return folded.translate(_SPACED).split()
    parts: list[str] = []
    after_whole = False
    for char in folded:
        kind, is_whole = _kind(char)
        if kind not in "LMN":
            parts.append(" ")
        else:
            # A mark belongs to the letter before it.
            parts.append(f" {char}" if is_whole or (after_whole and kind != "M") else char)
        after_whole = is_whole or (after_whole and kind == "M")
    return "".join(parts).split()


@lru_cache(maxsize=65_536)
def _kind(char: str) -> tuple[str, bool]:
    """The first letter of a character's Unicode category, and whether it is a word by itself."""
    kind = unicodedata.category(char)[0]
    return kind, kind == "L" and unicodedata.name(char, "").startswith(_SPACELESS)


_SPACED = _Table(lambda char: char if _kind(char)[0] in "LMN" else " ")


def _ptb(texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    # The tokeniser reads a text a line: other line separators would shift all later texts.
    lines = [" ".join(text.split()) for text in texts]
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-charset", "UTF-8"]
    done = subprocess.run(command, input="\n".join([*lines, ""]), capture_output=True, encoding="utf-8", check=False)
    found = done.stdout.split("\n")[:-1]
    if done.returncode != 0 or len(found) != len(lines):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RuntimeError(f"Stanford's tokeniser failed ({reason}). Repair Java, or use words=unicode.")
    left_out = frozenset(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in left_out) for line in found]
