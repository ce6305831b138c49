"""Querying transformer: learnt queries attend to each other and to the features of their view."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from panollava.model.layers import Attention, FeedForward, LayerScale, Shortcut, check_heads, token_sides


class QformerResampler(nn.Module):
    """Queries through layers of self-attention, cross-attention to the features and a feed-forward network.

    Self-attention is bidirectional. The patches' positions are known only from the encoder's own position code in
    their features. The norm at the end gives tokens of unit scale for any encoder; the features are normed before they
    are read, for the same reason.

    With ``shortcut`` each query has a rectangle of the view, and a linear map of its mean feature is added to it
    before the first layer. Tokens then have the grid of these rectangles; without it they have none. A query may still
    read anything anywhere. Up to version 0.2 there was no shortcut. With ``layer_scale`` what a branch adds beside a
    shortcut has a layer scale.

    The norms come before each branch, not after each sum as in the paper: its layers start from BERT's weights, these
    from random ones, which that arrangement trains without a long warmup (Xiong et al., "On Layer Normalization in the
    Transformer Architecture", 2020, arXiv:2002.04745).

    Source: Li et al., "BLIP-2", 2023 (arXiv:2301.12597), section 3.1; there cross-attention is in every other layer.

    Each of the ``queries`` gives one token for each view. Raises ValueError if ``width`` does not divide into heads.
    """

    def __init__(
        self,
        *,
        input_width: Annotated[int, Interval(ge=1)],
        output_width: Annotated[int, Interval(ge=1)],
        queries: Annotated[int, Interval(ge=1, le=4096)] = 64,
        layers: Annotated[int, Interval(ge=1, le=64)] = 6,
        width: Annotated[int, Interval(ge=1, le=65536)] = 768,
        heads: Annotated[int, Interval(ge=1, le=1024)] = 12,
        dropout: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.0,
        shortcut: bool = True,
        layer_scale: bool = True,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.queries = nn.Parameter(torch.empty(queries, width))
        nn.init.normal_(self.queries, std=0.02)
        self.feature_norm = nn.LayerNorm(input_width)
        self.layers = nn.ModuleList(
            _Layer(width, input_width, heads, residuals=3 * layers, dropout=dropout, scaled=shortcut and layer_scale)
            for _ in range(layers)
        )
        self.output_projection = nn.Linear(width, output_width)
        self.norm = nn.LayerNorm(output_width)
        self.shortcut = Shortcut(input_width, width) if shortcut else None

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        return None if self.shortcut is None else token_sides(len(self.queries))

    def token_count(self, grid: tuple[int, int]) -> int:
        return len(self.queries)

    def forward(self, features: Tensor, *, grid: tuple[int, int], view_mask: Tensor, cameras: Tensor) -> Tensor:
        """``(B, V, N, Dv)`` -> ``(B, V, Q, Dr)``, each view by itself."""
        patches = features.flatten(0, 1)  # (B·V, N, Dv)
        context = self.feature_norm(patches)
        tokens = self.queries.expand(len(context), -1, -1)  # (B·V, Q, D)
        if self.shortcut is not None:
            tokens = tokens + self.shortcut(patches, grid, token_sides(len(self.queries)))
        for layer in self.layers:
            tokens = layer(tokens, context)
        return self.norm(self.output_projection(tokens)).unflatten(0, features.shape[:2])


class _Layer(nn.Module):
    """One layer; its three branches are each added to the tokens."""

    def __init__(
        self, width: int, context_width: int, heads: int, *, residuals: int, dropout: float, scaled: bool
    ) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attention = Attention(width=width, context_width=width, heads=heads, residuals=residuals)
        self.cross_attention = Attention(width=width, context_width=context_width, heads=heads, residuals=residuals)
        self.feed_forward = FeedForward(width=width, residuals=residuals)
        self.self_scale, self.cross_scale, self.feed_scale = (
            LayerScale(width) if scaled else nn.Identity() for _ in range(3)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """``(n, Q, D)`` tokens and ``(n, N, Dv)`` features -> ``(n, Q, D)``."""
        normed = self.self_norm(tokens)
        tokens = tokens + self.dropout(self.self_scale(self.self_attention(normed, normed)))
        tokens = tokens + self.dropout(self.cross_scale(self.cross_attention(self.cross_norm(tokens), context)))
        return tokens + self.dropout(self.feed_scale(self.feed_forward(self.feed_norm(tokens))))
