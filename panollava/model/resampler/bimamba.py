"""Bidirectional state-space layers over the patches of each view: every patch becomes one token."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval
from torch import Tensor, nn

from panollava.model.state_space import BidirectionalStateSpace


class BimambaResampler(nn.Module):
    """Reads the patches of a view row by row, in both directions, so that each token knows its whole view."""

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
        scan: Literal["view"] = "view",
    ) -> None:
        """Build the layers.

        Args:
            input_width: ``Dv``.
            output_width: ``Dr``.
            width: of the layers.
            layers: how many.
            state: numbers a head remembers for each of its channels.
            conv: taps of the causal convolution before the scan.
            expand: inner width over ``width``.
            head_width: channels that share one decay.
            scan: what one sequence is; ``view``: the patches of one view.

        Raises:
            ValueError: the inner width does not divide into heads.
        """
        super().__init__()
        if expand * width % head_width:
            raise ValueError(
                f"model.resampler.head_width={head_width} does not divide the inner width {expand * width} "
                f"(expand={expand} x width={width}): choose a divisor of it."
            )
        self.scan = scan
        self.input_projection = nn.Linear(input_width, width)
        self.layers = nn.ModuleList(
            BidirectionalStateSpace(width=width, state=state, conv=conv, expand=expand, head_width=head_width)
            for _ in range(layers)
        )
        self.norm = nn.RMSNorm(width)
        self.output_projection = nn.Linear(width, output_width)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        """The patch grid itself."""
        return grid

    def token_count(self, grid: tuple[int, int]) -> int:
        """One token a patch."""
        return grid[0] * grid[1]

    def forward(self, features: Tensor, *, grid: tuple[int, int], view_mask: Tensor, cameras: Tensor) -> Tensor:
        """``(B, V, N, Dv)`` -> ``(B, V, N, Dr)``, each view by itself, padding or not."""
        # The sum over layers is kept in the type of the weights: float32 under autocast.
        tokens = self.input_projection(features.flatten(0, 1)).to(self.norm.weight.dtype)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.output_projection(self.norm(tokens)).unflatten(0, features.shape[:2])
