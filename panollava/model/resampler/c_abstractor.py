"""C-Abstractor: convolutions before and after a pooling, so that fewer tokens still keep what is where."""

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional

from panollava.model.layers import Shortcut, area_pool, shrink

Gate = Literal["relu", "silu"]


class CAbstractorResampler(nn.Module):
    """Convolution blocks, pooling to ``tokens_per_side`` rows and columns, as many blocks again, and two linear layers.

    A token depends on the patches around it and, through the gates of the blocks, on the mean of its view. LayerNorm
    replaces BatchNorm, with which the tokens of a panorama would depend on its batch. The norm at the end gives unit
    scale for any encoder.

    Source: Cha et al., "Honeybee: Locality-enhanced Projector for Multimodal LLM", 2024 (arXiv:2312.06742), section
    3.2, with the choices of its code (github.com/kakaobrain/honeybee): 3 blocks on each side, 1024 channels,
    SiLU throughout, the gates included, and a learnt position embedding that is added to the features.

    ``depth`` blocks are before the pooling, and as many after it. The position embedding has ``positions_per_side``
    rows and columns (0 for none) and is resampled by area for another patch grid. With ``shortcut`` a linear map of the
    mean feature of each token's rectangle, with its positions, is added before the last norm, and the layers start
    near 0. Up to version 0.2 there was no shortcut; up to version 0.1 the gates had ReLU, and there were no positions.
    """

    def __init__(
        self,
        *,
        input_width: Annotated[int, Interval(ge=1)],
        output_width: Annotated[int, Interval(ge=1)],
        width: Annotated[int, Interval(ge=1, le=65536)] = 1024,
        depth: Annotated[int, Interval(ge=1, le=32)] = 3,
        tokens_per_side: Annotated[int, Interval(ge=1, le=64)] = 12,
        positions_per_side: Annotated[int, Interval(ge=0, le=64)] = 16,
        gate: Gate = "silu",
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.tokens_per_side, self.positions_per_side = tokens_per_side, positions_per_side
        if positions_per_side:
            self.positions = nn.Parameter(torch.empty(positions_per_side**2, input_width))
            nn.init.trunc_normal_(self.positions, std=0.02)
        self.before = nn.Sequential(*(_Block(width if index else input_width, width, gate) for index in range(depth)))
        self.after = nn.Sequential(*(_Block(width, width, gate) for _ in range(depth)))
        self.readout = nn.Sequential(
            nn.Linear(width, output_width), nn.SiLU(), nn.Linear(output_width, output_width), nn.LayerNorm(output_width)
        )
        self.shortcut = Shortcut(input_width, output_width) if shortcut else None
        if shortcut:
            shrink(self.readout[-2])

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        return self.tokens_per_side, self.tokens_per_side

    def token_count(self, grid: tuple[int, int]) -> int:
        return self.tokens_per_side**2

    def forward(self, features: Tensor, *, grid: tuple[int, int], view_mask: Tensor, cameras: Tensor) -> Tensor:
        """``(B, V, N, Dv)`` -> ``(B, V, Q, Dr)``, each view by itself."""
        pooled = (self.tokens_per_side, self.tokens_per_side)
        patches = features.flatten(0, 1)  # (B·V, N, Dv)
        if self.positions_per_side:
            patches = patches + area_pool(self.positions, (self.positions_per_side, self.positions_per_side), grid)
        mixed = self.before(patches.unflatten(1, grid))  # (B·V, H', W', width)
        tokens = self.after(area_pool(mixed.flatten(1, 2), grid, pooled).unflatten(1, pooled))
        tokens = self.readout[:-1](tokens.flatten(1, 2))  # (B·V, Q, Dr)
        if self.shortcut is not None:
            tokens = tokens + self.shortcut(patches, grid, pooled)
        return self.readout[-1](tokens).unflatten(0, features.shape[:2])


class _Block(nn.Module):
    """A bottleneck block with squeeze-and-excitation, over rows and columns ``(n, H, W, C)``.

    Source: Radosavovic et al., "Designing Network Design Spaces", 2020 (arXiv:2003.13678), the Y block of section 5,
    with no narrowing inside and one channel a group, as Honeybee has it.
    """

    def __init__(self, incoming: int, width: int, gate: Gate) -> None:
        super().__init__()
        self.into = nn.Linear(incoming, width)
        self.into_norm = nn.LayerNorm(width)
        self.around = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.around_norm = nn.LayerNorm(width)
        self.gate = SqueezeExcitation(width, squeezed=max(1, incoming // 4), gate=gate)
        self.out = nn.Linear(width, width)
        self.out_norm = nn.LayerNorm(width)
        self.shortcut = (
            nn.Identity() if incoming == width else nn.Sequential(nn.Linear(incoming, width), nn.LayerNorm(width))
        )

    def forward(self, patches: Tensor) -> Tensor:
        """``(n, H, W, incoming)`` -> ``(n, H, W, width)``."""
        inner = functional.silu(self.into_norm(self.into(patches)))
        inner = self.around(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        inner = self.gate(functional.silu(self.around_norm(inner)))
        return functional.silu(self.shortcut(patches) + self.out_norm(self.out(inner)))


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate, computed from the channels' means over the view by two layers.

    Source: Hu et al., "Squeeze-and-Excitation Networks", 2018 (arXiv:1709.01507), section 3.
    """

    def __init__(self, width: int, *, squeezed: int, gate: Gate = "silu") -> None:
        super().__init__()
        self.activation = functional.silu if gate == "silu" else functional.relu
        self.squeeze = nn.Linear(width, squeezed)
        self.excite = nn.Linear(squeezed, width)

    def forward(self, patches: Tensor) -> Tensor:
        """``(n, H, W, C)`` -> the same shape."""
        means = patches.mean(dim=(1, 2), keepdim=True)
        return patches * torch.sigmoid(self.excite(self.activation(self.squeeze(means))))
