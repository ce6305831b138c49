"""What a model sees and reads: main directions of its features, their likeness, and where its answers attend to.

Attention is not an explanation of cause: it tells from which tokens a layer took, not that the answer would have been
another one without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from panollava.crop.sphere import angles_to_direction
from panollava.evaluation.painting import nearest_tokens
from panollava.model.api import PanoLlava
from panollava.model.fusion import fuse
from panollava.model.vision import PanoVision

COMPONENTS = 3
"""Principal components, shown as red, green and blue."""

_TAILS = (0.01, 0.99)
"""Shares of the tokens between which a component goes from dark to bright."""


@torch.inference_mode()
def see(vision: PanoVision, views: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
    """What the encoder and the resampler make of one panorama.

    Args:
        vision: both of them.
        views: ``(V, 3, h, w)``.
        cameras: ``(V, C)``.

    Returns:
        Features ``(V, N, Dv)`` and tokens ``(V, Q, Dr)``, fp32 on the processor.
    """
    device = next(vision.tower.parameters()).device
    features = vision.features(views[None].to(device))
    tokens = vision(cameras=cameras[None].to(device), vision_features=features)
    return features[0].float().cpu(), tokens[0].float().cpu()


def principal_colours(rows: Tensor) -> tuple[Tensor, float]:
    """The first three principal components of rows ``(n, D)`` as colours.

    Each component goes from 0 to 1 between its 1st and 99th percentile; where all rows agree it is 1/2. Its sign, which
    has no meaning, is the one that makes its largest weight positive.

    Returns:
        ``(n, 3)`` in 0..1, and the share of the variance that they hold.
    """
    centred = rows.double() - rows.double().mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes.flip(1)[:, :COMPONENTS]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    scores = functional.pad(centred @ (axes * largest.sign()), (0, max(0, COMPONENTS - axes.shape[1])))
    low, high = torch.quantile(scores, torch.tensor(_TAILS, dtype=torch.float64), dim=0)
    is_flat = high - low <= 1e-9 * rows.double().norm()
    colours = ((scores - low) / torch.where(is_flat, 1.0, high - low)).clamp(0, 1)
    total = float(variances.clamp(min=0).sum())
    share = float(variances.clamp(min=0).flip(0)[:COMPONENTS].sum()) / total if total > 0 else 1.0
    return torch.where(is_flat, 0.5, colours), share


def token_towards(cameras: Tensor, grid: tuple[int, int], yaw_deg: float, pitch_deg: float) -> tuple[int, Tensor]:
    """The token that stands for a direction, counted through all views, and the direction ``(3)``.

    Raises:
        ValueError: no view looks there.
    """
    angles = torch.tensor([math.radians(yaw_deg), math.radians(pitch_deg)], dtype=torch.float64)
    direction = angles_to_direction(angles[0], angles[1])
    index = int(nearest_tokens(cameras.cpu(), grid, direction[None])[0])
    if index < 0:
        raise ValueError(
            f"yaw={yaw_deg:g} pitch={pitch_deg:g}: no view of this crop looks there. Choose a direction that one of "
            "its views shows, such as the centre of a tile."
        )
    return index, direction


def similarity(rows: Tensor, index: int) -> Tensor:
    """Cosine ``(n)`` of each of the rows ``(n, D)`` with one of them."""
    return functional.cosine_similarity(rows.double(), rows[index].double()[None], dim=-1)


@dataclass(frozen=True)
class AnswerAttention:
    """Where an answer's tokens attend to in the panorama.

    Attributes:
        weights: ``(V, Q)``, attention to each token that the language model sees, 0 for others: the mean over heads,
            the chosen layers, and the positions that predict the answer's tokens.
        is_seen: ``(V, Q)`` bool, which tokens the language model sees.
        layers: the chosen layers, counted from 1.
        of_layers: how many there are.
    """

    weights: Tensor
    is_seen: Tensor
    layers: tuple[int, ...]
    of_layers: int

    @property
    def image_share(self) -> float:
        """How much of all attention goes to the panorama; the rest goes to text."""
        return float(self.weights.sum())


@torch.inference_mode()
def answer_attention(
    pano: PanoLlava,
    views: Tensor,
    question: str,
    answer: str,
    *,
    history: Sequence[tuple[str, str]] = (),
    layers: Sequence[int] | None = None,
) -> AnswerAttention:
    """One forward pass over a conversation, and the attention of its last answer to the panorama.

    The end of the turn is no part of the answer, unless the answer is empty. The text before the answer is encoded with
    the model's own attention kernel, the answer's few positions with the plain one, which alone tells its weights: so
    the memory they take grows with the answer's length and not with the square of all.

    Args:
        pano: the model; its views must not be joined by their mean, in which no token has a place.
        views: ``(V, 3, h, w)`` of the panorama.
        question: about it.
        answer: generated, or any other.
        history: earlier turns.
        layers: counted from 1; None takes the last third.

    Raises:
        ValueError: a layer that is not there, views that are joined by their mean, or a text that the language model
            cannot be given.
    """
    chosen = chosen_layers(len(pano.model.language_blocks), layers)
    encoded = pano.prompt.encode([*history, (question, answer)], image_tokens=pano.image_tokens)
    if problem := pano.prompt.misfit(encoded, pano.limits):
        raise ValueError(f"The question and its answer cannot be read: {problem}.")
    ids, device = torch.tensor([encoded.ids]), pano.model.device
    targets = last_answer(encoded.is_target, encoded.ids, pano.prompt.stop_ids)
    start, stop = targets[0] - 1, targets[-1]  # what predicts a token stands before it
    cameras = pano.crop.camera_rows
    before = pano.model(
        input_ids=ids[:, :start].to(device),
        attention_mask=torch.ones(1, start, dtype=torch.long, device=device),
        pixel_values=views[None].to(device),
        cameras=cameras[None].to(device),
        use_cache=True,
        logits_to_keep=1,
    )
    with plain_attention(pano.model.language_model.get_decoder()):
        output = pano.model(
            input_ids=ids[:, start:stop].to(device),
            attention_mask=torch.ones(1, stop, dtype=torch.long, device=device),
            past_key_values=before.past_key_values,
            output_attentions=True,
            use_cache=True,
        )
    rows = torch.tensor([target - 1 - start for target in targets])
    per_layer = [whole_length(output.attentions[layer - 1], stop)[rows] for layer in chosen]
    to_image = torch.stack(per_layer).mean(dim=(0, 1))[ids[0, :stop] == pano.prompt.image_id]
    seen = _seen_tokens(pano)
    weights = torch.zeros(len(cameras), pano.model.vision.tokens_per_view)
    weights.view(-1)[seen] = to_image
    is_seen = torch.zeros_like(weights, dtype=torch.bool)
    is_seen.view(-1)[seen] = True
    return AnswerAttention(weights, is_seen, tuple(chosen), len(pano.model.language_blocks))


def chosen_layers(count: int, layers: Sequence[int] | None) -> list[int]:
    """Layers counted from 1, the last third of `count` where none are named.

    Raises:
        ValueError: there is no such layer.
    """
    if layers is None:
        return list(range(count - math.ceil(count / 3) + 1, count + 1))
    if not layers or not all(1 <= layer <= count for layer in layers):
        raise ValueError(
            f"layers={list(layers)}: allowed are one or more of 1 to {count}, the language model's layers."
        )
    return sorted(set(layers))


def last_answer(is_target: Sequence[bool], ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Positions of the last answer's tokens, its end of turn left out unless there is nothing else."""
    last = max(position for position, learnt in enumerate(is_target) if learnt)
    first = last
    while is_target[first - 1]:
        first -= 1
    answer = [position for position in range(first, last + 1) if ids[position] not in stop_ids]
    return answer or [last]


def whole_length(attention: Tensor, length: int) -> Tensor:
    """Mean over heads of one layer's attention ``(1, heads, n, k)`` as ``(n, length)`` fp32 on the processor.

    A layer with a sliding window keeps no more than its last keys, and attends to none before them.
    """
    mean = attention[0].float().mean(dim=0).cpu()
    return functional.pad(mean, (length - mean.shape[-1], 0))


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Lets a transformers model attend with the kernel that tells its weights, and restores its own afterwards."""
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def _seen_tokens(pano: PanoLlava) -> Tensor:
    """Which tokens, counted through all views, the language model sees, in the order in which it does."""
    vision, join, cameras = pano.model.vision, pano.model.config.join, pano.crop.camera_rows[None]
    if join == "mean":
        raise ValueError(
            "model.join=mean: the language model sees averages over all views, and no token has a place on the "
            "panorama. Only joins that keep tokens apart can be painted."
        )
    numbers = torch.arange(cameras.shape[1] * vision.tokens_per_view).view(1, cameras.shape[1], -1, 1)
    every = torch.ones(cameras.shape[:2], dtype=torch.bool)
    return fuse(numbers, every, join, cameras, vision.token_grid)[0][:, 0]
