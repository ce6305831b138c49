"""Trains the miniature language model, and measures what it can answer about held-out scenes."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from experiments.tiny.optim import cosine, keep, make_optimisers, resume, set_rate
from experiments.tiny.reading import (
    EFFORT,
    NO_WORD,
    Reader,
    Reading,
    conversation,
    crops,
    embed,
    question_turns,
)
from panollava.batch import IGNORE_INDEX
from panollava.data.scenes.questions import KINDS, ask_all
from panollava.data.scenes.scene import Scene, scene_at

logger = logging.getLogger(__name__)

HELD_OUT = 10_000_000
"""First scene that is measured on; training stays below."""


def make_language_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """The miniature language model with random weights."""
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        # A scene is looked up by content at any distance: the slower most of a head's dimensions turn, the
        # more of them can distinguish objects.
        rope_parameters={"rope_type": "default", "rope_theta": 1e8},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    # At this width attention in plain matrix products trains half again as fast on a CPU as the fused kernel.
    model.set_attn_implementation("eager")
    return model


class Curriculum:
    """Draws batches: short lists of soft tokens first, then tokens patch by patch; written scenes throughout."""

    efforts: Mapping[str, int] = EFFORT

    def __init__(self, reader: Reader, *, seed: int = 0, first_scene: int = 0, written_share: float = 0.35) -> None:
        self.reader = reader
        self.written_share = written_share
        self.rng = np.random.default_rng([seed, first_scene, 7])
        self.scene = first_scene
        self.batches: list[list[Reading]] = []
        self.by_view = False

    def draw(self, size: int, *, by_view: bool) -> list[Reading]:
        """The next `size` sequences, of similar length."""
        if not self.batches or self.by_view != by_view:
            readings = sorted((self._one(by_view) for _ in range(8 * size)), key=lambda reading: len(reading.ids))
            batches = [readings[start : start + size] for start in range(0, len(readings), size)]
            self.batches = [batches[index] for index in self.rng.permutation(len(batches))]
            self.by_view = by_view
        return self.batches.pop()

    def _one(self, by_view: bool) -> Reading:
        scene = self.next_scene()
        self.scene += 1
        turns = conversation(scene, self.rng, 8 if by_view else 5, self.efforts)
        context, soft = [], np.zeros((0, self.reader.words_per_token), np.int64)
        if self.rng.random() < self.written_share:
            context = self.reader.written(scene, self.rng)
        elif by_view and self.rng.random() < 0.9:
            views = crops()[0] if self.rng.random() < 0.7 else crops()[int(self.rng.integers(1, len(crops())))]
            soft = self.reader.view_soft(scene, self.rng, views)
        else:
            soft = self.reader.few_soft(scene, self.rng)
        return self.reader.sequence(context, soft, turns)

    def next_scene(self) -> Scene:
        """The scene of the next sequence."""
        return scene_at(0, "backbones", self.scene)


def sequence_loss(model: Qwen3ForCausalLM, readings: list[Reading], noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted next-token loss, and which answer tokens were predicted right.

    Returns:
        Mean loss, the number of right answer tokens, the number of answer tokens.
    """
    ids, soft = collate(readings)
    length = ids.shape[1]
    targets, weights = torch.full(ids.shape, IGNORE_INDEX), torch.zeros(ids.shape)
    for row, reading in enumerate(readings):
        targets[row, : len(reading.targets)] = torch.tensor(reading.targets)
        weights[row, : len(reading.weights)] = torch.tensor(reading.weights)
    scale = torch.empty(len(readings), 1, 1).uniform_(math.log(0.4), math.log(1.2)).exp()
    inputs = embed_inputs(model, ids, soft, torch.rand(len(readings), 1, 1) * noise, scale)
    hidden = model.model(inputs_embeds=inputs).last_hidden_state
    learnt = weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, : length - 1][learnt]).float()
    target, weight = targets[:, 1:][learnt], weights[:, 1:][learnt]
    loss = (cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
    right = (logits.argmax(-1) == target) & (weight == 1)
    return loss, right.sum(), (weight == 1).sum()


def collate(readings: list[Reading]) -> tuple[Tensor, list[Tensor]]:
    """Right-padded ids (B, T), ``NO_WORD`` where soft tokens stand, and those tokens' words."""
    length = max(len(reading.ids) for reading in readings)
    ids = torch.zeros(len(readings), length, dtype=torch.long)
    for row, reading in enumerate(readings):
        ids[row, : len(reading.ids)] = torch.tensor(reading.ids)
    return ids, [torch.from_numpy(reading.soft) for reading in readings]


def embed_inputs(model: Qwen3ForCausalLM, ids: Tensor, soft: list[Tensor], noise: Tensor, scale: Tensor) -> Tensor:
    """Input embeddings (B, T, D) of ids with soft tokens in their places."""
    embedding = model.model.embed_tokens
    inputs = embedding(ids.clamp(min=0))
    if not any(len(words) for words in soft):
        return inputs
    padded = nn.utils.rnn.pad_sequence(soft, batch_first=True, padding_value=NO_WORD)
    tokens = embed(embedding, padded, noise, scale)
    filled = torch.arange(padded.shape[1])[None] < torch.tensor([len(words) for words in soft])[:, None]
    return inputs.masked_scatter((ids == NO_WORD).unsqueeze(-1), tokens[filled])


def train_language_model(
    model: Qwen3ForCausalLM,
    curriculum_from: Callable[[int], Curriculum],
    *,
    steps: int,
    folder: Path,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    short_share: float = 0.75,
) -> None:
    """Trains `model` in place, from the last state in `folder` if there is one.

    Args:
        curriculum_from: the training data from a scene on.
        steps: optimiser steps in all.
        folder: where the state is kept, every few hundred steps.
        batch_size: sequences a step.
        learning_rate: its peak; warmed up, then decayed along a cosine to nothing.
        short_share: share of the steps that read short lists, before tokens come patch by patch.
    """
    optimisers = make_optimisers(model)
    start = resume(folder, model, optimisers)
    curriculum = curriculum_from(start * batch_size)
    schedule = cosine(learning_rate, steps, warmup=100)
    torch.manual_seed(start)
    model.train()
    began, right, total = time.monotonic(), 0, 0
    for step in range(start, steps):
        readings = curriculum.draw(batch_size, by_view=step >= short_share * steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, hits, count = sequence_loss(model, readings, noise=0.5)
        loss.backward()
        right, total = right + int(hits), total + int(count)
        set_rate(optimisers, schedule(step))
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - began
            logger.info("step %d loss %.4f answer tokens %.4f %.0f s", step + 1, loss.item(), right / total, seconds)
            right, total = 0, 0
        if (step + 1) % 200 == 0 or step + 1 == steps:
            keep(folder, model, optimisers, step + 1)


@torch.no_grad()
def measure_language_model(
    model: Qwen3ForCausalLM, reader: Reader, *, form: str, scenes: int, seed: int = 1, level: int = 1
) -> dict[str, float]:
    """Share of exactly right answers per question type about held-out scenes.

    Args:
        form: ``written`` (a description in words) or ``views`` (soft tokens as the default crop gives them).
        scenes: number of scenes, one question of each kind about each.
        seed: of the questions and of the noise.
        level: of the scenes.
    """
    model.eval()
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    right, total = Counter[str](), Counter[str]()
    for start in range(0, scenes, 16):
        asked = [
            (scene, one)
            for index in range(start, min(start + 16, scenes))
            for scene in [scene_at(0, "backbones", HELD_OUT + index, level)]
            for one in ask_all(scene, KINDS, rng)
        ]
        prompts = [reader.sequence(*_context(reader, scene, form, rng), question_turns(one)) for scene, one in asked]
        answers = greedy(model, reader, prompts)
        for (_, one), answer in zip(asked, answers, strict=True):
            total[one.kind] += 1
            right[one.kind] += answer == one.answer
    scores = {kind: right[kind] / total[kind] for kind in KINDS if total[kind]}
    return {**scores, "all": sum(right.values()) / sum(total.values())}


def _context(reader: Reader, scene: Scene, form: str, rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
    if form == "written":
        return reader.written(scene, rng), np.zeros((0, reader.words_per_token), np.int64)
    return [], reader.view_soft(scene, rng, crops()[0])


@torch.no_grad()
def greedy(model: Qwen3ForCausalLM, reader: Reader, prompts: list[Reading], longest: int = 24) -> list[str]:
    """Greedy answers to prompts, all at once."""
    tokenizer = reader.tokenizer
    length = max(len(prompt.ids) for prompt in prompts)
    ids, soft = collate(prompts)
    shifts = [length - len(prompt.ids) for prompt in prompts]
    ids = torch.stack([row.roll(shift) for row, shift in zip(ids, shifts, strict=True)])
    mask = torch.stack([torch.arange(length) >= shift for shift in shifts]).long()
    ones = torch.ones(len(prompts), 1, 1)
    inputs = embed_inputs(model, ids, soft, 0.3 * ones, 0.7 * ones)
    written: Tensor = model.generate(  # type: ignore[misc, assignment]
        inputs_embeds=inputs,
        attention_mask=mask,
        max_new_tokens=longest,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [text.strip() for text in tokenizer.batch_decode(list(written), skip_special_tokens=True)]
