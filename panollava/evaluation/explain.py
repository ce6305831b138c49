"""Draws a model's features, its tokens and the attention of its answer over a panorama, on one page.

Attention is not an explanation of cause: it shows from which tokens a layer took values, not that the answer would be
another one without them. Legend: ``V`` views, ``Q`` tokens of a view, ``(H, W)`` the panorama, ``n`` directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from panollava.crop.cameras import Column, locate, view_directions
from panollava.crop.crop import Crop, Cut
from panollava.crop.sphere import angles_to_direction, direction_to_angles, pixel_to_direction
from panollava.evaluation.detection import steradians
from panollava.evaluation.drawing import HEAT, LIKENESS, PANEL, Panel, colours, fitted, heat, marked, page
from panollava.evaluation.gallery import with_boxes, with_masks
from panollava.model.api import PanoLlava
from panollava.model.detector import Detections, PanoDetector
from panollava.model.fusion import fuse
from panollava.model.vision import PanoVision
from panollava.model.vlm import plain_attention

COMPONENTS = 3  # principal components, shown as red, green and blue
WHOLE = (1, 1)  # grid of views whose tokens have no grid
_TAILS = (0.01, 0.99)  # quantiles of a component over the tokens that are shown as dark and as bright
_EDGE_TOLERANCE = 1e-5  # share of a view's side beyond its edge that still counts as shown: cameras are float32
CAVEAT = (
    "Attention is not an explanation of cause: it shows from which directions the language model took something while "
    "it wrote the answer, not that the answer would have been another one without them."
)
NEAREST = (
    "Features and tokens: each pixel shows that of the tile in which it lies nearest to the centre, and where no tile "
    "looks that of the global view; grey: no view looks there."
)
GRIDLESS = (
    "The tokens of this resampler have no grid and no place on the panorama: their panels are left out, and "
    "attention is painted by whole views."
)
SPEECHLESS = "A stage without text has no language model: there is no answer and no attention to show."
MEAN = (
    "model.join=mean: the language model sees averages over all views, which have no place on the panorama, so "
    "attention is left out."
)


@dataclass(frozen=True)
class Layer:
    """Vectors that a panel shows."""

    name: str  # in titles
    vectors: Tensor  # ``(V, Q, D)``
    lie: TokenMap  # their places on the panorama


def explain_picture(
    panorama: np.ndarray,
    views: Tensor | Cut,
    *,
    name: str,
    vision: PanoVision,
    crop: Crop,
    pano: PanoLlava | None,
    asked: tuple[str, str] | None,
    yaw_deg: float,
    pitch_deg: float,
    layers: Sequence[int] | None = None,
    detector: PanoDetector | None = None,
) -> tuple[np.ndarray, list[str]]:
    """All panels of a model and a panorama on one page (H, W, 3), and the notes below the panels.

    Args:
        panorama: (H, W, 3) uint8 RGB, and its `views`, with their cameras if the crop chooses them.
        name: of the model, in the title.
        pano, asked: the whole model, and a question with its answer; None without a language model.
        yaw_deg, pitch_deg: direction that the others are compared with.
        layers: of the language model, counted from 1; None takes the last third.
        detector: the model's detection stage, whose boxes and masks are a panel; None where there is none.

    Raises:
        ValueError: no view looks in the direction, or there is no such layer.
    """
    cut, patches, grid = crop.with_cameras(views), vision.tower.grid, vision.token_grid
    cameras = cut.cameras
    # A map is slow to make; features and tokens often share one.
    lie = {one: TokenMap(cameras, one, PANEL) for one in {patches, grid or WHOLE}}
    features, tokens = see(vision, *cut)
    shown = [Layer("encoder features", features, lie[patches])]
    notes = [NEAREST]
    if grid is None:
        notes.append(GRIDLESS)
    else:
        shown.append(Layer("resampler tokens", tokens, lie[grid]))
    _, direction = token_towards(cameras, patches, yaw_deg, pitch_deg)
    yaw, pitch = (round(float(torch.rad2deg(angle)), 1) + 0.0 for angle in direction_to_angles(direction))
    title = f"the panorama, with a mark at yaw {yaw:g}°, pitch {pitch:g}°"
    panels = [Panel(title, marked(fitted(panorama), direction))]
    if asked is None or pano is None:
        notes.append(SPEECHLESS)
    elif pano.model.config.join == "mean":
        notes.append(MEAN)
    else:
        attention = answer_attention(pano, cut, *asked, layers=layers)
        panels.append(attention_panel(panorama, attention, lie[grid or WHOLE]))
        notes.append(CAVEAT)
    if detector is not None:
        panels.append(detection_panel(panorama, detector.detect(panorama)))
    panels += [component_panel(layer) for layer in shown]
    panels += [similarity_panel(panorama, layer, yaw_deg, pitch_deg) for layer in shown]
    text = [] if asked is None else [f"Question: {asked[0]}", f"Answer: {asked[1] or '(none)'}"]
    return page(f"{name}: {crop.summary}", text, panels, notes), notes


def detection_panel(panorama: np.ndarray, found: Detections) -> Panel:
    """Boxes and masks that a detection stage finds in a panorama (H, W, 3)."""
    picture = with_masks(fitted(panorama), found.mask, found.names)
    return Panel("what the detection stage finds", with_boxes(picture, found.boxes, found.names), f"{len(found)} boxes")


def component_panel(layer: Layer) -> Panel:
    """The first three principal components of a layer's vectors as colours: similar vectors have similar colours."""
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
    """Cosine similarity of every vector of a layer with the one in a direction, which a view must show."""
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
    """Attention of the answer to directions, as a multiple of uniform attention to all image tokens.

    Where the tokens have no grid, each view is painted with the sum of its tokens.
    """
    values = attention_values(attention, lie)
    high = max(float(values.nan_to_num().max()), 1.0)
    those = f"layer{'s' * (len(attention.layers) > 1)} {', '.join(map(str, attention.layers))}"
    what = ", whole views" if lie.grid == WHOLE else ""
    return Panel(
        f"attention of the answer{what}: mean over heads and {those} of {attention.of_layers}",
        heat(fitted(panorama), values, HEAT, 0.0, high),
        f"times what even attention would give; {attention.image_share:.0%} of all attention goes to the panorama",
        (HEAT, "0", f"{high:.1f}"),
    )


def attention_values(attention: AnswerAttention, lie: TokenMap) -> Tensor:
    """Attention ``(H, W)`` as ``times_even`` gives it; of whole views where the tokens have no grid."""
    weights, even = attention.weights, attention.is_seen / attention.is_seen.sum()
    if lie.grid == WHOLE:
        weights, even = (each.sum(dim=1, keepdim=True) for each in (weights, even))
    return times_even(weights, even, lie)


def times_even(weights: Tensor, even: Tensor, lie: TokenMap) -> Tensor:
    """Attention to each pixel over what uniform attention to all image tokens would give: ``(V, Q)`` -> ``(H, W)``.

    Both are distributed over the directions that the patches show, so that neither small patches nor directions that
    several views show stand out by that alone. NaN where no image token shows the direction.
    """
    expected = lie.spread(even)
    share = weights.double() / weights.sum().clamp(min=1e-12)
    return torch.where(expected > 0, lie.spread(share) / expected, torch.nan)


@torch.inference_mode()
def see(vision: PanoVision, views: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``(V, N, Dv)`` and tokens ``(V, Q, Dr)`` of views ``(V, 3, h, w)`` with cameras, fp32 on the CPU."""
    device = next(vision.tower.parameters()).device
    features = vision.features(views[None].to(device))
    tokens = vision(cameras=cameras[None].to(device), vision_features=features)
    return features[0].float().cpu(), tokens[0].float().cpu()


def principal_colours(rows: Tensor) -> tuple[Tensor, float]:
    """The first three principal components of rows ``(n, D)`` as ``(n, 3)`` in 0..1, and their share of the variance.

    Each component goes from 0 to 1 between its 1st and 99th percentile; where all rows are equal it is 1/2. Its sign is
    arbitrary, and chosen so that its largest weight is positive.
    """
    centred = rows.double() - rows.double().mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes.flip(1)[:, :COMPONENTS]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    scores = functional.pad(centred @ (axes * largest.sign()), (0, max(0, COMPONENTS - axes.shape[1])))
    low, high = torch.quantile(scores, torch.tensor(_TAILS, dtype=torch.float64), dim=0)
    is_flat = high - low <= 1e-9 * rows.double().norm()
    colours = ((scores - low) / torch.where(is_flat, 1.0, high - low)).clamp(0, 1)
    variances = variances.clamp(min=0)
    total = float(variances.sum())
    share = float(variances.flip(0)[:COMPONENTS].sum()) / total if total > 0 else 1.0
    return torch.where(is_flat, 0.5, colours), share


def token_towards(cameras: Tensor, grid: tuple[int, int], yaw_deg: float, pitch_deg: float) -> tuple[int, Tensor]:
    """The nearest token to a direction and the direction ``(3)``; see ``nearest_tokens``. ValueError if unseen."""
    angles = torch.tensor([math.radians(yaw_deg), math.radians(pitch_deg)], dtype=torch.float64)
    direction = angles_to_direction(*angles)
    index = int(nearest_tokens(cameras.cpu(), grid, direction[None])[0])
    if index < 0:
        raise ValueError(
            f"yaw={yaw_deg:g} pitch={pitch_deg:g}: no view of this crop shows this direction. Choose one that a view "
            "shows, such as the centre of a tile."
        )
    return index, direction


def similarity(rows: Tensor, index: int) -> Tensor:
    """Cosine ``(n)`` of each of the rows ``(n, D)`` with one of them."""
    return functional.cosine_similarity(rows.double(), rows[index].double()[None], dim=-1)


@dataclass(frozen=True)
class AnswerAttention:
    """Attention of an answer to the panorama: the mean over heads, chosen layers, and positions that predict it."""

    weights: Tensor  # ``(V, Q)``, attention to each token in the language model's input, 0 for others
    is_seen: Tensor  # ``(V, Q)`` bool, which tokens are in the language model's input
    layers: tuple[int, ...]  # the chosen layers, counted from 1
    of_layers: int  # number of layers

    @property
    def image_share(self) -> float:
        """Share of the attention that goes to the panorama; the rest goes to text."""
        return float(self.weights.sum())


@torch.inference_mode()
def answer_attention(
    pano: PanoLlava,
    views: Tensor | Cut,
    question: str,
    answer: str,
    *,
    history: Sequence[tuple[str, str]] = (),
    layers: Sequence[int] | None = None,
) -> AnswerAttention:
    """One forward pass over a conversation, and the attention of its last answer to the panorama.

    The end-of-turn token is no part of the answer, unless the answer is empty. The text before the answer is encoded
    with the model's own attention kernel, the answer's few positions with the eager one, which alone returns weights:
    their memory grows with the answer's length, not with the square of the whole length.

    Args:
        views: of the panorama, with their cameras if the crop chooses them.
        history: earlier turns.
        layers: counted from 1; None takes the last third.

    Raises:
        ValueError: there is no such layer, ``model.join`` is ``mean``, or the text does not fit the language model.
    """
    chosen = chosen_layers(len(pano.model.language_blocks), layers)
    encoded = pano.prompt.encode([*history, (question, answer)], image_tokens=pano.image_tokens)
    if problem := pano.prompt.misfit(encoded, pano.limits):
        raise ValueError(f"The question and its answer cannot be encoded: {problem}.")
    ids, device = torch.tensor([encoded.ids]), pano.model.device
    targets = last_answer(encoded.is_target, encoded.ids, pano.prompt.stop_ids)
    start, stop = targets[0] - 1, targets[-1]  # a token is predicted at the position before it
    pixels, cameras = pano.crop.with_cameras(views)
    before = pano.model(
        input_ids=ids[:, :start].to(device),
        attention_mask=torch.ones(1, start, dtype=torch.long, device=device),
        pixel_values=pixels[None].to(device),
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
    weights, seen = torch.zeros(len(cameras), pano.model.vision.tokens_per_view), _seen_tokens(pano)
    is_seen = torch.zeros_like(weights, dtype=torch.bool)
    weights.view(-1)[seen], is_seen.view(-1)[seen] = to_image, True
    return AnswerAttention(weights, is_seen, tuple(chosen), len(pano.model.language_blocks))


def chosen_layers(count: int, layers: Sequence[int] | None) -> list[int]:
    """Layers counted from 1, the last third of `count` where none are named; ValueError where there is no such one."""
    if layers is None:
        return list(range(count - math.ceil(count / 3) + 1, count + 1))
    if not layers or not all(1 <= layer <= count for layer in layers):
        raise ValueError(
            f"layers={list(layers)}: allowed are one or more of 1 to {count}, the language model's layers."
        )
    return sorted(set(layers))


def last_answer(is_target: Sequence[bool], ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Positions of the last answer's tokens, without its end-of-turn token unless it has no other."""
    last = max(position for position, learnt in enumerate(is_target) if learnt)
    answer = list(takewhile(is_target.__getitem__, range(last, -1, -1)))[::-1]
    return [position for position in answer if ids[position] not in stop_ids] or [last]


def whole_length(attention: Tensor, length: int) -> Tensor:
    """Mean over heads of one layer's attention ``(1, heads, n, k)`` as ``(n, length)`` fp32 on the CPU.

    A layer with a sliding window keeps its last keys only; its attention to earlier ones is 0.
    """
    mean = attention[0].float().mean(dim=0).cpu()
    return functional.pad(mean, (length - mean.shape[-1], 0))


def _seen_tokens(pano: PanoLlava) -> Tensor:
    """Numbers of the tokens in the language model's input, counted through all views, in its order."""
    vision, join, cameras = pano.model.vision, pano.model.config.join, pano.crop.camera_rows[None]
    if join == "mean":
        raise ValueError(
            "model.join=mean: the language model sees averages over all views, and no token has a place on the "
            "panorama. Only joins that keep single tokens can be drawn."
        )
    numbers = torch.arange(cameras.shape[1] * vision.tokens_per_view).view(1, cameras.shape[1], -1, 1)
    every = torch.ones(cameras.shape[:2], dtype=torch.bool)
    return fuse(numbers, every, join, cameras, vision.token_grid)[0][:, 0]


def showing_tokens(cameras: Tensor, grid: tuple[int, int], directions: Tensor) -> Tensor:
    """The token of each view with cameras ``(V, C)`` in whose patch a direction ``(n, 3)`` falls: ``(V, n)`` int64.

    Tokens of the `grid` (H', W') count row by row in the view; -1 where the view does not show the direction.
    """
    height, width = grid
    found = []
    for camera in cameras.double():  # all views of a fine panorama at once would take gigabytes
        x, y, is_ahead = locate(camera, directions.double())
        x0, y0, x1, y1 = camera[Column.BOX_X0 : Column.BOX_Y1 + 1]
        inside_x = (x >= x0 - _EDGE_TOLERANCE) & (x <= x1 + _EDGE_TOLERANCE)
        inside_y = (y >= y0 - _EDGE_TOLERANCE) & (y <= y1 + _EDGE_TOLERANCE)
        column = (x * width).floor().long().clamp(0, width - 1)
        row = (y * height).floor().long().clamp(0, height - 1)
        found.append(torch.where(is_ahead & inside_x & inside_y, row * width + column, -1))
    return torch.stack(found)


def nearest_tokens(cameras: Tensor, grid: tuple[int, int], directions: Tensor, showing: Tensor | None = None) -> Tensor:
    """The token for each direction: of the tile in which it lies nearest to the centre, else of the global view.

    Takes the arguments and the result of ``showing_tokens``, which is computed if it is not given. Returns ``(n)``
    int64, counted through all views, -1 where no view looks.
    """
    showing = showing_tokens(cameras, grid, directions) if showing is None else showing
    closeness = view_directions(cameras.double()) @ directions.double().T  # (V, n), cosines
    closeness -= 4 * cameras[:, Column.IS_GLOBAL, None]  # behind every tile
    closeness[showing < 0] = -math.inf
    view = closeness.argmax(dim=0)
    token = showing.gather(0, view[None])[0]
    return torch.where(token < 0, -1, view * math.prod(grid) + token)


class TokenMap:
    """The places on a panorama of the tokens of views with cameras ``(V, C)``; grid (1, 1) is for whole views."""

    def __init__(self, cameras: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> None:
        self.cameras, self.grid, self._size = cameras.cpu(), grid, size
        rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in size), indexing="ij")
        directions = pixel_to_direction(columns, rows, size).flatten(0, 1)
        self._showing = showing_tokens(self.cameras, grid, directions)  # (V, H·W)
        self.nearest = nearest_tokens(self.cameras, grid, directions, self._showing).view(size)
        self.steradians = torch.from_numpy(steradians(size).copy())

    @property
    def is_painted(self) -> Tensor:
        """``(V·Q)`` bool: whether each token is the nearest one to some pixel."""
        painted = torch.zeros(len(self.cameras) * math.prod(self.grid) + 1, dtype=torch.bool)
        painted[self.nearest.flatten()] = True  # -1 marks the last, which is cut off
        return painted[:-1]

    def paint(self, values: Tensor) -> Tensor:
        """Token values ``(V·Q, ...)`` -> ``(H, W, ...)``, each pixel from its nearest token; NaN outside of views."""
        nothing = values.new_full((1, *values.shape[1:]), math.nan)
        return torch.cat((values, nothing))[self.nearest]

    def spread(self, weights: Tensor) -> Tensor:
        """The weight ``(V, Q)`` of each token, divided among the directions of its patch and summed over views.

        Weights ``(H, W)`` are per steradian. Their integral is the sum of the weights, without those of tokens that
        show only the padding of a letterboxed view.
        """
        density = torch.zeros(self.nearest.numel(), dtype=torch.float64)
        area = self.steradians.flatten()
        for showing, own in zip(self._showing, weights.double().cpu(), strict=True):
            shown = showing >= 0
            areas = torch.zeros(len(own), dtype=torch.float64).index_add_(0, showing[shown], area[shown])
            density[shown] += (own / areas.clamp(min=1e-12))[showing[shown]]
        return density.view(self._size)
