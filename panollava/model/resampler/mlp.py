"""Token-wise multilayer perceptron: every patch becomes one token, so the grid stays."""

from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Interval
from torch import Tensor, nn

from panollava.model.layers import Shortcut, shrink

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU}
NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class MlpResampler(nn.Module):
    """``depth`` linear layers with norm and activation between them, and a norm at the end.

    With ``shortcut`` a linear map of the features is added before the last norm, and the layers start near 0. Up to
    version 0.2 there was no shortcut.

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
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        widths = [input_width] + [width] * (depth - 1)
        layers: list[nn.Module] = []
        for incoming, outgoing in pairwise(widths):
            layers += [nn.Linear(incoming, outgoing), NORMS[norm](outgoing), ACTIVATIONS[activation]()]
        layers += [nn.Linear(widths[-1], output_width), nn.LayerNorm(output_width)]
        self.layers = nn.Sequential(*layers)
        self.shortcut = Shortcut(input_width, output_width) if shortcut else None
        if shortcut:
            shrink(self.layers[-2])

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        return grid

    def token_count(self, grid: tuple[int, int]) -> int:
        return grid[0] * grid[1]

    def forward(self, features: Tensor, *, grid: tuple[int, int], view_mask: Tensor, cameras: Tensor) -> Tensor:
        """``(B, V, N, Dv)`` -> ``(B, V, N, Dr)``, each token from its own patch alone."""
        tokens = self.layers[:-1](features)
        if self.shortcut is not None:
            tokens = tokens + self.shortcut(features, grid, grid)
        return self.layers[-1](tokens)
