"""Training data of the miniature language model: conversations after a scene in words or in soft tokens.

Large language models can read several words from one input vector. The miniature one is trained to: a soft token is
the sum of the embeddings of the words that describe what one patch of one view shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from experiments.tiny.tokenizer import BACKGROUND_WORDS, END_OF_TURN, START_OF_TURN
from panollava.batch import IGNORE_INDEX
from panollava.crop.cameras import Camera, camera_tensor, token_directions
from panollava.crop.strategies import AnyresE2pCrop, E2pCrop
from panollava.data.scenes.questions import CAPTION_REQUEST, Asked, ask_all, caption
from panollava.data.scenes.scene import SECTORS, Disc, Scene, Solid

GRID = (4, 4)
"""Patches of one view of the miniature encoder."""
WORDS_PER_TOKEN = 6
NO_WORD = -1
EFFORT = {
    "what": 1,
    "where": 1,
    "colour": 3,
    "shape": 1,
    "height": 1,
    "pole": 1,
    "count": 9,
    "relation": 3,
    "turns": 2,
}
"""Question kind -> share of the training questions: what takes two looks at the scene takes the longest to learn."""
ALL_TEXT_WEIGHT = 0.1
"""Weight of question tokens in the loss: enough for later stages, which train on them, to find them unsurprising."""


@dataclass
class Reading:
    """One training sequence: soft tokens (rows of word ids) stand where `ids` holds ``NO_WORD``."""

    ids: list[int]
    targets: list[int]
    weights: list[float]
    soft: np.ndarray = field(default_factory=lambda: np.zeros((0, WORDS_PER_TOKEN), np.int64))


class Reader:
    """Turns scenes into token sequences in the chat format."""

    words_per_token = WORDS_PER_TOKEN

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._pieces: dict[str, list[int]] = {}
        self._user = self.piece(f"{START_OF_TURN}user\n")
        self._assistant = self.piece(f"{END_OF_TURN}\n{START_OF_TURN}assistant\n")
        self._end = self.piece(END_OF_TURN)
        self._newline = self.piece("\n")

    def piece(self, text: str) -> list[int]:
        """Token ids of a text, remembered."""
        if text not in self._pieces:
            self._pieces[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._pieces[text]

    def word(self, word: str) -> int:
        """The single token of a word in mid-sentence."""
        (token,) = self.piece(f" {word}")
        return token

    def sequence(self, context: list[int], soft: np.ndarray, turns: Sequence[tuple[str, str | None]]) -> Reading:
        """A conversation whose first question follows a written context or soft tokens."""
        ids: list[int] = []
        weights: list[float] = []

        def add(piece: list[int], weight: float) -> None:
            ids.extend(piece)
            weights.extend([weight] * len(piece))

        for number, (question, answer) in enumerate(turns):
            add(self._user, 0.0)
            if number == 0 and len(soft):
                add([NO_WORD] * len(soft) + self._newline, 0.0)
            elif number == 0 and context:
                add(context + self._newline, 0.0)
            add(self.piece(question), ALL_TEXT_WEIGHT)
            add(self._assistant, ALL_TEXT_WEIGHT)
            if answer is not None:
                add(self.piece(answer) + self._end, 1.0)
                add(self._newline, ALL_TEXT_WEIGHT)
        targets = [token if weight else IGNORE_INDEX for token, weight in zip(ids, weights, strict=True)]
        return Reading(ids, targets, weights, soft)

    def written(self, scene: Scene, rng: np.random.Generator) -> list[int]:
        """The scene described in words, its things in any order and in one of two phrasings."""
        height_first = rng.random() < 0.5
        parts = []
        for index in rng.permutation(len(scene.things)):
            thing = scene.things[index]
            if isinstance(thing, Disc):
                parts.append(self.part_of(thing, f"{thing.pole} a {thing.name}"))
            elif height_first:
                parts.append(self.part_of(thing, f"{SECTORS[thing.sector]} {thing.height} a {thing.name}"))
            else:
                parts.append(self.part_of(thing, f"{SECTORS[thing.sector]} a {thing.name} {thing.height}"))
        return self.piece_uncached(", ".join(parts) + ".")

    def part_of(self, thing: Solid | Disc, about: str) -> str:
        """A thing's part of a written scene, of the words about it."""
        return about

    def piece_uncached(self, text: str) -> list[int]:
        """Token ids of a text that will not come again."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def thing_words(self, thing: Solid | Disc) -> list[int]:
        """Word ids a soft token about a thing is the sum of."""
        if isinstance(thing, Disc):
            return [self.word(word) for word in (thing.pole, thing.colour, thing.shape)]
        where = SECTORS[thing.sector].split()
        return [self.word(word) for word in (*where, thing.height, thing.colour, thing.shape)]

    def error_deg(self, rng: np.random.Generator) -> float:
        """How far numbers in one scene's soft tokens are from the truth; not a number where they have none."""
        return math.nan

    def patch_words(self, thing: Solid | Disc, rng: np.random.Generator, error_deg: float) -> list[int]:
        """Word ids of one soft token about a thing."""
        return self.thing_words(thing)

    def few_soft(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """A short list in random order: every thing one to three times, and some background."""
        error = self.error_deg(rng)
        rows = [self.patch_words(thing, rng, error) for thing in scene.things for _ in range(rng.integers(1, 4))]
        rows += [self._background(rng) for _ in range(rng.integers(2, 12))]
        table = _table(rows, self.words_per_token)
        return table[rng.permutation(len(table))]

    def view_soft(self, scene: Scene, rng: np.random.Generator, cameras: tuple[Camera, ...]) -> np.ndarray:
        """One soft token a patch, view by view: the thing nearest to the patch, if it is near enough."""
        directions, is_global = patch_directions(cameras)
        things = scene.things
        error = self.error_deg(rng)
        axes = np.stack([_direction(thing) for thing in things])
        radii = np.array([thing.radius_deg for thing in things])
        angles = np.degrees(np.arccos(np.clip(directions @ axes.T, -1.0, 1.0)))
        is_disc = np.array([isinstance(thing, Disc) for thing in things])
        gap = angles - radii
        # The coarse patches of a global view show the discs at their rows, and solids only when near the centre.
        gap[is_global] += np.where(is_disc, -20.0, rng.choice([5.0, 100.0]))
        gap[~is_global] += np.where(is_disc, 100.0, 0.0)
        nearest = gap.argmin(axis=1)
        margin = rng.uniform(-2.0, 10.0) + rng.uniform(-2.0, 2.0, len(directions))
        shown = (gap[np.arange(len(nearest)), nearest] < margin) & (rng.random(len(nearest)) > 0.05)
        rows = [
            self.patch_words(things[index], rng, error) if visible else self._background(rng)
            for index, visible in zip(nearest.tolist(), shown.tolist(), strict=True)
        ]
        present = set(nearest[shown].tolist())
        for index in set(range(len(things))) - present:
            rows[int(rng.integers(len(rows)))] = self.patch_words(things[index], rng, error)
        table = _table(rows, self.words_per_token)
        return table[rng.permutation(len(table))] if rng.random() < 0.3 else table

    def _background(self, rng: np.random.Generator) -> list[int]:
        chance = rng.random()
        if chance < 0.5:
            return []
        words = [BACKGROUND_WORDS[int(rng.integers(len(BACKGROUND_WORDS)))]]
        if chance < 0.8:
            words += SECTORS[int(rng.integers(len(SECTORS)))].split()
        return [self.word(word) for word in words]


def conversation(
    scene: Scene, rng: np.random.Generator, questions: int, efforts: Mapping[str, int] = EFFORT
) -> list[tuple[str, str]]:
    """Questions of kinds drawn by how hard they are to learn; one conversation in four ends in a caption."""
    kinds = rng.choice(list(efforts), size=questions, p=np.array(list(efforts.values())) / sum(efforts.values()))
    turns = [turn for asked in ask_all(scene, tuple(kinds.tolist()), rng) for turn in asked.turns]
    if rng.random() < 0.25:
        turns.append((CAPTION_REQUEST, caption(scene)))
    return turns


def question_turns(asked: Asked) -> list[tuple[str, str | None]]:
    """A question on its own, after what it refers to, to be answered."""
    return [*asked.history, (asked.question, None)]


@lru_cache(maxsize=8)
def crops() -> tuple[tuple[Camera, ...], ...]:
    """Crops whose views the language model gets to read; the first is the default one."""
    strategies = (AnyresE2pCrop(), AnyresE2pCrop(overlap=0.25), AnyresE2pCrop(overlap=0.0), E2pCrop())
    return tuple(tuple(strategy.cameras()) for strategy in strategies)


@lru_cache(maxsize=8)
def patch_directions(cameras: tuple[Camera, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (V·N, 3) of the patch centres, and which belong to a global view (V·N)."""
    directions = token_directions(camera_tensor(cameras), GRID).reshape(-1, 3).double().numpy()
    is_global = np.repeat([camera.is_global for camera in cameras], GRID[0] * GRID[1])
    return directions, is_global


def embed(embedding: nn.Embedding, soft: Tensor, noise: Tensor, scale: Tensor) -> Tensor:
    """Soft tokens: sums of word embeddings, scaled, with noise relative to their usual size.

    Args:
        embedding: of the language model.
        soft: (B, S, words) word ids, ``NO_WORD`` where there are fewer.
        noise: (B, 1, 1) size of the noise relative to one word's embedding.
        scale: (B, 1, 1).

    Returns:
        (B, S, D).
    """
    words = embedding(soft.clamp(min=0)) * (soft != NO_WORD).unsqueeze(-1)
    size = embedding.weight.detach().pow(2).mean().sqrt()
    total = words.sum(-2)
    return scale * (total + noise * size * torch.randn_like(total))


def _direction(thing: Solid | Disc) -> np.ndarray:
    yaw, pitch = np.radians(thing.yaw_deg), np.radians(thing.pitch_deg)
    return np.array([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)])


def _table(rows: list[list[int]], words: int) -> np.ndarray:
    table = np.full((len(rows), words), NO_WORD, np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table
