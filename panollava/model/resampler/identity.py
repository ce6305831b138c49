"""No resampler: the features of the encoder are the tokens."""

from typing import Annotated, ClassVar

from annotated_types import Interval
from torch import Tensor, nn


class IdentityResampler(nn.Module):
    """Passes features through."""

    keeps_width: ClassVar[bool] = True

    def __init__(
        self, *, input_width: Annotated[int, Interval(ge=1)], output_width: Annotated[int, Interval(ge=1)]
    ) -> None:
        super().__init__()
        assert input_width == output_width

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        return grid

    def token_count(self, grid: tuple[int, int]) -> int:
        return grid[0] * grid[1]

    def forward(self, features: Tensor, *, grid: tuple[int, int], view_mask: Tensor, cameras: Tensor) -> Tensor:
        """``(B, V, N, Dv)`` -> the same tensor."""
        return features
