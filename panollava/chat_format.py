"""Conversation -> text in a language model's own chat format, with the place of each answer in it.

A conversation is rendered once as a whole and once per turn as the prompt that would be generated from; the
turn's answer begins where that prompt ends.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Sequence[tuple[str, str | None]]
"""(question, answer) pairs; the last answer may be None."""

VICUNA_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% else %}{% set system = "
    '"A chat between a curious user and an artificial intelligence assistant. '
    "The assistant gives helpful, detailed, and polite answers to the user's questions.\" %}{% endif %}"
    "{{ system + ' ' }}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}"
    "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' + message.content + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Source: lm-sys/FastChat, fastchat/conversation.py, `vicuna_v1.1`."""

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML whose turns end in the tokenizer's own EOS, the only end mark a foreign language model knows."""

_PROBE: Turns = (("question 1", "answer 1"), ("question 2", "answer 2"))

_PLAIN = re.compile(r"[^<>\[\]{}|\ue000-\uf8ff]+")
"""Texts that no template looks into: those with tags or private-use characters are rendered one by one."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: as the model reads it; it ends with the generation prompt where the last answer is missing.
        answers: (start, stop) characters of each given answer, its end of turn included.
        placeholder: where the placeholder of the panorama begins, None without one.
    """

    text: str
    answers: list[tuple[int, int]]
    placeholder: int | None


@dataclass(frozen=True)
class _Form:
    """A rendered conversation whose texts are still to be filled in."""

    parts: list[str]
    """What stands before, between and after the texts."""
    lengths: list[int]
    """Characters of the marks that stood for the texts."""
    answers: list[tuple[int, int]]
    placeholder: int | None

    def filled(self, texts: list[str]) -> Rendered:
        pieces = [self.parts[0]]
        shifts = [0]
        for text, part, length in zip(texts, self.parts[1:], self.lengths, strict=True):
            pieces += (text, part)
            shifts.append(shifts[-1] + len(text) - length)
        spans = [
            (start + shifts[2 * number + 1], stop + shifts[2 * number + 2])
            for number, (start, stop) in enumerate(self.answers)
        ]
        return Rendered("".join(pieces), spans, self.placeholder)


class ChatFormat:
    """The chat template of a tokenizer, or its family's documented format where it has none.

    Args:
        tokenizer: of the language model.
        system: text of the system turn; None leaves that to the template. Where a template refuses a system
            turn, the text opens the first user turn instead.

    Attributes:
        end: what closes an answer, such as ``<|im_end|>``; may be empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self._name = tokenizer.name_or_path or "this tokenizer"
        self._forms: dict[tuple[int, bool, str | None], _Form] = {}
        self._template = None if tokenizer.chat_template else _family_template(tokenizer)
        self._thinking, self._header, self.end = self._learn_format()
        self._end_pattern = re.compile(r"\s*" + re.escape(self.end.strip()))
        self._system_turn = system is not None and self._accepts_system(system)
        self.render(_PROBE, None)

    def record(self) -> dict[str, str | None]:
        """What prompts depend on beside their texts: the template's SHA-256 and the text of the system turn."""
        template = self._template or self.tokenizer.chat_template
        return {"template": hashlib.sha256(str(template).encode()).hexdigest(), "system": self.system}

    def render(self, turns: Turns, placeholder: str | None) -> Rendered:
        """The conversation as text, `placeholder` opening the first question; its texts are stripped."""
        turns = [(question.strip(), None if answer is None else answer.strip()) for question, answer in turns]
        texts = [text for turn in turns for text in turn if text is not None]
        if not all(_PLAIN.fullmatch(text) for text in texts):
            return self._render(turns, placeholder)
        shape = (len(turns), turns[-1][1] is None, placeholder)
        if shape not in self._forms:
            self._forms[shape] = self._form(*shape)
        return self._forms[shape].filled(texts)

    def _form(self, count: int, generating: bool, placeholder: str | None) -> _Form:
        """What all conversations of `count` turns have in common, so that few need the template."""
        marks = [(f"\ue000question {number}\ue001", f"\ue000answer {number}\ue001") for number in range(count)]
        turns: list[tuple[str, str | None]] = [
            *marks[:-1],
            (marks[-1][0], None if generating else marks[-1][1]),
        ]
        rendered = self._render(turns, placeholder)
        texts = [text for turn in turns for text in turn if text is not None]
        parts = re.split("|".join(map(re.escape, texts)), rendered.text)
        if len(parts) != len(texts) + 1:
            raise ValueError(
                f"The chat template of {self._name} does not write every question and answer exactly once. "
                "Set another tokenizer.chat_template."
            )
        return _Form(parts, [len(text) for text in texts], rendered.answers, rendered.placeholder)

    def _render(self, turns: Turns, placeholder: str | None) -> Rendered:
        written = "".join(text for turn in turns for text in turn if text)
        mark = next(mark for number in count() if (mark := f"\ue000{number}\ue001") not in written)
        opening = f"{mark}\n" if placeholder else ""
        messages = []
        if self._system_turn and self.system is not None:
            messages.append({"role": "system", "content": self.system})
        elif self.system:
            opening = f"{self.system}\n\n{opening}"
        prompts = []
        for number, (question, answer) in enumerate(turns):
            messages.append({"role": "user", "content": opening + question if number == 0 else question})
            prompts.append(len(messages))
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        generating = turns[-1][1] is None
        text = self._prompt(messages, self._thinking) if generating else self._apply(messages)
        spans = []
        for (_, answer), length in zip(turns, prompts, strict=True):
            if answer is not None:
                start = self._answer_start(text, messages[:length])
                spans.append((start, self._answer_stop(text, start, answer)))
        place = text.index(mark) if placeholder else None
        if placeholder:
            shift = len(mark) - len(placeholder)
            text = text.replace(mark, placeholder)
            spans = [(start - shift, stop - shift) for start, stop in spans]
        return Rendered(text, spans, place)

    def _answer_start(self, text: str, asked: list[dict[str, str]]) -> int:
        # Templates with thinking write it (empty, as it is off) before the last answer only: for the earlier
        # ones the other form of the generation prompt is the one that the text continues.
        for thinking in (self._thinking, not self._thinking):
            prompt = self._prompt(asked, thinking)
            if text.startswith(prompt):
                return len(prompt)
        raise ValueError(
            f"The chat template of {self._name} does not continue its own "
            f"generation prompt, so answers cannot be told from their headers. The prompt ends in "
            f"{self._prompt(asked, self._thinking)[-40:]!r}. Set another tokenizer.chat_template."
        )

    def _answer_stop(self, text: str, start: int, answer: str) -> int:
        at = start
        while at < len(text) and text[at].isspace():
            at += 1
        if not text.startswith(answer, at):
            # The template rewrote the answer (moved its thinking, say): it lasts to the next end of turn.
            end = self._end_pattern.search(text, start) if self.end else None
            if end is None:
                raise ValueError(
                    f"The chat template of {self._name} changes the answer "
                    f"{answer[:80]!r} and marks no end of turn. Set another tokenizer.chat_template."
                )
            return end.end()
        at += len(answer)
        end = self._end_pattern.match(text, at) if self.end else None
        return at if end is None else end.end()

    def _prompt(self, messages: list[dict[str, str]], thinking: bool) -> str:
        return self._apply(messages, add_generation_prompt=True, enable_thinking=thinking) + self._header

    def _apply(
        self,
        messages: list[dict[str, str]],
        add_generation_prompt: bool = False,
        enable_thinking: bool = False,
    ) -> str:
        rendered = self.tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
        )
        return str(rendered)

    def _learn_format(self) -> tuple[bool, str, str]:
        """Whether generation prompts need the thinking form, the header they lack, and the end of a turn."""
        answer = "\ue000answer\ue001"
        asked = [{"role": "user", "content": "question"}]
        whole = self._apply([*asked, {"role": "assistant", "content": answer}])
        before, _, after = whole.partition(answer)
        for thinking in (False, True):
            prompt = self._apply(asked, add_generation_prompt=True, enable_thinking=thinking)
            if before.startswith(prompt):
                # Some templates know no generation prompt; white space belongs to the answer's first token.
                rest = before[len(prompt) :]
                return thinking, rest if rest.strip() else "", after.rstrip()
        return False, "", after.rstrip()

    def _accepts_system(self, system: str) -> bool:
        self._system_turn = True
        try:
            text = self._render(_PROBE, None).text
        except (TemplateError, ValueError):  # refusing is how templates say that they know no such turn
            return False
        return system.strip() in text


def _family_template(tokenizer: PreTrainedTokenizerBase) -> str:
    specials = (tokenizer.bos_token, tokenizer.eos_token)
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has neither a chat template nor an end-of-text token: "
            "set tokenizer.chat_template or tokenizer.eos_token."
        )
    if "llama" in type(tokenizer).__name__.lower() or specials == ("<s>", "</s>"):
        return VICUNA_TEMPLATE
    begins_with_bos = tokenizer("").get("input_ids", [])[:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins_with_bos else "") + CHATML_TEMPLATE
