"""Bidirectional state-space layers over the patches of views: every patch becomes one token."""

from collections import defaultdict
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from panollava.crop.rings import closed_rings
from panollava.model.state_space.layer import BidirectionalStateSpace
from panollava.model.state_space.scan import check_mamba_ssm


class BimambaResampler(nn.Module):
    """Reads patches in sequence, in both directions, so that each token depends on the whole sequence.

    With ``scan=view`` a sequence is one view, row by row. With ``scan=ring`` it is the tiles of a closed ring, column
    by column around the ring and downward in each column, and it is periodic: rotating the panorama by a tile permutes
    the tokens and changes none. Tiles that overlap are read in full, one after the other, and each keeps its own
    tokens. The global view, and views that close no ring, are read as with ``scan=view``.

    Arguments are those of ``BidirectionalStateSpace``; ``kernel`` is ``torch``, which runs anywhere, or ``mamba_ssm``,
    that package's CUDA kernels. Raises ValueError if the inner width does not divide into heads, or the kernel cannot
    run here.
    """

    def __init__(
        self,
        *,
        input_width: Annotated[int, Interval(ge=1)],
        output_width: Annotated[int, Interval(ge=1)],
        width: Annotated[int, Interval(ge=1, le=65536)] = 1024,
        layers: Annotated[int, Interval(ge=1, le=64)] = 4,
        state: Annotated[int, Interval(ge=1, le=1024)] = 64,
        conv: Annotated[int, Interval(ge=1, le=16)] = 4,
        expand: Annotated[int, Interval(ge=1, le=8)] = 2,
        head_width: Annotated[int, Interval(ge=1, le=1024)] = 64,
        scan: Literal["view", "ring"] = "view",
        kernel: Literal["torch", "mamba_ssm"] = "torch",
    ) -> None:
        super().__init__()
        if expand * width % head_width:
            raise ValueError(
                f"model.resampler.head_width={head_width} does not divide the inner width {expand * width} "
                f"(expand={expand} x width={width}): choose a divisor of it."
            )
        if kernel == "mamba_ssm":
            check_mamba_ssm()
        # Agreement of views that overlap is then no evidence that their tokens describe what is there.
        self.mixes_views = scan == "ring"
        self.input_projection = nn.Linear(input_width, width)
        sizes = {"width": width, "state": state, "conv": conv, "expand": expand, "head_width": head_width}
        self.layers = nn.ModuleList(BidirectionalStateSpace(**sizes, kernel=kernel) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.output_projection = nn.Linear(width, output_width)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        return grid

    def token_count(self, grid: tuple[int, int]) -> int:
        return grid[0] * grid[1]

    def forward(self, features: Tensor, *, grid: tuple[int, int], view_mask: Tensor, cameras: Tensor) -> Tensor:
        """``(B, V, N, Dv)`` -> ``(B, V, N, Dr)``; padding views are in no ring."""
        # The sum over layers is kept in the type of the weights: float32 under autocast.
        tokens = self.input_projection(features.flatten(0, 1)).to(self.norm.weight.dtype)  # (B·V, N, D)
        if self.mixes_views:
            tokens = self._around_rings(tokens, grid, _rings_by_length(cameras, view_mask))
        else:
            tokens = self._through_layers(tokens)
        return self.output_projection(self.norm(tokens)).unflatten(0, features.shape[:2])

    def _around_rings(self, tokens: Tensor, grid: tuple[int, int], rings: list[Tensor]) -> Tensor:
        """Views ``(B·V, N, D)`` through the layers, ring by ring, and those in no ring by themselves."""
        in_ring = torch.zeros(len(tokens), dtype=torch.bool)
        done = []
        for views in rings:
            in_ring[views] = True
            around = tokens[views.to(tokens.device)].unflatten(2, grid).transpose(2, 3)  # (rings, tiles, W', H', D)
            mixed = self._through_layers(around.flatten(1, 3), periodic=True).view(around.shape)
            done.append(mixed.transpose(2, 3).flatten(2, 3).flatten(0, 1))  # (rings·tiles, N, D)
        alone = torch.nonzero(~in_ring).squeeze(1)
        if len(alone):
            done.append(self._through_layers(tokens[alone.to(tokens.device)]))
        order = torch.cat([*(views.flatten() for views in rings), alone])
        return torch.cat(done)[order.argsort().to(tokens.device)]

    def _through_layers(self, tokens: Tensor, *, periodic: bool = False) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, periodic=periodic)
        return tokens


def _rings_by_length(cameras: Tensor, view_mask: Tensor) -> list[Tensor]:
    """Indices ``(rings, tiles)`` into the ``B·V`` views of a batch, for each number of tiles that a ring has."""
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    for sample, views in closed_rings(cameras, view_mask):
        by_length[len(views)].append([sample * cameras.shape[1] + view for view in views])
    return [torch.tensor(rings) for rings in by_length.values()]
