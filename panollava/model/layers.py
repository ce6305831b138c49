"""Layers that several resamplers share: shortcut, attention, feed-forward, initialisation, and pooling over areas."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Shortcut(nn.Module):
    """One linear map of the features, averaged over each token's rectangle of the view: what a token starts from.

    A resampler whose tokens are a sum of this map and of deeper layers gives, before it has learnt anything, tokens
    that differ as the features do. Without it, random deep layers give tokens that are nearly the same everywhere, and
    the language model learns to answer without them first (``experiments/plateau``). The rows or columns of the map
    are orthonormal at the start, so that it keeps the angles between features.

    Source: He et al., "Deep Residual Learning for Image Recognition", 2016 (arXiv:1512.03385), section 3.2, the
    projection shortcut; Li et al., "TokenPacker", 2024 (arXiv:2407.02392), section 3.2, for queries that start from
    pooled features.
    """

    def __init__(self, input_width: int, output_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(input_width, elementwise_affine=False)
        self.linear = nn.Linear(input_width, output_width)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, grid: tuple[int, int], pooled: tuple[int, int]) -> Tensor:
        """``(..., H * W, Dv)`` on the ``grid`` ``(H, W)`` -> ``(..., H' * W', D)`` for ``pooled`` ``(H', W')``."""
        normed = self.norm(features)
        return self.linear(normed if pooled == grid else area_pool(normed, grid, pooled))


def token_sides(count: int) -> tuple[int, int]:
    """``(rows, columns)`` that divide a view into ``count`` equal rectangles, as square as possible."""
    rows = next(side for side in range(math.isqrt(count), 0, -1) if count % side == 0)
    return rows, count // rows


class Attention(nn.Module):
    """Multi-head attention of tokens to a context, without a position code and without biases.

    A bias on the keys would add the same to every score of a query, which softmax cancels.

    Source: Vaswani et al., "Attention Is All You Need", 2017 (arXiv:1706.03762), section 3.2.
    """

    def __init__(self, *, width: int, context_width: int, heads: int, residuals: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_projection = nn.Linear(width, width, bias=False)
        self.context_projection = nn.Linear(context_width, 2 * width, bias=False)
        self.out_projection = nn.Linear(width, width, bias=False)
        draw(self.query_projection)
        draw(self.context_projection)
        draw(self.out_projection, residuals)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """``(n, Q, D)`` tokens and ``(n, M, C)`` context -> ``(n, Q, D)``."""
        queries = self._by_head(self.query_projection(tokens))  # (n, heads, Q, D / heads)
        keys, values = (self._by_head(half) for half in self.context_projection(context).chunk(2, dim=-1))
        mixed = functional.scaled_dot_product_attention(queries, keys, values)  # (n, heads, Q, D / heads)
        return self.out_projection(mixed.transpose(1, 2).flatten(2))

    def _by_head(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class LayerScale(nn.Module):
    """A learnt factor for each channel of what a branch adds to its tokens, 0.1 at the start.

    Beside a shortcut it bounds how fast the branch grows: Adam moves a factor by at most its learning rate in a step,
    while the weights of a branch without one, however small at first, grow together within a few steps, and the tokens
    become alike before the language model has begun to use them (``experiments/plateau``).

    Source: Touvron et al., "Going deeper with Image Transformers", 2021 (arXiv:2103.17239), section 2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.factors


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside."""

    def __init__(self, *, width: int, residuals: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.out_projection = nn.Linear(4 * width, width)
        draw(self.expand)
        draw(self.out_projection, residuals)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        return self.out_projection(functional.gelu(self.expand(tokens)))


def draw(linear: nn.Linear, residuals: int = 1) -> None:
    """Draws weights from a truncated normal and sets biases to 0, through ``nn.init``, which loading can guard.

    The deviation is BERT's 0.02 at BERT's width of 768, and keeps the scale of the outputs at other widths. The
    ``residuals`` branches that a model adds to its tokens share it, so that their sum does not grow with the depth.

    Source: Devlin et al., "BERT", 2018 (arXiv:1810.04805), its code, for the deviation; Radford et al., "Language
    Models are Unsupervised Multitask Learners", 2019, section 2.3, for the branches.
    """
    deviation = 0.02 * math.sqrt(768 / linear.in_features / residuals)
    nn.init.trunc_normal_(linear.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def shrink(linear: nn.Module) -> None:
    """Divides the weights of the last layer of a branch by 100, and sets its biases to 0.

    Beside a shortcut the branch then adds almost nothing at the start, and all of its layers get gradients.

    Source: Bachlechner et al., "ReZero is All You Need", 2021 (arXiv:2003.04887), where branches start at 0.
    """
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.mul_(0.01)
    nn.init.zeros_(linear.bias)


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError for a resampler's width that does not divide into heads."""
    if width % heads:
        raise ValueError(
            f"model.resampler.heads={heads} does not divide model.resampler.width={width}: choose a divisor of it."
        )


def area_pool(patches: Tensor, grid: tuple[int, int], pooled: tuple[int, int]) -> Tensor:
    """Mean over each rectangle of a coarser grid; a patch across an edge counts by the share of its area inside.

    A rectangle's mean is then centred on the direction that its token is taken to have. PyTorch's adaptive average
    pooling, which gives the same weight to every patch touched, shifts it by up to a third of a patch from 16 to 12.
    Where the sides divide, both are the same. As a product with a matrix, its gradient adds up in one order on a GPU
    too. Where there are more rectangles than patches, patches are repeated. ``(..., H * W, D)``, row by row on the
    ``grid`` ``(H, W)``, becomes ``(..., H' * W', D)`` for ``pooled`` ``(H', W')``.
    """
    rows, columns = (_shares(*sides, like=patches) for sides in zip(grid, pooled, strict=True))
    return torch.kron(rows, columns) @ patches


def _shares(patches: int, pooled: int, like: Tensor) -> Tensor:
    """``(pooled, patches)``: of each interval's length, the share that lies in each patch.

    Lengths are counted in ``1 / (patches * pooled)`` of the side, so they are whole numbers. Made at each call, as a
    buffer would not survive construction on the meta device.
    """
    edges = torch.arange(max(patches, pooled) + 1, device=like.device)
    starts, ends = edges[:pooled, None] * patches, edges[1 : pooled + 1, None] * patches
    left, right = edges[:patches] * pooled, edges[1 : patches + 1] * pooled
    inside = (torch.minimum(ends, right) - torch.maximum(starts, left)).clamp(min=0)
    return inside.to(like.dtype) / patches
