"""Average pooling: each token is the mean of the patches in its part of the view; nothing is learnt."""

from typing import Annotated, ClassVar

from annotated_types import Interval
from torch import Tensor, nn

from panollava.model.layers import area_pool


class PoolResampler(nn.Module):
    """Averages over each of ``tokens_per_side`` by ``tokens_per_side`` rectangles of a view."""

    keeps_width: ClassVar[bool] = True

    def __init__(
        self,
        *,
        input_width: Annotated[int, Interval(ge=1)],
        output_width: Annotated[int, Interval(ge=1)],
        tokens_per_side: Annotated[int, Interval(ge=1, le=64)] = 8,
    ) -> None:
        super().__init__()
        assert input_width == output_width
        self.tokens_per_side = tokens_per_side

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        return self.tokens_per_side, self.tokens_per_side

    def token_count(self, grid: tuple[int, int]) -> int:
        return self.tokens_per_side**2

    def forward(self, features: Tensor, *, grid: tuple[int, int], view_mask: Tensor, cameras: Tensor) -> Tensor:
        """``(B, V, N, Dv)`` -> ``(B, V, Q, Dv)``."""
        return area_pool(features, grid, (self.tokens_per_side, self.tokens_per_side))
