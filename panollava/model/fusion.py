"""Fusion: how view tokens join, how many there are, and how they take the place of the placeholders."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from panollava.model.stitch import check_ring, kept_columns

Join = Literal["concat", "mean", "stitch", "stitch_nearest"]
"""``concat`` lays all tokens one after the other. ``stitch`` leaves out the columns of a ring's tiles that lie wholly
nearer to a neighbour's centre; ``stitch_nearest`` those whose own centre does, which is what ``stitch`` did up to
version 0.1 and leaves gaps. All three go view after view, a global one first, and row by row in each. ``mean`` averages
the views token by token, which costs as many tokens as one view and tells no longer which view said what."""

Grid = tuple[int, int]


def image_token_count(cameras: Tensor, tokens_per_view: int, join: str, grid: Grid | None) -> int:
    """Placeholders that a panorama takes in the text; the one place that knows.

    Args:
        cameras: ``(V, C)`` of its real views.
        tokens_per_view: ``Q``.
        join: how views join (see ``Join``).
        grid: ``(H', W')`` of a view's tokens, row by row, or None where they keep none.

    Raises:
        ValueError: there is no such join, or the crop or the resampler has no use for it.
    """
    if join == "mean":
        return tokens_per_view
    every = torch.ones(1, len(cameras), dtype=torch.bool)
    return int(_kept(cameras[None], every, tokens_per_view, join, grid).sum())


def fuse(tokens: Tensor, view_mask: Tensor, join: str, cameras: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor]:
    """Join the view tokens of each panorama.

    Args:
        tokens: ``(B, V, Q, Dl)``.
        view_mask: ``(B, V)`` bool.
        join: see ``image_token_count``, like the grid.
        cameras: ``(B, V, C)``.
        grid: ``(H', W')`` or None.

    Returns:
        All image tokens ``(sum of counts, Dl)``, panorama after panorama, and the counts ``(B,)``.

    Raises:
        ValueError: as ``image_token_count``.
    """
    if join == "mean":
        share = view_mask / view_mask.sum(dim=1, keepdim=True)
        # Views that only pad a batch may hold anything, so they are replaced before they are weighted.
        real = tokens.masked_fill(~view_mask[..., None, None], 0.0)
        mean = (real * share[..., None, None].to(tokens.dtype)).sum(dim=1)
        return mean.flatten(0, 1), torch.full_like(view_mask[:, 0], tokens.shape[2], dtype=torch.int64)
    kept = _kept(cameras, view_mask, tokens.shape[2], join, grid).to(tokens.device)
    return tokens[kept], kept.sum(dim=(1, 2))


def check_join(cameras: Tensor, join: str) -> None:
    """Refuses a crop that cannot be joined so, of which no more is known than the cameras ``(V, C)`` of its views.

    Raises:
        ValueError: there is no such join, or the crop has no use for it.
    """
    _check_exists(join)
    if join.startswith("stitch"):
        check_ring(cameras[None], torch.ones(1, len(cameras), dtype=torch.bool))


def _kept(cameras: Tensor, view_mask: Tensor, tokens_per_view: int, join: str, grid: Grid | None) -> Tensor:
    """Which tokens ``(B, V, Q)`` of views the language model gets to see."""
    _check_exists(join)
    if join == "concat":
        return view_mask[..., None].expand(-1, -1, tokens_per_view)
    if grid is None:
        raise ValueError(
            f"model.join={join} drops columns of tokens, and the tokens of this resampler stand in no grid. Use "
            "model.join=concat, which keeps every token, or a resampler that keeps a grid, such as resampler=mlp."
        )
    columns = kept_columns(cameras, view_mask, grid[1], nearest=join == "stitch_nearest")  # (B, V, W')
    return columns[:, :, None, :].expand(-1, -1, grid[0], -1).flatten(2)


def insert_image_tokens(embeddings: Tensor, is_image: Tensor, image_tokens: Tensor, counts: Tensor) -> Tensor:
    """Put image tokens in the place of the placeholders.

    Args:
        embeddings: ``(B, T, Dl)`` of the text, anything at the placeholders.
        is_image: ``(B, T)`` bool, True at placeholders.
        image_tokens: ``(sum of counts, Dl)``.
        counts: ``(B,)`` image tokens of each panorama.

    Returns:
        ``(B, T, Dl)``.

    Raises:
        ValueError: a text has another number of placeholders than its panorama has tokens.
    """
    placeholders = is_image.sum(dim=1)
    if not bool((placeholders == counts).all()):
        raise ValueError(
            f"The texts have {placeholders.tolist()} image placeholders, their panoramas {counts.tolist()} image "
            "tokens. Encode the text with the number that image_token_count gives for the same crop, resampler and "
            "join."
        )
    return embeddings.masked_scatter(is_image[..., None], image_tokens.to(embeddings.dtype))


def _check_exists(join: str) -> None:
    if join not in get_args(Join):
        raise ValueError(f"model.join={join!r} does not exist. Available: {', '.join(get_args(Join))}.")
