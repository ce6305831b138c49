"""The picture of what a model sees and reads: features, tokens and the answer's attention over the panorama."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from panollava.crop.sphere import direction_to_angles
from panollava.evaluation.explain import (
    AnswerAttention,
    answer_attention,
    principal_colours,
    see,
    similarity,
    token_towards,
)
from panollava.evaluation.painting import TokenMap
from panollava.evaluation.panels import HEAT, LIKENESS, PANEL, Panel, colours, fitted, heat, marked, page
from panollava.model.sight import Sight

WHOLE = (1, 1)
"""Grid of views whose tokens stand in none."""

CAVEAT = (
    "Attention is not an explanation of cause: it shows from which directions the language model took something while "
    "it wrote the answer, not that the answer would have been another one without them."
)

NEAREST = (
    "Features and tokens: each pixel shows that of the tile in which it lies nearest to the centre, and where no tile "
    "looks that of the global view; grey: no view looks there."
)
GRIDLESS = (
    "The tokens of this resampler stand in no grid and have no place on the panorama: their panels are left out, and "
    "attention is painted by whole views."
)
SPEECHLESS = "A stage-1 run has no language model: there is no answer and no attention to show."
MEAN = (
    "model.join=mean: the language model sees averages over all views, which have no place on the panorama, so "
    "attention is left out."
)


@dataclass(frozen=True)
class Layer:
    """Vectors of views that a panel shows.

    Attributes:
        name: in titles, such as ``encoder features``.
        vectors: ``(V, Q, D)``.
        lie: where they lie.
    """

    name: str
    vectors: Tensor
    lie: TokenMap


def explain_picture(
    sight: Sight,
    panorama: np.ndarray,
    views: Tensor,
    *,
    asked: tuple[str, str] | None,
    yaw_deg: float,
    pitch_deg: float,
    layers: Sequence[int] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Everything that can be shown of a model and a panorama, on one page.

    Args:
        sight: the model.
        panorama: (H, W, 3) uint8 RGB.
        views: ``(V, 3, h, w)`` of it.
        asked: a question and its answer; None for a model without a language part.
        yaw_deg: of the direction that others are compared with, like pitch.
        pitch_deg: the same, up.
        layers: of the language model, counted from 1; None takes the last third.

    Returns:
        (H, W, 3) uint8 RGB, and the notes that stand at its foot.

    Raises:
        ValueError: no view looks in the direction, or there is no such layer.
    """
    cameras, patches, grid = sight.crop.camera_rows, sight.vision.tower.grid, sight.vision.token_grid
    # A map is dear to make: features and tokens often share one.
    lie = {one: TokenMap(cameras, one, PANEL) for one in {patches, grid or WHOLE}}
    features, tokens = see(sight.vision, views, cameras)
    shown = [Layer("encoder features", features, lie[patches])]
    notes = [NEAREST]
    if grid is None:
        notes.append(GRIDLESS)
    else:
        shown.append(Layer("resampler tokens", tokens, lie[grid]))
    _, direction = token_towards(cameras, patches, yaw_deg, pitch_deg)
    panels = [scene_panel(panorama, direction)]
    if asked is None or sight.pano is None:
        notes.append(SPEECHLESS)
    elif sight.pano.model.config.join == "mean":
        notes.append(MEAN)
    else:
        attention = answer_attention(sight.pano, views, *asked, layers=layers)
        panels.append(attention_panel(panorama, attention, lie[grid or WHOLE]))
        notes.append(CAVEAT)
    panels += [component_panel(layer) for layer in shown]
    panels += [similarity_panel(panorama, layer, yaw_deg, pitch_deg) for layer in shown]
    text = [] if asked is None else [f"Question: {asked[0]}", f"Answer: {asked[1] or '(none)'}"]
    return page(f"{sight.name}: {sight.crop.summary}", text, panels, notes), notes


def scene_panel(panorama: np.ndarray, direction: Tensor) -> Panel:
    """The panorama itself with the mark that similarity is about."""
    return Panel(f"the panorama, with a mark at {_degrees(direction)}", marked(fitted(panorama), direction))


def component_panel(layer: Layer) -> Panel:
    """Main directions of a layer's vectors as colours: places of like colour are alike to the model."""
    rows, painted = layer.vectors.flatten(0, 1), layer.lie.is_painted
    values = torch.full((len(rows), 3), torch.nan, dtype=torch.float64)
    values[painted], share = principal_colours(rows[painted])
    height, width = layer.lie.grid
    return Panel(
        f"{layer.name}: three principal components as red, green, blue",
        colours(layer.lie.paint(values)),
        f"they hold {share:.0%} of the variance; {height} x {width} of width {rows.shape[1]} a view",
    )


def similarity_panel(panorama: np.ndarray, layer: Layer, yaw_deg: float, pitch_deg: float) -> Panel:
    """Cosine of every vector of a layer with the one in a direction.

    Raises:
        ValueError: no view looks there.
    """
    index, direction = token_towards(layer.lie.cameras, layer.lie.grid, yaw_deg, pitch_deg)
    values = layer.lie.paint(similarity(layer.vectors.flatten(0, 1), index))
    low = float(values.nan_to_num(nan=1.0).min())
    return Panel(
        f"{layer.name}: similarity to the marked direction",
        marked(heat(fitted(panorama), values, LIKENESS, low, 1.0), direction),
        "cosine",
        (LIKENESS, f"{low:.2f}", "1"),
    )


def attention_panel(panorama: np.ndarray, attention: AnswerAttention, lie: TokenMap) -> Panel:
    """Attention of the answer to directions, as a multiple of what even attention to all image tokens would give.

    Where the map has no grid but whole views, each view is painted with the sum of its tokens.
    """
    weights, even = attention.weights, attention.is_seen / attention.is_seen.sum()
    if lie.grid == WHOLE:
        weights, even = (each.sum(dim=1, keepdim=True) for each in (weights, even))
    values = times_even(weights, even, lie)
    high = max(float(values.nan_to_num().max()), 1.0)
    layers = attention.layers
    those = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
    what = ", whole views" if lie.grid == WHOLE else ""
    return Panel(
        f"attention of the answer{what}: mean over heads and {those} of {attention.of_layers}",
        heat(fitted(panorama), values, HEAT, 0.0, high),
        f"times what even attention would give; {attention.image_share:.0%} of all attention goes to the panorama",
        (HEAT, "0", f"{high:.1f}"),
    )


def times_even(weights: Tensor, even: Tensor, lie: TokenMap) -> Tensor:
    """Attention towards each pixel, over what it would be if every image token got the same.

    Both are spread over what the patches show, so that neither small patches nor directions that several views show
    stand out by that alone.

    Args:
        weights: ``(V, Q)``.
        even: ``(V, Q)``, one over the number of image tokens, 0 for tokens that are none.
        lie: where they lie.

    Returns:
        ``(H, W)``; not a number where no image token looks.
    """
    expected = lie.spread(even)
    share = weights.double() / weights.sum().clamp(min=1e-12)
    return torch.where(expected > 0, lie.spread(share) / expected, torch.nan)


def _degrees(direction: Tensor) -> str:
    yaw, pitch = (round(float(torch.rad2deg(angle)), 1) + 0.0 for angle in direction_to_angles(direction))
    return f"yaw {yaw:g}°, pitch {pitch:g}°"
