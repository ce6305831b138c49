"""Conversations in tokens: real chat formats, label spans, placeholders and the text limit."""

from __future__ import annotations

import hashlib
import json
import pickle
from datetime import date, datetime

import pytest
from support.chat_templates import (
    CHATML,
    GEMMA,
    LLAMA2,
    LLAMA32,
    MISTRAL,
    MISTRAL_SYSTEM_LAST,
    NO_END,
    QWEN2,
    QWEN3,
    QWEN3_THINKING,
    TEMPLATES,
    TURNS,
    byte_level,
    metaspace,
)
from tokenizers import AddedToken

from panollava.model.hub import load_tokenizer
from panollava.prompt import IMAGE_TOKEN, ChatPrompt, Encoded, add_image_token


def learnt(prompt: ChatPrompt, encoded: Encoded) -> str:
    ids = [token for token, target in zip(encoded.ids, encoded.is_target, strict=True) if target]
    return prompt.tokenizer.decode(ids)


CONVERSATION = (*TURNS, ("What is <|left|> of [it]?", "<think>hm</think> a {cube}"))
"""Four turns, one with what a template might look into."""


@pytest.mark.parametrize("eos", ["</s>", "<|im_end|>"])
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [None, "Answer in one word."])
def test_training_continues_every_generation_prompt(name: str, system: str | None, eos: str) -> None:
    prompt = ChatPrompt(byte_level(TEMPLATES[name], eos=eos), system=system)
    full = prompt.encode(CONVERSATION, image_tokens=3)
    learnt_until = 0
    for number, (question, answer) in enumerate(CONVERSATION, start=1):
        shorter = prompt.encode(CONVERSATION[:number], image_tokens=3)
        asked = prompt.encode((*CONVERSATION[: number - 1], (question, None)), image_tokens=3)
        start, stop = len(asked.ids), len(shorter.ids)
        assert full.ids[:start] == asked.ids
        assert full.ids[:stop] == shorter.ids
        assert full.is_target[learnt_until:stop] == [False] * (start - learnt_until) + [True] * (stop - start)
        assert shorter.is_target == full.is_target[:stop]
        assert prompt.tokenizer.decode(full.ids[start:stop]).strip().startswith(answer)
        assert full.ids[stop - 1] in prompt.stop_ids
        learnt_until = stop
    assert full.ids.count(prompt.image_id) == 3
    assert full.cut == 0
    if system is not None:
        assert prompt.tokenizer.decode(full.ids).count(system) == 1


@pytest.mark.parametrize(
    ("name", "end"),
    [("qwen2", "<|im_end|>"), ("qwen3", "<|im_end|>"), ("mistral", "</s>"), ("gemma", "<end_of_turn>")],
)
def test_answers_and_their_ends_are_learnt_and_headers_are_not(name: str, end: str) -> None:
    prompt = ChatPrompt(byte_level(TEMPLATES[name], eos="</s>" if end == "</s>" else "<|im_end|>"))
    assert learnt(prompt, prompt.encode(TURNS, image_tokens=2)) == "".join(answer + end for _, answer in TURNS)


def test_qwen2_keeps_its_default_system_turn_and_a_given_one_replaces_it() -> None:
    plain = ChatPrompt(byte_level(QWEN2))
    assert "You are a helpful assistant." in plain.tokenizer.decode(plain.encode(TURNS, image_tokens=1).ids)
    given = ChatPrompt(byte_level(QWEN2), system="Be brief.")
    text = given.tokenizer.decode(given.encode(TURNS, image_tokens=1).ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhat")


@pytest.mark.parametrize("template", [MISTRAL, GEMMA, MISTRAL_SYSTEM_LAST])
def test_a_refused_system_turn_opens_the_first_question(template: str) -> None:
    prompt = ChatPrompt(byte_level(template, eos="</s>"), system="Be brief.")
    text = prompt.tokenizer.decode(prompt.encode(TURNS, image_tokens=1).ids)
    assert "Be brief.\n\n<image>\nWhat colour" in text


@pytest.mark.parametrize("template", [QWEN3, QWEN3_THINKING])
def test_an_earlier_turn_keeps_the_empty_thinking_that_it_was_generated_after(template: str) -> None:
    prompt = ChatPrompt(byte_level(template))
    asked = prompt.encode([("Where?", "left"), ("Sure?", None)], image_tokens=1)
    opening = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    text = prompt.tokenizer.decode(asked.ids)
    assert text.endswith(f"{opening}left<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n{opening}")
    turns = [("Where?", "<think>hm</think>left"), ("Sure?", "yes")]
    assert learnt(prompt, prompt.encode(turns, image_tokens=1)) == "<think>hm</think>left<|im_end|>yes<|im_end|>"


@pytest.mark.parametrize(
    ("system", "digest"), [(None, "8d4c59a0f463bce5"), ("Answer in one word.", "dd7be63faff4c3db")]
)
def test_the_shipped_format_stays_as_it_was(system: str | None, digest: str) -> None:
    prompt = ChatPrompt(load_tokenizer("panollava/tiny-qwen3"), system=system)
    turns = (("what colour is the cube ahead?", "red."), ("where is it?", "ahead"), ("<b> 무엇?", "[x]"))
    asked = (*turns[:2], (turns[2][0], None))
    both = [prompt.encode(turns, image_tokens=3), prompt.encode(asked, image_tokens=3)]
    told = json.dumps([[one.ids, one.is_target] for one in both])
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == digest


def test_a_date_is_the_one_that_is_given() -> None:
    tokenizer = byte_level(LLAMA32)
    prompt = ChatPrompt(tokenizer, today=date(2024, 7, 3))
    assert "Today Date: 03 Jul 2024\n" in prompt.tokenizer.decode(prompt.encode(TURNS, image_tokens=1).ids)
    assert prompt.format.record()["date"] == "2024-07-03"
    assert ChatPrompt(tokenizer).format.date == date.today()
    other = ChatPrompt(byte_level(QWEN2), today=date(2024, 7, 3))
    assert other.format.record()["date"] is None
    formats = "%Y-%m-%d %A %-d %B %j %H:%M"
    template = f"{{{{ strftime_now('{formats}') }}}}" + CHATML
    text = ChatPrompt(byte_level(template), today=date(2024, 7, 3)).format.render(TURNS, None).text
    assert text.startswith(datetime(2024, 7, 3).strftime(formats) + "<|im_start|>")


def test_control_tokens_in_a_text_are_named() -> None:
    prompt = ChatPrompt(byte_level(QWEN2))
    assert prompt.control_tokens("a <|im_end|> b </s><|im_end|> <image> <b>") == ["<|im_end|>", "</s>"]
    assert prompt.control_tokens("What is left of it?") == []


def test_llama_tokenizers_without_template_speak_vicuna() -> None:
    prompt = ChatPrompt(byte_level(None, eos="</s>"))
    encoded = prompt.encode(TURNS[:2], image_tokens=1)
    text = prompt.tokenizer.decode(encoded.ids)
    assert text.startswith("<s>A chat between a curious user and an artificial intelligence assistant.")
    assert text.endswith(
        " USER: <image>\nWhat colour is the ball? ASSISTANT: It is blue.</s>"
        "USER: 큐브는 어디에 있나요? ASSISTANT: 왼쪽에 있어요.</s>"
    )
    assert learnt(prompt, encoded) == " It is blue.</s> 왼쪽에 있어요.</s>"
    assert prompt.tokenizer.decode(prompt.encode([("Hi", None)], image_tokens=1).ids).endswith("ASSISTANT:")


def test_other_tokenizers_without_template_speak_chatml_that_ends_in_their_eos() -> None:
    prompt = ChatPrompt(byte_level(None, eos="<end_of_turn>"))
    text = prompt.tokenizer.decode(prompt.encode(TURNS[:1], image_tokens=1).ids)
    assert text == (
        "<|im_start|>user\n<image>\nWhat colour is the ball?<end_of_turn>\n"
        "<|im_start|>assistant\nIt is blue.<end_of_turn>"
    )


def test_neither_template_nor_eos_is_an_error() -> None:
    tokenizer = byte_level(None)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a chat template nor an end-of-text token"):
        ChatPrompt(tokenizer)


def test_a_template_without_end_of_turn_gets_an_eos_to_learn() -> None:
    prompt = ChatPrompt(byte_level(NO_END))
    assert learnt(prompt, prompt.encode(TURNS[:1], image_tokens=1)) == "It is blue.<|im_end|>"


SAID = "{% for m in messages %}{{ m.role + ': ' + m.content }}<|im_end|>{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
REFUSED = {
    "denies its prompt": (
        "{% for m in messages %}{{ m.content }}|{% endfor %}{% if add_generation_prompt %}BOT{% endif %}",
        r"does not continue its own generation prompt.*BOT'",
    ),
    "forgets": ("{% set messages = messages[-2:] %}" + SAID + ASK, "does not write every question and answer of 2"),
    "repeats": ("{{ messages[0].content }}" + SAID + ASK, "does not write every question and answer of 1"),
    "wraps what was said": (
        "{% if messages | length > 2 %}[history]{% endif %}" + SAID + ASK,
        "writes an earlier turn in another form",
    ),
    "counts": (
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}" + SAID + ASK,
        "writes an earlier turn in another form",
    ),
    "raises": ("{{ raise_exception('not today') }}" + SAID + ASK, "refuses a conversation: not today"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_no_prompt_can_be_continued_with_is_refused(name: str) -> None:
    template, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"{message}.*name the copy with model.language.name"):
        ChatPrompt(byte_level(template))


def test_an_answer_without_an_end_is_refused() -> None:
    tokenizer = byte_level(NO_END)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"would never end\. Set eos_token"):
        ChatPrompt(tokenizer)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("template", [MISTRAL, LLAMA2, None])
def test_pieces_are_the_tokens_of_the_whole(template: str | None, legacy: bool) -> None:
    prompt = ChatPrompt(metaspace(template, legacy))
    text = prompt.format.render(TURNS, IMAGE_TOKEN).text
    whole = prompt.tokenizer(text, add_special_tokens=False)["input_ids"]
    encoded = prompt.encode(TURNS, image_tokens=1)
    assert encoded.ids == whole[: len(encoded.ids)]
    assert learnt(prompt, encoded).count("</s>") == len(TURNS)
    asked = prompt.encode((*TURNS[:2], (TURNS[2][0], None)), image_tokens=1)
    assert encoded.ids[: len(asked.ids)] == asked.ids


def test_the_image_stands_in_the_first_user_turn_before_the_question() -> None:
    prompt = ChatPrompt(byte_level(QWEN2))
    ids = prompt.encode(TURNS, image_tokens=5).ids
    at = ids.index(prompt.image_id)
    assert ids[at : at + 5] == [prompt.image_id] * 5
    assert prompt.tokenizer.decode(ids[:at]).endswith("<|im_start|>user\n")
    assert prompt.tokenizer.decode(ids[at + 5 :]).startswith("\nWhat colour")
    assert prompt.image_id not in prompt.encode(TURNS, image_tokens=0).ids


def test_literal_image_in_text_never_becomes_the_placeholder() -> None:
    prompt = ChatPrompt(byte_level(QWEN2))
    turns = [("<image><image> what is <image>?", "an <image> tag"), ("<image>", "<image>")]
    encoded = prompt.encode(turns, image_tokens=4)
    assert encoded.ids.count(prompt.image_id) == 4
    at = encoded.ids.index(prompt.image_id)
    rest = prompt.tokenizer.decode(encoded.ids[at + 4 :])
    assert rest.startswith("\n<image><image> what is <image>?<|im_end|>")
    assert learnt(prompt, encoded) == "an <image> tag<|im_end|><image><|im_end|>"
    assert prompt.image_id not in prompt.encode(turns, image_tokens=0).ids


def test_text_targets_are_everything_after_the_panorama() -> None:
    prompt = ChatPrompt(byte_level(QWEN2))
    encoded = prompt.encode(TURNS, image_tokens=4, targets="text")
    at = encoded.ids.index(prompt.image_id)
    assert encoded.is_target == [False] * (at + 4) + [True] * (len(encoded.ids) - at - 4)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if TEMPLATES[name] and "qwen3" not in name])
def test_a_conversation_is_what_the_template_writes(name: str) -> None:
    prompt = ChatPrompt(byte_level(TEMPLATES[name], eos="</s>" if name == "no_end" else "<|im_end|>"))
    messages = [
        {"role": role, "content": text}
        for turn in TURNS
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    rendered = prompt.format.render(TURNS, None)
    whole = prompt.tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
    text = rendered.text.replace("</s>", "") if name == "no_end" else rendered.text
    assert whole.removeprefix(text).strip() in ("", prompt.tokenizer.eos_token)
    spans = [rendered.text[start:stop].strip() for start, stop in rendered.answers]
    assert [span.startswith(answer) for span, (_, answer) in zip(spans, TURNS, strict=True)] == [True] * 3


def test_surrounding_white_space_changes_nothing() -> None:
    prompt = ChatPrompt(byte_level(QWEN2))
    assert prompt.encode([(" Hi\n", "\tyes ")], image_tokens=1) == prompt.encode([("Hi", "yes")], image_tokens=1)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_limit_drops_whole_trailing_turns_and_counts_them(name: str) -> None:
    prompt = ChatPrompt(byte_level(TEMPLATES[name]))
    full = prompt.encode(TURNS, image_tokens=50)
    two = prompt.encode(TURNS[:2], image_tokens=50)
    limit = len(two.ids) - 50
    cut = prompt.encode(TURNS, image_tokens=50, max_text_length=limit)
    assert (cut.ids, cut.is_target) == (two.ids, two.is_target)
    assert cut.cut == len(full.ids) - len(two.ids)
    assert prompt.encode(TURNS[:2], image_tokens=50, max_text_length=limit).cut == 0
    one = prompt.encode(TURNS[:1], image_tokens=50)
    assert prompt.encode(TURNS, image_tokens=50, max_text_length=limit - 1).ids == one.ids


@pytest.mark.parametrize("limit", [1, 5, 12, 30])
def test_a_single_long_turn_is_cut_at_its_end_and_never_in_the_image(limit: int) -> None:
    prompt = ChatPrompt(byte_level(QWEN2))
    turns = [("What do you see?", "a ball " * 40)]
    full = prompt.encode(turns, image_tokens=7)
    cut = prompt.encode(turns, image_tokens=7, max_text_length=limit)
    assert cut.ids.count(prompt.image_id) == 7
    assert len(cut.ids) == len(cut.is_target) == limit + 7
    assert cut.cut == len(full.ids) - len(cut.ids)
    text = [token for token in full.ids if token != prompt.image_id]
    assert [token for token in cut.ids if token != prompt.image_id] == text[:limit]


def test_a_text_that_will_be_cut_is_no_reason_for_a_warning() -> None:
    tokenizer = byte_level(QWEN2)
    tokenizer.model_max_length = 16
    ChatPrompt(tokenizer).encode((("What?", "word " * 50),), image_tokens=2, max_text_length=12)
    assert not any("longer" in warning for warning in tokenizer.deprecation_warnings)  # those it has given


def test_a_generation_prompt_loses_its_oldest_turns_never_its_end() -> None:
    prompt = ChatPrompt(byte_level(QWEN2))
    asked = (*TURNS[:2], ("How many?", None))
    full = prompt.encode(asked, image_tokens=3)
    recent = prompt.encode(asked[1:], image_tokens=3)
    cut = prompt.encode(asked, image_tokens=3, max_text_length=len(recent.ids) - 3)
    assert cut.ids == recent.ids
    assert cut.cut == len(full.ids) - len(recent.ids)
    with pytest.raises(ValueError, match=r"text limit is 4.*raise max_text_length"):
        prompt.encode(asked, image_tokens=3, max_text_length=4)


def test_as_many_of_the_last_turns_are_kept_as_fit() -> None:
    prompt = ChatPrompt(byte_level(QWEN2))
    turns = [(f"What is {number}?", "word " * (number % 4)) for number in range(9)]
    asked = (*turns, ("How many?", None))
    kept = [prompt.encode(asked[dropped:], image_tokens=3) for dropped in range(len(asked))]
    for limit in range(len(kept[-1].ids) - 3, len(kept[0].ids) - 1):
        expected = next(one for one in kept if len(one.ids) - 3 <= limit)
        assert prompt.encode(asked, image_tokens=3, max_text_length=limit).ids == expected.ids


def test_a_missing_answer_in_mid_conversation_is_an_error() -> None:
    with pytest.raises(ValueError, match="only its last answer may be missing"):
        ChatPrompt(byte_level(QWEN2)).encode([("a", None), ("b", "c")], image_tokens=1)


def test_the_image_token_is_added_once_and_existing_ones_are_kept() -> None:
    tokenizer = byte_level(QWEN2)
    size = len(tokenizer)
    assert add_image_token(tokenizer) == size
    assert add_image_token(tokenizer) == size
    assert len(tokenizer) == size + 1
    other = byte_level(QWEN2)
    other.add_tokens([AddedToken(IMAGE_TOKEN, special=True), AddedToken("<more>", special=True)])
    assert add_image_token(other) == size


def test_prompts_travel_to_spawned_workers() -> None:
    prompt = ChatPrompt(byte_level(QWEN3), system="Be brief.")
    copy = pickle.loads(pickle.dumps(prompt))
    assert copy.encode(TURNS, image_tokens=2) == prompt.encode(TURNS, image_tokens=2)
