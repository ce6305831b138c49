"""Texts as the words that caption scores count: runs of Unicode letters, or Penn Treebank's, which need Java."""

from __future__ import annotations

import logging
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

from panollava.evaluation.answers import fold

logger = logging.getLogger(__name__)

Words = Literal["ptb", "unicode"]

_SPACELESS = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts that are written without spaces, by the first word of their letters' names: each letter is a word."""


def choose_words(asked: Literal["auto", "ptb", "unicode"]) -> Words:
    """Which tokenisation is used; ``auto``, which older configs have, is ``unicode`` on every machine.

    Raises:
        ValueError: ``ptb`` is asked for and there is no Java.
    """
    if asked == "ptb" and shutil.which("java") is None:
        raise ValueError("words=ptb needs Java, and no java is on the PATH. Install one, or use words=unicode.")
    if asked == "auto":
        logger.info("words=auto, of an older config, is words=unicode.")
    return "ptb" if asked == "ptb" else "unicode"


def split_words(texts: Sequence[str], words: Words) -> list[str]:
    """Each text as its words with a space between, in lower case and without punctuation.

    Args:
        texts: any texts of any language.
        words: ``ptb``, Stanford's tokeniser and the list of punctuation that is left out as pycocoevalcap has them;
            or ``unicode``, runs of letters, digits and the marks on them after ``fold``, where each letter of a script
            without spaces is a word of its own.

    Raises:
        RuntimeError: Java fails.
    """
    return _ptb(texts) if words == "ptb" else [" ".join(_unicode(text)) for text in texts]


def _unicode(text: str) -> list[str]:
    parts: list[str] = []
    after_whole = False
    for char in fold(text):
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


def _ptb(texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    # Whatever else splits lines would shift all that follows.
    lines = [" ".join(text.split()) for text in texts]
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(_jar()), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-charset", "UTF-8"]
    done = subprocess.run(command, input="\n".join([*lines, ""]), capture_output=True, encoding="utf-8", check=False)
    found = done.stdout.split("\n")[:-1]
    if done.returncode != 0 or len(found) != len(lines):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RuntimeError(f"Stanford's tokeniser failed ({reason}). Mend Java, or use words=unicode.")
    left_out = frozenset(PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in left_out) for line in found]


def _jar() -> Path:
    spec = find_spec("pycocoevalcap.tokenizer")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / STANFORD_CORENLP_3_4_1_JAR
