"""Fusion: how view tokens join, how many there are, and how they take the place of the placeholders."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Join = Literal["concat"]


def image_token_count(cameras: Tensor, tokens_per_view: int, join: Join = "concat") -> int:
    """Placeholders that a panorama takes in the text; the one place that knows.

    Args:
        cameras: ``(V, C)`` of its real views.
        tokens_per_view: ``Q``.
        join: how views join; ``concat`` lays them one after the other.

    Raises:
        ValueError: there is no such join.
    """
    _check(join)
    return cameras.shape[0] * tokens_per_view


def fuse(tokens: Tensor, view_mask: Tensor, join: Join = "concat") -> tuple[Tensor, Tensor]:
    """Join the view tokens of each panorama.

    Args:
        tokens: ``(B, V, Q, Dl)``.
        view_mask: ``(B, V)`` bool.
        join: see ``image_token_count``.

    Returns:
        All image tokens ``(sum of counts, Dl)``, panorama after panorama, and the counts ``(B,)``.

    Raises:
        ValueError: there is no such join.
    """
    _check(join)
    return tokens[view_mask].flatten(0, 1), view_mask.sum(dim=1) * tokens.shape[2]


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
            f"The texts have {placeholders.tolist()} image placeholders, their panoramas {counts.tolist()} "
            "image "
            "tokens. Encode the text with the number that image_token_count gives for the same crop and "
            "resampler."
        )
    return embeddings.masked_scatter(is_image[..., None], image_tokens.to(embeddings.dtype))


def _check(join: str) -> None:
    if join != "concat":
        raise ValueError(f"model.join={join!r} does not exist. Available: concat.")
