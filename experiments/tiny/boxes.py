"""The second miniature language model: the first one, trained further to read and write boxes in words.

A number is one token together with what it counts: ``yaw 92``, `` pitch -4``, `` 20 x`` and `` 21``. The rows of the
embedding of one quantity start as samples of a smooth function of the number, so that neighbours are alike: what is a
little wrong has a little loss. In training each soft token about a thing states the thing's box with an error of its
own, so that the model learns to average over patches.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerBase, Qwen3ForCausalLM

from experiments.tiny.reading import EFFORT, WORDS_PER_TOKEN, Reader, crops, question_turns
from experiments.tiny.train_language import HELD_OUT, Curriculum, greedy
from panollava.crop.boxes import box_frames, iou
from panollava.data.boxes import box_text, parse_box
from panollava.data.scenes.boxes import thing_box
from panollava.data.scenes.questions import BOX, ask
from panollava.data.scenes.scene import LEVELS, Disc, Scene, Solid, scene_at

FORMS = ("yaw {}", " pitch {}", " {} x", " {}")
"""Text of the token of a number: yaw, pitch, horizontal and vertical extent."""
RANGES = (range(-180, 180), range(-90, 91), range(1, 181), range(1, 181))
WORDS = (" exactly",)
ALIKE_DEG = ((4.0, 0.5), (20.0, 0.5))
"""Width of a neighbourhood of like embeddings, and its share."""
NUMBERS_CHANCE, NUMBER_CHANCE = 0.85, 0.85
"""Of a scene in soft tokens to have boxes, and of a soft token to have each of the four numbers."""
MOST_ERROR_DEG = 4.0
BOX_EFFORT = 18
"""Share of the training questions beside those of ``EFFORT``."""


def add_numbers(tokenizer: PreTrainedTokenizerBase, model: Qwen3ForCausalLM) -> None:
    """Gives both one token for each number of a box; what they had stays as it was."""
    known = len(tokenizer)
    texts = [form.format(number) for form, numbers in zip(FORMS, RANGES, strict=True) for number in numbers]
    new = [text for text in (*WORDS, *texts) if len(_ids(tokenizer, text)) > 1]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in new])
    model.resize_token_embeddings(math.ceil(len(tokenizer) / 16) * 16, mean_resizing=False)
    weight = model.get_input_embeddings().weight
    size = weight[:256].detach().pow(2).mean().sqrt()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight[known:] = size * torch.randn(weight[known:].shape, generator=draws)
    for at, numbers in enumerate(RANGES):
        rows = _smooth(torch.tensor(list(numbers), dtype=torch.float64), weight.shape[1], draws, is_circle=at == 0)
        with torch.no_grad():
            for number, row in zip(numbers, rows.float(), strict=True):
                (token,) = _ids(tokenizer, FORMS[at].format(number))
                if token >= known:
                    weight[token] = size * row


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _smooth(numbers: Tensor, width: int, draws: torch.Generator, *, is_circle: bool) -> Tensor:
    """Rows (N, width) with entries of size 1, alike where numbers in degrees are near."""
    gap = (numbers[:, None] - numbers[None]).abs()
    if is_circle:
        gap = 2 * torch.rad2deg(torch.sin(torch.deg2rad(gap / 2)).abs())
    alike = sum(share * torch.exp(-0.5 * (gap / degrees) ** 2) for degrees, share in ALIKE_DEG)
    root = torch.linalg.cholesky(torch.as_tensor(alike) + 1e-6 * torch.eye(len(numbers), dtype=torch.float64))
    return root @ torch.randn(len(numbers), width, generator=draws, dtype=torch.float64)


class BoxReader(Reader):
    """Scenes with the boxes of their things, in soft tokens and in words."""

    words_per_token = WORDS_PER_TOKEN + len(FORMS)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, numbers_chance: float = NUMBERS_CHANCE) -> None:
        super().__init__(tokenizer)
        self.numbers_chance = numbers_chance

    def part_of(self, thing: Solid | Disc, about: str) -> str:
        return f"{about} at {box_text(thing_box(thing))}"

    def patch_words(self, thing: Solid | Disc, rng: np.random.Generator, error_deg: float) -> list[int]:
        """The words of a thing with its box as one patch tells it; without a box where the error is not a number."""
        words = self.thing_words(thing)
        if math.isnan(error_deg):
            return words
        box = thing_box(thing)[:4] + rng.normal(size=4) * error_deg * (1.0, 1.0, 0.5, 0.5)
        box[1:] = np.clip(box[1:], (-90.0, 1.0, 1.0), (90.0, 180.0, 180.0))
        yaw = (round(box[0]) + 180) % 360 - 180
        numbers = (yaw, *(round(value) for value in box[1:]))
        shown = rng.random(4) < NUMBER_CHANCE
        texts = [form.format(number) for form, number in zip(FORMS, numbers, strict=True)]
        return words + [self.piece(text)[0] for text, is_shown in zip(texts, shown, strict=True) if is_shown]

    def error_deg(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(0.0, MOST_ERROR_DEG)) if rng.random() < self.numbers_chance else math.nan


class BoxCurriculum(Curriculum):
    """Scenes of all levels, so that each direction comes; every other question is about a box."""

    efforts = {**EFFORT, BOX: BOX_EFFORT}

    def next_scene(self) -> Scene:
        level = int(self.rng.choice(list(LEVELS), p=(0.5, 0.3, 0.2)))
        return scene_at(0, "backbones", self.scene, level)


@torch.no_grad()
def measure_boxes(
    model: Qwen3ForCausalLM, reader: BoxReader, *, form: str, scenes: int, seed: int = 1
) -> dict[str, float]:
    """How near the boxes in words are to the true ones, about held-out scenes of level 1.

    Returns:
        Share of answers that are a box, the mean IoU with 0 for the others, and the median error of a box's centre.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    ious, angles, right = [], [], 0
    for start in range(0, scenes, 16):
        held_out = [scene_at(0, "backbones", HELD_OUT + index) for index in range(start, min(start + 16, scenes))]
        asked = [ask(scene, BOX, rng) for scene in held_out]
        prompts = []
        for scene, one in zip(held_out, asked, strict=True):
            assert one is not None
            none = np.zeros((0, reader.words_per_token), np.int64)
            written = form == "written"
            context = reader.written(scene, rng) if written else []
            soft = none if written else reader.view_soft(scene, rng, crops()[0])
            prompts.append(reader.sequence(context, soft, question_turns(one)))
        for one, answer in zip(asked, greedy(model, reader, prompts), strict=True):
            assert one is not None
            true, found = parse_box(one.answer), parse_box(answer)
            assert true is not None
            right += found is not None
            ious.append(0.0 if found is None else float(iou(found[None], true[None])[0]))
            if found is not None:
                centres = box_frames(np.stack([found, true]))[:, 2]
                angles.append(math.degrees(math.acos(min(1.0, float(centres[0] @ centres[1])))))
    return {
        "boxes": right / scenes,
        "mean_iou": float(np.mean(ious)),
        "centre_error_deg": float(np.median(angles)) if angles else math.nan,
    }
