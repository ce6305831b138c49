"""Fusion: which view tokens join, how many there are, and how they replace the placeholders in the text."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from panollava.crop.cameras import Column, point_directions, token_directions
from panollava.crop.rings import neighbour_pairs
from panollava.crop.sphere import direction_to_angles
from panollava.crop.strategies import choosing_class

Join = Literal["concat", "mean", "stitch", "stitch_nearest"]
"""``concat`` keeps all tokens. ``stitch`` drops the columns of a ring's tiles that lie wholly nearer to a neighbour's
centre; ``stitch_nearest`` those whose own centre does, which is what ``stitch`` did up to version 0.1 and leaves gaps.
All three order tokens by view, a global one first, and by row in each. ``mean`` averages the views token by token: it
costs as many tokens as one view and loses which view each came from."""

Grid = tuple[int, int]

_ANGLE_TOLERANCE_RAD = 1e-4  # angles closer than this are the same: camera rows are float32
_EDGE_TOLERANCE = 1e-6
"""Share of half a step that counts as nothing. A column that reaches into its tile's half step by less than this is
left out. With ``nearest``, the interval of kept yaws is shifted by it, so that of two columns whose centres lie on the
two edges the one on the left is kept."""

_WAY_OUT = "Use model.join=concat, which keeps every token"


def image_token_count(cameras: Tensor, tokens_per_view: int, join: str, grid: Grid | None) -> int:
    """Number of placeholders that a panorama of cameras ``(V, C)`` takes in the text.

    ``grid`` is the ``(H', W')`` of a view's tokens, row by row, or None where they have no grid. Raises ValueError if
    there is no such join, or it needs another crop or resampler.
    """
    if join == "mean":
        return tokens_per_view
    every = torch.ones(1, len(cameras), dtype=torch.bool)
    return int(_kept(cameras[None], every, tokens_per_view, join, grid).sum())


def fuse(tokens: Tensor, view_mask: Tensor, join: str, cameras: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor]:
    """Joins tokens ``(B, V, Q, Dl)`` of views, with their mask ``(B, V)`` and cameras ``(B, V, C)``.

    Gives all image tokens ``(sum of counts, Dl)``, panorama after panorama, and the counts ``(B,)``; grid and errors as
    for ``image_token_count``.
    """
    if join == "mean":
        share = view_mask / view_mask.sum(dim=1, keepdim=True)  # (B, V)
        # Padding views may hold anything, so they are replaced before they are weighted.
        real = tokens.masked_fill(~view_mask[..., None, None], 0.0)
        mean = (real * share[..., None, None].to(tokens.dtype)).sum(dim=1)  # (B, Q, Dl)
        return mean.flatten(0, 1), torch.full_like(view_mask[:, 0], tokens.shape[2], dtype=torch.int64)
    kept = _kept(cameras, view_mask, tokens.shape[2], join, grid).to(tokens.device)  # (B, V, Q)
    return tokens[kept], kept.sum(dim=(1, 2))


def insert_image_tokens(embeddings: Tensor, is_image: Tensor, image_tokens: Tensor, counts: Tensor) -> Tensor:
    """Replaces placeholders, True in ``is_image`` ``(B, T)``, in ``(B, T, Dl)`` embeddings by what ``fuse`` gave."""
    placeholders = is_image.sum(dim=1)
    if not bool((placeholders == counts).all()):
        raise ValueError(
            f"The texts have {placeholders.tolist()} image placeholders, their panoramas {counts.tolist()} image "
            "tokens. Encode the text with the number that image_token_count gives for the same crop, resampler and "
            "join."
        )
    return embeddings.masked_scatter(is_image[..., None], image_tokens.to(embeddings.dtype))


def check_join(cameras: Tensor, join: str) -> None:
    """Raises ValueError if there is no such join, or it needs another crop than that of the cameras ``(V, C)``."""
    _check_exists(join)
    if join.startswith("stitch"):
        _check_ring(cameras[None], torch.ones(1, len(cameras), dtype=torch.bool))


def crop_misfits(crop: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    """What of a model cannot use views that a crop chooses for each panorama, one line for each key."""
    chosen = f"crop={crop.get('type')} chooses tiles that are in"
    found, join, resampler = [], str(model.get("join")), model.get("resampler") or {}
    if join.startswith("stitch"):
        found.append(
            f"model.join={join} drops the columns of tokens that the tiles of one ring see twice, and {chosen} "
            "no ring. Use model.join=concat, or a crop of one ring, such as crop=anyres_e2p."
        )
    if resampler.get("scan") == "ring":
        found.append(
            f"model.resampler.scan=ring reads the tiles of a closed ring, and {chosen} none. "
            "Use model.resampler.scan=view, or a crop of rings, such as crop=anyres_e2p."
        )
    # Last, as it imports the package of a crop from outside.
    return found if found and "type" in crop and choosing_class(crop["type"]) is not None else []


def _check_exists(join: str) -> None:
    if join not in get_args(Join):
        raise ValueError(f"model.join={join!r} does not exist. Available: {', '.join(get_args(Join))}.")


def _kept(cameras: Tensor, view_mask: Tensor, tokens_per_view: int, join: str, grid: Grid | None) -> Tensor:
    """Which tokens ``(B, V, Q)`` of views the language model gets."""
    _check_exists(join)
    if join == "concat":
        return view_mask[..., None].expand(-1, -1, tokens_per_view)
    if grid is None:
        raise ValueError(
            f"model.join={join} drops columns of tokens, and the tokens of this resampler have no grid. Use "
            "model.join=concat, which keeps every token, or a resampler that keeps a grid, such as resampler=mlp."
        )
    columns = kept_columns(cameras, view_mask, grid[1], nearest=join == "stitch_nearest")  # (B, V, W')
    return columns[:, :, None, :].expand(-1, -1, grid[0], -1).flatten(2)


def kept_columns(cameras: Tensor, view_mask: Tensor, width: int, *, nearest: bool = False) -> Tensor:
    """Columns of tokens that each view keeps.

    The half step of a tile in a ring of n is the interval of yaws within 180/n degrees of its own: the directions
    that are nearer to its centre than to a neighbour's. A tile keeps the columns whose interval of yaws reaches into
    its half step, so that every direction is in at least one kept column. Where columns lie across the edge of two half
    steps, directions near it are in two. At the horizon the columns of a tile have one interval of yaws each, from top
    to bottom, for any projection. Global views keep everything, padding views nothing.

    Args:
        cameras: ``(B, V, C)``, with a mask ``(B, V)``.
        width: ``W'``.
        nearest: keep the columns whose *centre* lies in the half step, as ``join=stitch`` did up to version 0.1. No
            direction is shown twice, but those near the edge of two half steps may be in no kept column.

    Returns:
        ``(B, V, W')`` bool, on the CPU.

    Raises:
        ValueError: the tiles are no such ring, or, with ``nearest``, so close that there is no column to keep.
    """
    cameras, view_mask = cameras.detach().cpu().double(), view_mask.cpu()
    _check_ring(cameras, view_mask)
    is_tile = _tiles(cameras, view_mask)
    yaw = cameras[..., Column.YAW, None]
    centre = _longitude(token_directions(cameras, (1, width)))  # (B, V, W')
    offset = torch.remainder(centre - yaw + math.pi, 2 * math.pi) - math.pi  # (B, V, W'), from the tile's own yaw
    half_step = _step(is_tile)[:, None, None] / 2
    margin = _EDGE_TOLERANCE * half_step
    if nearest:
        is_own = (offset >= -half_step - margin) & (offset < half_step - margin)
    else:
        edges = _longitude(  # (B, V, W' + 1)
            point_directions(cameras, torch.linspace(0, 1, width + 1).double(), cameras.new_full((1,), 0.5))
        )
        # Each edge is measured from the centre of its column: from the tile's yaw, 180 degrees would be -180 as well.
        to_left = torch.remainder(centre - edges[..., :-1], 2 * math.pi)
        to_right = torch.remainder(edges[..., 1:] - centre, 2 * math.pi)
        is_own = (offset - to_left < half_step - margin) & (offset + to_right > -half_step + margin)
    if not bool((is_own.any(dim=-1) | ~is_tile).all()):
        raise ValueError(
            f"model.join=stitch_nearest has nothing to keep: the ring's {int(is_tile.sum(dim=1).max())} tiles have "
            f"{width} columns of tokens each, and none of them is nearer to its own tile's centre than to a "
            f"neighbour's. {_WAY_OUT}, model.join=stitch, or a lower crop.overlap."
        )
    return torch.where(is_tile[..., None], is_own, view_mask[..., None])


def _check_ring(cameras: Tensor, view_mask: Tensor) -> None:
    """Raises ValueError for crops whose tiles are not one closed ring at the horizon; crops without tiles pass."""
    is_tile = _tiles(cameras, view_mask)
    pitch, roll = cameras[..., Column.PITCH], cameras[..., Column.ROLL]
    reason = ""
    if bool((is_tile & (roll.abs() > _ANGLE_TOLERANCE_RAD)).any()):
        reason = "are rolled"
    elif bool((is_tile & (pitch.abs() > _ANGLE_TOLERANCE_RAD)).any()):
        rows = sorted({f"{math.degrees(angle):.0f}" for angle in pitch[is_tile].tolist()}, key=float)
        reason = f"look to pitches of {', '.join(rows)} degrees"
    elif any(_differ(cameras[..., column], is_tile) for column in (Column.PROJECTION, Column.H_EXTENT)):
        reason = "are not all of one projection and width"
    elif not bool((_has_even_step(cameras, view_mask) | ~is_tile).all()):
        reason = "do not close the ring in equal steps that leave no gap"
    if reason:
        raise ValueError(
            "model.join=stitch drops the columns of tokens that the tiles of one closed ring at the horizon see twice, "
            f"but the tiles of this crop {reason}. {_WAY_OUT}, or a crop of one ring, such as crop=anyres_e2p with "
            "crop.pitch_rows_deg=[0]."
        )


def _has_even_step(cameras: Tensor, view_mask: Tensor) -> Tensor:
    """Which tiles ``(B, V)`` meet or overlap their right neighbour, 1/n of the circle away; a strip alone itself."""
    is_tile = _tiles(cameras, view_mask)
    step = _step(is_tile)
    is_alone = is_tile.sum(dim=1, keepdim=True) == 1
    is_even = is_alone & (cameras[..., Column.H_EXTENT] > 2 * math.pi - _ANGLE_TOLERANCE_RAD)
    sample, view, neighbour = neighbour_pairs(cameras, view_mask).unbind(1)
    yaw = cameras[..., Column.YAW]
    distance = torch.remainder(yaw[sample, neighbour] - yaw[sample, view], 2 * math.pi)
    is_even[sample, view] = (distance - step[sample]).abs() < _ANGLE_TOLERANCE_RAD
    return is_even


def _tiles(cameras: Tensor, view_mask: Tensor) -> Tensor:
    return view_mask & (cameras[..., Column.IS_GLOBAL] == 0)


def _step(is_tile: Tensor) -> Tensor:
    """Yaw ``(B)`` from each tile to the next in an even ring of them all."""
    return 2 * math.pi / is_tile.sum(dim=1).clamp(min=1).double()


def _differ(values: Tensor, is_tile: Tensor) -> bool:
    """Whether values ``(B, V)`` differ between the tiles of some panorama."""
    highest = values.masked_fill(~is_tile, -math.inf).amax(dim=1)
    lowest = values.masked_fill(~is_tile, math.inf).amin(dim=1)
    return bool((highest - lowest > _ANGLE_TOLERANCE_RAD).any())


def _longitude(directions: Tensor) -> Tensor:
    """Longitudes ``(..., W)`` of one row of directions ``(..., 1, W, 3)``."""
    return direction_to_angles(directions)[0].squeeze(-2)
