"""An answer's text while it is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

_UNFINISHED = "\ufffd"
"""What decoding makes of a character of which only some bytes have come."""


class AnswerStream(BaseStreamer):
    """Hands on the text of one answer, as far as later tokens cannot change it.

    The pieces put together are the answer as it is decoded in the end, without the white space around it.

    Args:
        tokenizer: of the language model.
        on_text: is given each piece as soon as it is there.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids: list[int] = []
        self._sent = ""
        self._has_prompt = False

    def put(self, value: Tensor) -> None:
        """Takes the prompt, which comes first and is passed over, then new tokens.

        Raises:
            ValueError: tokens of several answers.
        """
        if value.dim() > 1 and len(value) > 1:
            raise ValueError(f"One answer can be streamed at a time, not {len(value)}.")
        if not self._has_prompt:
            self._has_prompt = True
            return
        self._ids += value.flatten().tolist()
        self._send(self._text().rstrip(_UNFINISHED).rstrip())

    def end(self) -> None:
        """Hands on what was held back."""
        self._send(self._text())

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True).strip()

    def _send(self, text: str) -> None:
        if len(text) > len(self._sent):
            new, self._sent = text[len(self._sent) :], text
            self._on_text(new)
