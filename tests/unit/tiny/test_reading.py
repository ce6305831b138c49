"""Reading material of the miniature language model: the product's own chat format, and true soft tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from experiments.tiny.reading import NO_WORD, WORDS_PER_TOKEN, Reader, conversation, crops, embed, question_turns
from experiments.tiny.tokenizer import make_tokenizer, world_words
from panollava.data.scenes.questions import KINDS, ask_all
from panollava.data.scenes.scene import SECTORS, Solid, scene_at
from panollava.prompt import ChatPrompt


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer(scenes=60)


def test_every_word_of_the_world_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    for word in world_words():
        for text in (word, f" {word}"):
            assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1


@pytest.mark.parametrize("text", ["파노라마의 왼쪽에 무엇이 있나요?", "naïve\tcafé\n 360°", "<b>&amp;</b>"])
def test_any_text_survives_the_round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_sequences_are_what_the_prompt_gives(tokenizer: PreTrainedTokenizerBase) -> None:
    reader, prompt = Reader(tokenizer), ChatPrompt(tokenizer)
    rng = np.random.default_rng(0)
    for index in range(5):
        turns = conversation(scene_at(0, "backbones", index), rng, 4)
        ours = reader.sequence([], np.full((9, WORDS_PER_TOKEN), NO_WORD), turns)
        theirs = prompt.encode(turns, image_tokens=9)
        ids = [prompt.image_id if token == NO_WORD else token for token in ours.ids]
        # Training also sees the line break after the last answer, which no prompt ends in.
        assert ids[:-1] == theirs.ids
        assert [weight == 1 for weight in ours.weights[:-1]] == theirs.is_target


def test_prompts_are_what_the_prompt_gives(tokenizer: PreTrainedTokenizerBase) -> None:
    reader, prompt = Reader(tokenizer), ChatPrompt(tokenizer)
    for asked in ask_all(scene_at(0, "backbones", 0), KINDS, np.random.default_rng(0)):
        ours = reader.sequence([], np.full((3, WORDS_PER_TOKEN), NO_WORD), question_turns(asked))
        theirs = prompt.encode(question_turns(asked), image_tokens=3)
        assert [prompt.image_id if token == NO_WORD else token for token in ours.ids] == theirs.ids


@pytest.mark.parametrize("crop", range(4))
def test_soft_tokens_describe_every_thing(tokenizer: PreTrainedTokenizerBase, crop: int) -> None:
    reader, cameras = Reader(tokenizer), crops()[crop]
    for index in range(10):
        scene = scene_at(0, "backbones", index)
        soft = reader.view_soft(scene, np.random.default_rng(index), cameras)
        assert soft.shape == (16 * len(cameras), WORDS_PER_TOKEN)
        rows = {tuple(row[row != NO_WORD].tolist()) for row in soft}
        assert all(tuple(reader.thing_words(thing)) in rows for thing in scene.things)


def test_a_written_scene_names_everything(tokenizer: PreTrainedTokenizerBase) -> None:
    reader, scene = Reader(tokenizer), scene_at(0, "backbones", 2)
    text = tokenizer.decode(reader.written(scene, np.random.default_rng(0)))
    for thing in scene.things:
        assert f"a {thing.name}" in text
        assert (SECTORS[thing.sector] if isinstance(thing, Solid) else thing.pole) in text


def test_a_soft_token_is_the_sum_of_its_words() -> None:
    embedding = nn.Embedding(10, 4)
    soft = torch.tensor([[[3, 5, NO_WORD], [NO_WORD, NO_WORD, NO_WORD]]])
    tokens = embed(embedding, soft, torch.zeros(1, 1, 1), torch.full((1, 1, 1), 2.0))
    torch.testing.assert_close(tokens[0, 0], 2 * (embedding.weight[3] + embedding.weight[5]))
    assert tokens[0, 1].abs().max() == 0
