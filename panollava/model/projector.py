"""Projectors: from the resampler's width to the language model's, token by token."""

from typing import Annotated

from annotated_types import Interval
from torch import Tensor, nn


class LinearProjector(nn.Module):
    """One linear map, after a LayerNorm with ``input_norm``, for tokens that do not come at unit scale."""

    def __init__(
        self,
        *,
        input_width: Annotated[int, Interval(ge=1)],
        output_width: Annotated[int, Interval(ge=1)],
        input_norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(input_width) if input_norm else nn.Identity()
        self.linear = nn.Linear(input_width, output_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., Dr)`` -> ``(..., Dl)``."""
        return self.linear(self.norm(tokens))


class MlpProjector(nn.Module):
    """Linear, GELU, Linear, of ``output_width`` between unless ``width`` is given; ``input_norm`` as above.

    Source: Liu et al. 2023, Improved Baselines with Visual Instruction Tuning (LLaVA-1.5), section 3.2.
    """

    def __init__(
        self,
        *,
        input_width: Annotated[int, Interval(ge=1)],
        output_width: Annotated[int, Interval(ge=1)],
        width: Annotated[int, Interval(ge=1, le=65536)] | None = None,
        input_norm: bool = False,
    ) -> None:
        super().__init__()
        hidden = output_width if width is None else width
        self.norm = nn.LayerNorm(input_width) if input_norm else nn.Identity()
        self.layers = nn.Sequential(nn.Linear(input_width, hidden), nn.GELU(), nn.Linear(hidden, output_width))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., Dr)`` -> ``(..., Dl)``."""
        return self.layers(self.norm(tokens))
