"""Conversations in tokens: real chat formats, label spans, placeholders and the text limit."""

from __future__ import annotations

import pickle

import pytest
from chats import (
    GEMMA,
    LLAMA2,
    MISTRAL,
    MISTRAL_SYSTEM_LAST,
    NO_END,
    QWEN2,
    QWEN3,
    TEMPLATES,
    TURNS,
    byte_level,
    metaspace,
)
from tokenizers import AddedToken

from panollava.prompt import IMAGE_TOKEN, ChatPrompt, Encoded, add_image_token


def learnt(prompt: ChatPrompt, encoded: Encoded) -> str:
    ids = [token for token, target in zip(encoded.ids, encoded.is_target, strict=True) if target]
    return prompt.tokenizer.decode(ids)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [None, "Answer in one word."])
def test_training_continues_every_generation_prompt(name: str, system: str | None) -> None:
    prompt = ChatPrompt(byte_level(TEMPLATES[name]), system=system)
    full = prompt.encode(TURNS, image_tokens=3)
    for number in range(1, len(TURNS) + 1):
        shorter = prompt.encode(TURNS[:number], image_tokens=3)
        asked = prompt.encode((*TURNS[: number - 1], (TURNS[number - 1][0], None)), image_tokens=3)
        assert shorter.ids[: len(asked.ids)] == asked.ids
        assert all(shorter.is_target[len(asked.ids) :])
        assert prompt.tokenizer.decode(shorter.ids[len(asked.ids) :]).strip().startswith(TURNS[number - 1][1])
        assert shorter.ids[-1] in prompt.stop_ids
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


def test_qwen3_generates_with_thinking_off_and_drops_thinking_of_earlier_answers() -> None:
    prompt = ChatPrompt(byte_level(QWEN3))
    asked = prompt.encode([("Where?", None)], image_tokens=1)
    assert prompt.tokenizer.decode(asked.ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    turns = [("Where?", "<think>hm</think>left"), ("Sure?", "yes")]
    assert learnt(prompt, prompt.encode(turns, image_tokens=1)) == "left<|im_end|>yes<|im_end|>"


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


def test_a_template_that_denies_its_own_prompt_is_refused() -> None:
    template = "{% for m in messages %}{{ m.content }}|{% endfor %}{% if add_generation_prompt %}BOT{% endif %}"
    with pytest.raises(ValueError, match=r"does not continue its own generation prompt.*BOT'"):
        ChatPrompt(byte_level(template))


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


@pytest.mark.parametrize("name", [name for name in TEMPLATES if TEMPLATES[name]])
def test_texts_filled_into_a_known_form_are_what_the_template_writes(name: str) -> None:
    prompt = ChatPrompt(byte_level(TEMPLATES[name]))
    messages = [
        {"role": role, "content": text}
        for turn in TURNS
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    rendered = prompt.format.render(TURNS, None)
    assert rendered.text == prompt.tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
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
