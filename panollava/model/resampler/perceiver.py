"""Perceiver resampler: learnt latents attend to the features of their view and to themselves in every layer."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from panollava.model.layers import Attention, FeedForward, LayerScale, Shortcut, check_heads, token_sides


class PerceiverResampler(nn.Module):
    """Latents through layers of one attention, to features and latents together, and a feed-forward network.

    The patches' positions are known only from the encoder's own position code in their features. (The paper adds a
    code of time to the frames of a film, none of place.) The norm at the end gives tokens of unit scale for any
    encoder; each layer norms the features, for the same reason.

    With ``shortcut`` each latent has a rectangle of the view, and a linear map of its mean feature is added to it
    before the first layer. Tokens then have the grid of these rectangles; without it they have none. A latent may still
    read anything anywhere. Up to version 0.2 there was no shortcut. With ``layer_scale`` what a branch adds beside a
    shortcut has a layer scale.

    Source: Alayrac et al., "Flamingo", 2022 (arXiv:2204.14198), section 3.1 and appendix A.1.1; with a GELU, as
    Jaegle et al., "Perceiver", 2021 (arXiv:2103.03206), where it has a squared ReLU.

    Each of the ``latents`` gives one token for each view. Raises ValueError if ``width`` does not divide into heads.
    """

    def __init__(
        self,
        *,
        input_width: Annotated[int, Interval(ge=1)],
        output_width: Annotated[int, Interval(ge=1)],
        latents: Annotated[int, Interval(ge=1, le=4096)] = 64,
        depth: Annotated[int, Interval(ge=1, le=64)] = 6,
        width: Annotated[int, Interval(ge=1, le=65536)] = 1024,
        heads: Annotated[int, Interval(ge=1, le=1024)] = 16,
        dropout: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.0,
        shortcut: bool = True,
        layer_scale: bool = True,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.latents = nn.Parameter(torch.empty(latents, width))
        nn.init.normal_(self.latents, std=0.02)
        self.input_projection = nn.Linear(input_width, width, bias=False)
        self.layers = nn.ModuleList(
            _Layer(width, heads, residuals=2 * depth, dropout=dropout, scaled=shortcut and layer_scale)
            for _ in range(depth)
        )
        self.output_projection = nn.Linear(width, output_width)
        self.norm = nn.LayerNorm(output_width)
        self.shortcut = Shortcut(input_width, width) if shortcut else None

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        return None if self.shortcut is None else token_sides(len(self.latents))

    def token_count(self, grid: tuple[int, int]) -> int:
        return len(self.latents)

    def forward(self, features: Tensor, *, grid: tuple[int, int], view_mask: Tensor, cameras: Tensor) -> Tensor:
        """``(B, V, N, Dv)`` -> ``(B, V, Q, Dr)``, each view by itself."""
        patches = features.flatten(0, 1)  # (B·V, N, Dv)
        context = self.input_projection(patches)  # (B·V, N, D)
        tokens = self.latents.expand(len(context), -1, -1)  # (B·V, Q, D)
        if self.shortcut is not None:
            tokens = tokens + self.shortcut(patches, grid, token_sides(len(self.latents)))
        for layer in self.layers:
            tokens = layer(tokens, context)
        return self.norm(self.output_projection(tokens)).unflatten(0, features.shape[:2])


class _Layer(nn.Module):
    """One layer; both branches are added to the latents."""

    def __init__(self, width: int, heads: int, *, residuals: int, dropout: float, scaled: bool) -> None:
        super().__init__()
        self.feature_norm, self.latent_norm, self.feed_norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width=width, context_width=width, heads=heads, residuals=residuals)
        self.feed_forward = FeedForward(width=width, residuals=residuals)
        self.scale, self.feed_scale = (LayerScale(width) if scaled else nn.Identity() for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """``(n, Q, D)`` latents and ``(n, N, D)`` features -> ``(n, Q, D)``."""
        normed = self.latent_norm(latents)
        context = torch.cat([self.feature_norm(features), normed], dim=1)
        latents = latents + self.dropout(self.scale(self.attention(normed, context)))
        return latents + self.dropout(self.feed_scale(self.feed_forward(self.feed_norm(latents))))
