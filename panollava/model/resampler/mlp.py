"""Token-wise multilayer perceptron: every patch becomes one token, so the grid stays."""

from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Interval
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU}
NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class MlpResampler(nn.Module):
    """``depth`` linear layers with norm and activation between them, and a norm at the end.

    The last LayerNorm gives tokens of unit scale for any encoder, which the position code and the
    VICReg variance target (a standard deviation of 1) rely on.
    """

    def __init__(
        self,
        *,
        input_width: Annotated[int, Interval(ge=1)],
        output_width: Annotated[int, Interval(ge=1)],
        depth: Annotated[int, Interval(ge=1, le=16)] = 3,
        width: Annotated[int, Interval(ge=1, le=65536)] = 1536,
        norm: Literal["layer", "rms"] = "layer",
        activation: Literal["gelu", "silu", "relu"] = "gelu",
    ) -> None:
        super().__init__()
        widths = [input_width] + [width] * (depth - 1)
        layers: list[nn.Module] = []
        for incoming, outgoing in pairwise(widths):
            layers += [nn.Linear(incoming, outgoing), NORMS[norm](outgoing), ACTIVATIONS[activation]()]
        layers += [nn.Linear(widths[-1], output_width), nn.LayerNorm(output_width)]
        self.layers = nn.Sequential(*layers)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        return grid

    def token_count(self, grid: tuple[int, int]) -> int:
        return grid[0] * grid[1]

    def forward(self, features: Tensor, *, grid: tuple[int, int], view_mask: Tensor, cameras: Tensor) -> Tensor:
        """``(B, V, N, Dv)`` -> ``(B, V, N, Dr)``, each token from its own patch alone."""
        return self.layers(features)
