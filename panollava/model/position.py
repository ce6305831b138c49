"""Position codes: each token learns from its view's camera which way it looks."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from panollava.crop.cameras import token_directions, view_directions


class NonePosition(nn.Module):
    """Leaves the tokens as they are."""

    def __init__(self, *, width: Annotated[int, Interval(ge=1)]) -> None:
        """Nothing to build; ``width`` is taken because every position code is given it."""
        super().__init__()

    def forward(self, tokens: Tensor, cameras: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """``(B, V, Q, Dr)`` -> the same tensor."""
        return tokens


class YawPitchPosition(nn.Module):
    """Adds sines and cosines of integer multiples of each token's yaw and pitch; has no weights.

    Multiples of a full turn are what makes the code blind to the seam, and a code of the direction alone is
    what makes two views that see one thing agree about where it is.
    """

    def __init__(
        self,
        *,
        width: Annotated[int, Interval(ge=1)],
        yaw_multiples: Annotated[int, Interval(ge=1, le=64)] = 8,
        pitch_multiples: Annotated[int, Interval(ge=0, le=64)] = 4,
    ) -> None:
        """Choose the code.

        Args:
            width: ``Dr``.
            yaw_multiples: yaw is coded at 1, 2, … this many periods a turn.
            pitch_multiples: likewise for pitch.

        Raises:
            ValueError: the code does not fit into ``width``.
        """
        super().__init__()
        needed = 2 * (yaw_multiples + pitch_multiples)
        if needed > width:
            raise ValueError(
                f"position.yaw_multiples={yaw_multiples} and position.pitch_multiples={pitch_multiples} need "
                f"tokens of width {needed} or more (two numbers a multiple), these have {width}: "
                f"lower them to {width // 2} in sum, or choose a larger latent width."
            )
        self.width = width
        self.yaw_multiples = yaw_multiples
        self.pitch_multiples = pitch_multiples

    def forward(self, tokens: Tensor, cameras: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Add the code.

        Args:
            tokens: ``(B, V, Q, Dr)``.
            cameras: ``(B, V, C)``.
            grid: ``(H', W')`` of the tokens, row by row, or None: then each token takes its view's centre.
        """
        if grid is None:
            directions = view_directions(cameras)[..., None, :]
        else:
            directions = token_directions(cameras, grid).flatten(-3, -2)
        return tokens + self.code(directions).to(tokens.dtype)

    def code(self, directions: Tensor) -> Tensor:
        """Code of unit vectors ``(..., 3)`` -> ``(..., Dr)``.

        The pairs (sine, cosine) fill the width again and again, the last time as far as they fit: a linear
        projector can then average the content of the tokens out.

        Yaw jumps by up to half a turn where a view looks over a pole. Its terms are therefore scaled by
        cos(pitch), which is 0 there: the code is continuous on the whole sphere, and a difference in yaw
        counts as much as it turns the direction.
        """
        x, y, z = directions.unbind(-1)
        horizontal = torch.hypot(x, z)
        yaw, pitch = torch.atan2(x, z), torch.atan2(y, horizontal)
        yaws = yaw[..., None] * _multiples(self.yaw_multiples, yaw)
        pitches = pitch[..., None] * _multiples(self.pitch_multiples, pitch)
        terms = torch.cat(
            [
                yaws.sin() * horizontal[..., None],
                yaws.cos() * horizontal[..., None],
                pitches.sin(),
                pitches.cos(),
            ],
            dim=-1,
        )
        repeats = -(-self.width // terms.shape[-1])
        return terms.repeat(*[1] * (terms.dim() - 1), repeats)[..., : self.width]


def _multiples(count: int, like: Tensor) -> Tensor:
    """``1 … count``; made at each call, as a buffer would not survive construction on the meta device."""
    return torch.arange(1, count + 1, device=like.device, dtype=like.dtype)
