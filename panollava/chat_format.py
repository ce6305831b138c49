"""Conversation -> text in a language model's own chat format, with the position of each answer in it.

A conversation is built turn by turn: the prompt of a turn is all text so far, as it was generated, and what the
template writes around the next question. Training and generation use the same text by construction, also with
templates that write earlier turns in another form than the last one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from itertools import takewhile
from typing import TYPE_CHECKING

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Sequence[tuple[str, str | None]]  # (question, answer) pairs; the last answer may be None

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
"""ChatML whose turns end in the tokenizer's own EOS, the only end mark that a model without a template knows."""

_TEMPLATE_OF_TURNS = (
    "{%- for message in messages -%}"
    "{%- if message.content is string -%}{%- set text = message.content -%}{%- else -%}"
    "{%- set text = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') -%}"
    "{%- endif -%}"
    "{%- if message.role == 'user' -%}"
    "{{- FIRST if loop.first else LATER -}}"
    "{%- if message.content is not string -%}"
    "{%- set pictures = message.content | selectattr('type', 'equalto', 'image') | list -%}"
    "{%- for picture in pictures -%}{{- IMAGE -}}{%- endfor -%}{%- if pictures -%}{{- '\\n' -}}{%- endif -%}"
    "{%- endif -%}"
    "{{- (text | trim) + AFTER -}}"
    "{%- elif message.role == 'assistant' -%}{{- LEAD + (text | trim) + END -}}"
    "{%- else -%}{{- raise_exception('Only user and assistant take turns. A system text is part of this template.') -}}"
    "{%- endif -%}{%- endfor -%}"
)
"""The template of ``ChatFormat.as_template``, with names in place of the format's texts."""
_PROBED_TURNS = 3  # turns with which a template is checked before anything is trained
_TWO_DATES = (date(2001, 2, 3), date(2012, 11, 10))
"""Days that differ in year, month and day: text that a template writes on both contains no date."""
_DIRECTIVES = ("-d", "-m", *"aAbBcdDeFGhHIjmMpSuUVwWxXyYzZ")  # of ``strftime``, those that a template may use
_WAY_OUT = (
    "Copy the model's folder, write another chat_template.jinja in it, and name the copy with model.language.name."
)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    text: str  # up to the end of the last answer, or of the generation prompt where the last answer is missing
    answers: list[tuple[int, int]]  # (start, stop) characters of each given answer, its end of turn included
    placeholder: int | None  # position of the panorama's placeholder, None without one


class ChatFormat:
    """The chat template of a tokenizer, or its family's documented format where it has none.

    Args:
        system: text of the system turn; None leaves that to the template. Where a template refuses a system
            turn, the text opens the first user turn instead.
        today: the date in prompts where the template writes one; None is the current date.

    Attributes:
        end: text that ends an answer, such as ``<|im_end|>``; the tokenizer's EOS where a generation could not stop.
        date: the date in prompts; None where the template writes none.

    Raises:
        ValueError: the template does not separate answers from their headers, or a conversation cannot continue the
            prompts that it writes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None, today: date | None = None) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self._name = tokenizer.name_or_path or "this tokenizer"
        self._template = tokenizer.get_chat_template() if tokenizer.chat_template else _family_template(tokenizer)
        self.date: date | None = None
        self._turns: list[tuple[str, str]] = []
        self._system_turn = False
        self._thinking, self._header, self._lead, self.end = self._learn_format()
        self._system_turn = system is not None and self._accepts_system(system)
        self.date = (today or date.today()) if self._writes_date() else None
        self._turn(_PROBED_TURNS - 1)

    def record(self) -> dict[str, str | None]:
        """What prompts depend on beside their texts: the template's SHA-256, the system text and the date."""
        return {
            "template": hashlib.sha256(self._template.encode()).hexdigest(),
            "system": self.system,
            "date": None if self.date is None else self.date.isoformat(),
        }

    def written(self) -> dict[str, str | None]:
        """The system text and the date; a format that is built with them writes the same text."""
        return {key: value for key, value in self.record().items() if key != "template"}

    def render(self, turns: Turns, placeholder: str | None) -> Rendered:
        """The conversation as text, `placeholder` before the first question; questions and answers are stripped."""
        text, place, spans = "", None, []
        for number, (question, answer) in enumerate(turns):
            before, after = self._turn(number)
            text += before
            if number == 0 and placeholder:
                place = len(text)
                text += f"{placeholder}\n"
            text += question.strip() + after
            if answer is not None:
                start = len(text)
                text += self._lead + answer.strip() + self.end
                spans.append((start, len(text)))
        return Rendered(text, spans, place)

    def as_template(self, placeholder: str) -> str:
        """A chat template that writes the text of ``render``, for tools that know no more of a format.

        Contents of messages are texts or lists of parts; each part of type ``image`` becomes one ``placeholder``,
        before the question. The system text and the date are part of the template.

        Raises:
            ValueError: the format numbers its turns, or writes a later one in another form.
        """
        (first, after), later, last = (self._turn(number) for number in range(_PROBED_TURNS))
        if not after == later[1] == last[1] or later != last:
            raise ValueError(
                f"The chat template of {self._name} writes turns in different forms: {(first, after)!r}, {later!r} and "
                f"{last!r}. {_WAY_OUT}"
            )
        words = {
            "FIRST": first, "LATER": later[0], "AFTER": after, "LEAD": self._lead, "END": self.end, "IMAGE": placeholder
        }  # fmt: skip
        return re.sub(
            "|".join(words), lambda found: json.dumps(words[found[0]], ensure_ascii=False), _TEMPLATE_OF_TURNS
        )

    def _turn(self, number: int) -> tuple[str, str]:
        """The text between the end of the turn before and a turn's question, and between question and answer."""
        while len(self._turns) <= number:
            self._turns.append(self._learn_turn(len(self._turns)))
        return self._turns[number]

    def _learn_turn(self, number: int) -> tuple[str, str]:
        """Finds a turn in the prompt that the template writes for it, which must continue the earlier prompts."""
        texts = [f"\ue000{who} {turn}\ue001" for turn in range(number + 1) for who in ("question", "answer")][:-1]
        prompt = self._prompt(self._messages(texts), self._thinking)
        pattern = "|".join(map(re.escape, texts))
        if re.findall(pattern, prompt) != texts:
            raise ValueError(
                f"The chat template of {self._name} does not write every question and answer of {number + 1} turns "
                f"exactly once and in order. {_WAY_OUT}"
            )
        parts = re.split(pattern, prompt)
        befores = [parts[0], *(re.sub(rf"^\s*{re.escape(self.end.strip())}", "", part) for part in parts[2::2])]
        for (before, after), now, header in zip(self._turns, befores, parts[1::2], strict=False):
            # Only the text between a question and its answer may change once the turn is over: it holds the thinking,
            # which templates drop. The text that was generated from stays as it was.
            if before != now or not (after.startswith(header.rstrip()) or header.startswith(after.rstrip())):
                raise ValueError(
                    f"The chat template of {self._name} writes an earlier turn in another form than it had as "
                    f"the last one: {before!r} and {after!r} became {now!r} and {header!r}. {_WAY_OUT}"
                )
        return befores[-1], parts[-1]

    def _messages(self, texts: Sequence[str]) -> list[dict[str, str]]:
        """Alternating questions and answers as messages, with the system text where it belongs."""
        messages = [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)]
        if self._system_turn and self.system is not None:
            return [{"role": "system", "content": self.system}, *messages]
        if self.system:
            messages[0]["content"] = f"{self.system}\n\n{texts[0]}"
        return messages

    def _prompt(self, messages: list[dict[str, str]], thinking: bool) -> str:
        return self._apply(messages, add_generation_prompt=True, enable_thinking=thinking) + self._header

    def _apply(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = False, enable_thinking: bool = False
    ) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                chat_template=_dated(self._template, self.date or _TWO_DATES[0]),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=enable_thinking,
            )
        except TemplateError as error:
            raise ValueError(
                f"The chat template of {self._name} refuses a conversation: {error}. {_WAY_OUT}"
            ) from error
        return str(rendered)

    def _learn_format(self) -> tuple[bool, str, str, str]:
        """Whether prompts enable thinking, the header they lack, the space before an answer, and the answer's end."""
        answer, later = "\ue000answer\ue001", "\ue000later\ue001"
        asked = [{"role": "user", "content": "question"}]
        answered = [*asked, {"role": "assistant", "content": answer}]
        before, _, last = self._apply(answered).partition(answer)
        for thinking in (False, True):
            prompt = self._apply(asked, add_generation_prompt=True, enable_thinking=thinking)
            if before.startswith(prompt):
                # Some templates have no generation prompt; white space belongs to the answer's first token.
                rest = before[len(prompt) :]
                header, lead = (rest, "") if rest.strip() else ("", rest)
                goes_on = self._apply([*answered, {"role": "user", "content": later}], add_generation_prompt=True)
                return thinking, header, lead, self._end_of_turn(last, goes_on.partition(answer)[2].split(later)[0])
        raise ValueError(
            f"The chat template of {self._name} does not continue its own generation prompt, so no answer can be cut "
            f"from its header. The prompt ends in {prompt[-40:]!r}. {_WAY_OUT}"
        )

    def _end_of_turn(self, last: str, earlier: str) -> str:
        """The common start of the texts after the last answer and after an earlier one; else the text after the last.

        The EOS is appended where a generation could not stop at it.
        """
        common = "".join(char for char, _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, earlier)))  # noqa: B905
        tokens = "|".join(map(re.escape, sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True))) or "(?!)"
        for token in re.finditer(tokens, last):
            if token.start() < len(common) < token.end():
                common = common[: token.start()]
        end = common.rstrip() or last.rstrip()
        ids = self.tokenizer(end.strip(), add_special_tokens=False)["input_ids"]
        if len(ids) == 1 or (ids and ids[0] in self.tokenizer.added_tokens_decoder):
            return end
        if self.tokenizer.eos_token is None:
            raise ValueError(
                f"The chat template of {self._name} ends an answer with {end!r}, which is no single token, and its "
                "tokenizer has no end-of-text token: an answer would never end. Set eos_token in its "
                "tokenizer_config.json."
            )
        return f"{end}{self.tokenizer.eos_token}"

    def _accepts_system(self, system: str) -> bool:
        self._system_turn = True
        try:
            self._turn(_PROBED_TURNS - 1)
            return system.strip() in self._turns[0][0]
        except ValueError:  # templates without a system turn raise
            return False
        finally:
            self._turns = []

    def _writes_date(self) -> bool:
        written = set()
        for self.date in _TWO_DATES:
            written.add(self._prompt(self._messages(["question"]), self._thinking))
        return len(written) == 2


def _dated(template: str, day: date) -> str:
    """A template that writes a fixed date; transformers' own ``strftime_now`` gives that of each call."""
    if "strftime_now" not in template:
        return template
    midnight = datetime.combine(day, time())
    written = "".join(f"|replace('%{each}', {midnight.strftime(f'%{each}')!r})" for each in _DIRECTIVES)
    return f"{{% macro strftime_now(form) %}}{{{{ form{written} }}}}{{% endmacro +%}}{template}"


def _family_template(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has neither a chat template nor an end-of-text token: "
            "set tokenizer.chat_template or tokenizer.eos_token."
        )
    if "llama" in type(tokenizer).__name__.lower() or (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>"):
        return VICUNA_TEMPLATE
    begins_with_bos = tokenizer("").get("input_ids", [])[:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins_with_bos else "") + CHATML_TEMPLATE
