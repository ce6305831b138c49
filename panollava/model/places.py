"""Boxes and masks from tokens that keep a grid: the head on each token, and what its outputs say of a panorama.

Every token has a frame of its own view: the direction it looks in, and the axes to its right and upwards. Boxes are
predicted relative to it, so that a pole is like any other place and no yaw is learnt. Shapes use the legend of
``panollava.batch``; ``K`` classes, ``k`` cells along each side of a token, ``M`` boxes of a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional

from panollava.batch import Batch
from panollava.crop.boxes import IGNORED, NOTHING, PictureBoxes, box_frames, iou, iou_matrix, nms
from panollava.crop.cameras import Column, locate, point_directions
from panollava.crop.sphere import direction_to_angles, pixel_to_direction, without_autocast

NEAR = 1.0
"""Largest distance, in tokens to the side and upwards, of a box's centre from a token that predicts the box."""
LEAST_SCORE = 0.1
"""Detections below it are dropped. Average precision needs those of low scores too."""
MOST_BOXES, MOST_TOKENS = 100, 2500
"""Detections of a picture that are kept, as in COCO's evaluation, and those of tokens that they are made of.

A box is predicted by some four tokens of each view that shows it, by 17 in three rows of tiles that overlap by half.
"""
SAME = 0.5
"""Exact IoU above which two detections of a class are of the same thing."""
_PRIOR = 0.02  # initial probability of a class (Lin et al. 2017, Focal loss, section 4.1)
_WIDEST = math.tan(math.radians(179.9) / 4)


@dataclass(frozen=True)
class TokenFrames:
    """Where tokens look."""

    axes: Tensor  # (..., Q, 3, 3); rows are the unit vectors to the right, up and forward
    steps: Tensor  # (..., Q, 2), tangents of the angles to the next token to the right and upwards
    is_shown: Tensor  # (..., Q) bool, False in the padding of a letterboxed view

    def at(self, place: tuple[Tensor, ...]) -> TokenFrames:
        """The frames ``(T,)`` of some tokens."""
        return TokenFrames(self.axes[place], self.steps[place], self.is_shown[place])

    def on_cpu(self) -> TokenFrames:
        """The same on the CPU, where float64 is always available."""
        return TokenFrames(self.axes.cpu(), self.steps.cpu(), self.is_shown.cpu())


def token_frames(cameras: Tensor, grid: tuple[int, int]) -> TokenFrames:
    """The frames of the tokens of cameras ``(..., C)`` with a grid (H', W') of them."""
    height, width = grid
    x = torch.arange(2 * width + 1, device=cameras.device, dtype=cameras.dtype) / (2 * width)
    y = torch.arange(2 * height + 1, device=cameras.device, dtype=cameras.dtype) / (2 * height)
    points = point_directions(cameras, x, y)  # centres at odd places, edges at even ones
    forward = points[..., 1::2, 1::2, :]
    across = points[..., 1::2, 2::2, :] - points[..., 1::2, :-1:2, :]
    upwards = points[..., :-1:2, 1::2, :] - points[..., 2::2, 1::2, :]
    right = functional.normalize(across - (across * forward).sum(-1, keepdim=True) * forward, dim=-1)
    axes = torch.stack((right, torch.linalg.cross(forward, right), forward), dim=-2)
    steps = torch.stack((across.norm(dim=-1), upwards.norm(dim=-1)), dim=-1)
    left, top, end, bottom = cameras[..., Column.BOX_X0 : Column.BOX_Y1 + 1].unbind(-1)
    is_across = (x[1::2] > left[..., None]) & (x[1::2] < end[..., None])
    is_down = (y[1::2] > top[..., None]) & (y[1::2] < bottom[..., None])
    is_shown = is_down[..., :, None] & is_across[..., None, :]
    return TokenFrames(axes.flatten(-4, -3), steps.flatten(-3, -2), is_shown.flatten(-2))


def used_views(batch: Batch, global_view: bool) -> Tensor:
    """Which views ``(B, V)`` of a batch the head reads: not those that pad it, and the global view if it is wanted."""
    return batch.view_mask if global_view else batch.view_mask & (batch.cameras[..., Column.IS_GLOBAL] == 0)


@dataclass(frozen=True)
class PlaceOutputs:
    """What a head says of panoramas."""

    scores: Tensor  # (B, V, Q, K) logits
    boxes: Tensor  # (B, V, Q, 4), see ``to_tokens``; 6 with a roll
    cells: Tensor  # (B, V, H'k, W'k, K + 1) logits; the last is of no class


class PlaceHead(nn.Module):
    """Scores, boxes and cells of each token, by a network that all tokens share.

    Args:
        width: of the tokens.
        classes: ``K``.
        hidden: width of the network.
        cells: ``k``.
        rolls: whether boxes have a roll.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        hidden: Annotated[int, Ge(1)] = 256,
        cells: Annotated[int, Ge(1)] = 4,
        rolls: bool = False,
    ) -> None:
        super().__init__()
        self.classes, self.cells = classes, cells
        self.parts = (classes, 6 if rolls else 4, cells * cells * (classes + 1))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width + 3, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.output = nn.Linear(hidden, sum(self.parts))
        with torch.no_grad():
            self.output.bias[:classes] = -math.log(1 / _PRIOR - 1)

    @classmethod
    def for_grid(
        cls, width: int, classes: int, grid: tuple[int, int], *, hidden: int, mask_size: int, roll: bool
    ) -> PlaceHead:
        """A head for tokens of a grid (H', W'), with at least `mask_size` cells along each side of a view."""
        return cls(width, classes, hidden=hidden, cells=max(1, -(-mask_size // max(grid))), rolls=roll)

    def forward(self, tokens: Tensor, frames: TokenFrames, grid: tuple[int, int]) -> PlaceOutputs:
        """Outputs of tokens ``(B, V, Q, Dr)`` with frames ``(B, V, Q)`` of a grid (H', W')."""
        tilt = frames.axes[..., 1].to(tokens.dtype)  # (B, V, Q, 3), the world's upward axis as each token sees it
        found = self.output(self.layers(torch.cat((self.norm(tokens), tilt), dim=-1)))
        scores, boxes, cells = found.float().split(self.parts, dim=-1)
        (height, width), side = grid, self.cells
        cells = cells.unflatten(-1, (side, side, self.classes + 1)).unflatten(2, (height, width))
        cells = cells.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)
        return PlaceOutputs(scores, boxes, cells)


@without_autocast
def to_tokens(boxes: Tensor, frames: TokenFrames) -> tuple[Tensor, Tensor]:
    """Boxes as tokens predict them, and how far their centres are from the tokens.

    The numbers are the centre in the token's tangent plane, in tokens to the right and upwards; the logarithms of the
    tangents of a quarter of both extents; and, for a roll, cosine and sine of twice the angle from the token's right
    axis, moved to the centre along the great circle, to the box's.

    Args:
        boxes: ``(..., M, 5)`` degrees.
        frames: ``(..., Q)``.

    Returns:
        ``(..., M, Q, 6)``, and ``(..., M, Q)`` the larger of the distances to the side and upwards in tokens, infinite
        where the box is behind the token.
    """
    local = torch.einsum("...mac,...qbc->...mqab", _frames(boxes), frames.axes)  # box axes in the tokens' frames
    x, y, forward = local[..., 2, :].unbind(-1)
    is_ahead = forward > 0.1
    forward = torch.where(is_ahead, forward, 1.0)
    centre = torch.stack((x / forward, y / forward), dim=-1) / frames.steps[..., None, :, :]
    extents = torch.log(torch.tan(torch.deg2rad(boxes[..., 2:4]) / 4))[..., None, :].expand(centre.shape)
    right, up = _transported(local[..., 2, :])
    side = local[..., 0, :]
    angle = 2 * torch.atan2((side * up).sum(-1), (side * right).sum(-1))
    far = torch.where(is_ahead, centre.abs().amax(dim=-1), math.inf)
    return torch.cat((centre, extents, torch.cos(angle)[..., None], torch.sin(angle)[..., None]), dim=-1), far


@without_autocast
def from_tokens(values: Tensor, frames: TokenFrames) -> Tensor:
    """Boxes ``(..., Q, 5)`` in degrees of predictions ``(..., Q, 4)`` or ``(..., Q, 6)``; inverts ``to_tokens``."""
    x, y = (values[..., :2].clamp(-8, 8) * frames.steps.to(values.dtype)).unbind(-1)
    local = functional.normalize(torch.stack((x, y, torch.ones_like(x)), dim=-1), dim=-1)
    centre = torch.einsum("...qb,...qbc->...qc", local, frames.axes.to(values.dtype))
    yaw, pitch = torch.rad2deg(torch.stack(direction_to_angles(centre))).unbind(0)
    extents = 4 * torch.rad2deg(torch.atan(torch.exp(values[..., 2:4]).clamp(1e-4, _WIDEST)))
    roll = torch.zeros_like(yaw)
    if values.shape[-1] > 4:
        angle = torch.atan2(values[..., 5], values[..., 4]) / 2
        one, other = _transported(local)
        axis = torch.cos(angle)[..., None] * one + torch.sin(angle)[..., None] * other
        axis = torch.einsum("...qb,...qbc->...qc", axis, frames.axes.to(values.dtype))
        level = _frames(torch.stack((yaw, pitch, yaw, yaw, roll), dim=-1))
        across, along = (axis[..., None, :] * level[..., :2, :]).sum(-1).unbind(-1)
        roll = torch.rad2deg(torch.atan2(along, across))
    return torch.cat((torch.stack((yaw, pitch), dim=-1), extents, roll[..., None]), dim=-1)


def _transported(centres: Tensor) -> tuple[Tensor, Tensor]:
    """The right and upward axis of a frame, moved along the great circle to unit vectors ``(..., 3)`` in this frame."""
    x, y, forward = centres.unbind(-1)
    middle = torch.stack((x, y, forward + 1), dim=-1) / (forward + 1).clamp(min=1e-6)[..., None]
    right, up = centres.new_tensor([1.0, 0.0, 0.0]), centres.new_tensor([0.0, 1.0, 0.0])
    return right - x[..., None] * middle, up - y[..., None] * middle


def _frames(boxes: Tensor) -> Tensor:
    flat = boxes.detach().cpu().double().reshape(-1, 5).numpy()
    return torch.from_numpy(box_frames(flat)).to(boxes).reshape(*boxes.shape[:-1], 3, 3)


@dataclass(frozen=True)
class Assigned:
    """The tokens that are to predict a box; ``T`` of them in a batch."""

    place: Tensor  # (T, 3) int64: picture, view, token
    classes: Tensor  # (T,)
    boxes: Tensor  # (T, 5) degrees
    values: Tensor  # (T, 6), see ``to_tokens``


def assign(boxes: Tensor, classes: Tensor, frames: TokenFrames, view_mask: Tensor) -> Assigned:
    """Gives each box to the tokens near its centre, and each token at most one box, the nearest.

    Args:
        boxes: ``(B, M, 5)`` degrees.
        classes: ``(B, M)``, -1 where a row only fills the batch.
        frames: ``(B, V, Q)``.
        view_mask: ``(B, V)`` bool.
    """
    tokens = frames.axes.shape[2]
    flat = TokenFrames(frames.axes.flatten(1, 2), frames.steps.flatten(1, 2), frames.is_shown.flatten(1, 2))
    values, far = to_tokens(boxes, flat)  # (B, M, V·Q, 6), (B, M, V·Q)
    is_open = (classes >= 0)[:, :, None] & (flat.is_shown & view_mask.repeat_interleave(tokens, dim=1))[:, None]
    nearest = torch.where(is_open & (far <= NEAR), far, math.inf).min(dim=1)
    picture, token = torch.nonzero(nearest.values < math.inf, as_tuple=True)
    box = nearest.indices[picture, token]
    place = torch.stack((picture, token // tokens, token % tokens), dim=1)
    return Assigned(place, classes[picture, box], boxes[picture, box], values[picture, box, token])


def place_losses(
    outputs: PlaceOutputs, assigned: Assigned, frames: TokenFrames, view_mask: Tensor, cells: Tensor
) -> dict[str, Tensor]:
    """Summed losses of scores and boxes, over tokens with a box, and of cells, over those that are labelled.

    The target of a score is the exact IoU of the token's box, so that scores rank detections by how good they are.

    Args:
        outputs, assigned, frames: of a batch.
        view_mask: ``(B, V)`` bool.
        cells: ``(B, V, H'k, W'k)``, see ``PlaceTargets``.

    Source: Li et al. 2020, Generalized focal loss, equation 6.
    """
    at = assigned.place.unbind(1)
    predicted = outputs.boxes[at]  # (T, 4 or 6)
    with torch.no_grad():
        found = from_tokens(predicted.detach().cpu().double(), frames.at(at).on_cpu()).numpy()
        quality = torch.from_numpy(iou(found, assigned.boxes.cpu().double().numpy())).to(outputs.scores)
    target = torch.zeros_like(outputs.scores)
    target[(*at, assigned.classes)] = quality
    error = (target - outputs.scores.detach().sigmoid()).square()
    counted = (view_mask[..., None] & frames.is_shown)[..., None]
    scores = functional.binary_cross_entropy_with_logits(outputs.scores, target, reduction="none") * error * counted
    boxes = functional.smooth_l1_loss(predicted, assigned.values[:, : predicted.shape[1]], reduction="sum", beta=0.1)
    labels = cells.long()
    labels = torch.where(labels == NOTHING, outputs.cells.shape[-1] - 1, labels)
    labels = labels.masked_fill(~view_mask[..., None, None], IGNORED).flatten()
    masks = functional.cross_entropy(outputs.cells.flatten(0, -2), labels, ignore_index=IGNORED, reduction="sum")
    return {"score": scores.sum(), "box": boxes, "mask": masks}


def found_boxes(outputs: PlaceOutputs, frames: TokenFrames, view_mask: Tensor) -> list[PictureBoxes]:
    """The detections of each picture, best first: those of all views, of which those of one thing are made one.

    Within a class, detections that overlap a better one by more than ``SAME`` are left out, and the better one becomes
    their mean, weighted by score and by overlap.

    Source: Gidaris and Komodakis 2015, Object detection via a multi-region and semantic segmentation-aware CNN model,
        section 5 (box voting).
    """
    boxes = from_tokens(outputs.boxes.cpu().double(), frames.on_cpu()).numpy()
    scores = outputs.scores.cpu().double().sigmoid().numpy()
    is_open = (view_mask[..., None] & frames.is_shown).cpu().numpy()
    found = []
    for own_boxes, own_scores, is_own in zip(boxes, scores, is_open, strict=True):
        open_scores = np.where(is_own[..., None], own_scores, 0).reshape(-1, own_scores.shape[-1])
        best = np.argsort(-open_scores, axis=None, kind="stable")[:MOST_TOKENS]
        place, number = np.unravel_index(best[open_scores.flat[best] >= LEAST_SCORE], open_scores.shape)
        flat, value = own_boxes.reshape(-1, 5)[place], open_scores[place, number]
        kept = nms(flat, value, number, SAME, count=MOST_BOXES)
        voted = np.array([_voted(flat[at], flat, value * (number == number[at])) for at in kept]).reshape(-1, 5)
        found.append(PictureBoxes(voted, number[kept], value[kept]))
    return found


def _voted(box: np.ndarray, boxes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of the boxes ``(N, 5)`` that overlap a box ``(5,)`` by more than ``SAME``; its roll stays."""
    rows = np.flatnonzero(weights)
    overlap = iou_matrix(box[None], boxes[rows])[0]
    rows, overlap = rows[overlap > SAME], overlap[overlap > SAME]
    if len(rows) < 2:
        return box
    weight = weights[rows] * overlap
    x, y, z = weight @ box_frames(boxes[rows])[:, 2]
    extents = np.exp(weight @ np.log(np.tan(np.radians(boxes[rows, 2:4]) / 4)) / weight.sum())
    centre = np.degrees([math.atan2(x, z), math.atan2(y, math.hypot(x, z))])
    return np.concatenate([centre, np.degrees(4 * np.arctan(extents)), box[4:]])


class Painter:
    """Paints the class of each pixel of panoramas of one size from the cells of all views that show it.

    The view of the whole panorama, whose cells are coarse, paints only what no other view shows.

    Args:
        cameras: ``(V, C)``.
        size: (H, W) of the panorama.
    """

    def __init__(self, cameras: Tensor, size: tuple[int, int]) -> None:
        self.size = size
        rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in size), indexing="ij")
        directions = pixel_to_direction(columns, rows, size).flatten(0, 1)
        self._is_global = cameras[:, Column.IS_GLOBAL].tolist()
        self._places = []  # of each view: the pixels that it shows, and their places in it from -1 to 1
        for camera in cameras.cpu().double():
            x, y, is_ahead = (part[0] for part in locate(camera[None], directions[None]))
            left, top, right, bottom = camera[Column.BOX_X0 : Column.BOX_Y1 + 1]
            shown = torch.nonzero(is_ahead & (x >= left) & (x <= right) & (y >= top) & (y <= bottom)).flatten()
            self._places.append((shown, (torch.stack((x, y), dim=-1)[shown] * 2 - 1).float()))

    def __call__(self, cells: Tensor, view_mask: Tensor) -> np.ndarray:
        """Class of each pixel ``(H, W)`` int16, ``NOTHING`` where it has none, of cells ``(V, H'k, W'k, K + 1)``."""
        total = torch.zeros(math.prod(self.size), cells.shape[-1], device=cells.device)
        order = sorted(range(len(self._places)), key=lambda view: self._is_global[view])  # the others first
        for view in order:
            pixels, places = self._places[view]
            if self._is_global[view]:
                is_left = total.sum(dim=-1).cpu()[pixels] == 0
                pixels, places = pixels[is_left], places[is_left]
            if not view_mask[view] or not len(pixels):
                continue
            maps = cells[view].float().permute(2, 0, 1)[None]
            grid = places.to(cells.device)[None, None]
            values = functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)[0, :, 0].T
            total.index_add_(0, pixels.to(cells.device), values.softmax(dim=-1))
        none = cells.shape[-1] - 1
        best = torch.where(total.sum(dim=-1) > 0, total.argmax(dim=-1), none).view(self.size).cpu().numpy()
        return np.where(best == none, NOTHING, best).astype(np.int16)
