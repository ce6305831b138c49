"""Position codes: the direction of each token, from its view's camera, is added to the token."""

import math
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from panollava.crop.cameras import token_directions, view_directions


class NonePosition(nn.Module):
    """Leaves the tokens as they are."""

    def __init__(self, *, width: Annotated[int, Interval(ge=1)]) -> None:
        super().__init__()

    def forward(self, tokens: Tensor, cameras: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """``(B, V, Q, Dr)`` -> the same tensor."""
        return tokens


class YawPitchPosition(nn.Module):
    """Adds sines and cosines of integer multiples of each token's yaw and pitch; has no weights.

    With integer multiples the code is continuous at the seam. As it depends on the direction alone, it is the same in
    two views that see the same thing. Yaw is coded at 1, 2, … ``yaw_multiples`` periods over 360 degrees, likewise
    pitch. Raises ValueError where the code does not fit into ``width``, which is ``Dr``.
    """

    def __init__(
        self,
        *,
        width: Annotated[int, Interval(ge=1)],
        yaw_multiples: Annotated[int, Interval(ge=1, le=64)] = 8,
        pitch_multiples: Annotated[int, Interval(ge=0, le=64)] = 4,
    ) -> None:
        super().__init__()
        needed = 2 * (yaw_multiples + pitch_multiples)
        if needed > width:
            raise ValueError(
                f"position.yaw_multiples={yaw_multiples} and position.pitch_multiples={pitch_multiples} need "
                f"tokens of width {needed} or more (two numbers a multiple), these have {width}: "
                f"lower them to {width // 2} in sum, or choose a larger latent width."
            )
        self.width, self.yaw_multiples, self.pitch_multiples = width, yaw_multiples, pitch_multiples

    def forward(self, tokens: Tensor, cameras: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """``(B, V, Q, Dr)`` tokens, row by row on the grid; without a grid each takes its view's centre."""
        return tokens + self.code(_directions(cameras, grid)).to(tokens.dtype)

    def code(self, directions: Tensor) -> Tensor:
        """Code of unit vectors ``(..., 3)`` -> ``(..., Dr)``.

        Yaw jumps by up to 180 degrees where a view looks over a pole. Its terms are therefore scaled by cos(pitch),
        which is 0 there: the code is continuous on the whole sphere, and a difference in yaw counts as much as it
        changes the direction.
        """
        x, y, z = directions.unbind(-1)
        horizontal = torch.hypot(x, z)
        yaw, pitch = torch.atan2(x, z), torch.atan2(y, horizontal)
        yaws = yaw[..., None] * _multiples(self.yaw_multiples, yaw)
        pitches = pitch[..., None] * _multiples(self.pitch_multiples, pitch)
        scale = horizontal[..., None]  # cos(pitch)
        terms = [yaws.sin() * scale, yaws.cos() * scale, pitches.sin(), pitches.cos()]
        return _filled(torch.cat(terms, dim=-1), self.width)


class FourierPosition(nn.Module):
    """Adds each token's unit direction vector with sines and cosines of its components; has no weights.

    The vector itself is part of the code because the waves are the same for straight ahead and straight behind: -1 and
    1 of a component are whole periods apart.

    Source: Mildenhall et al., "NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis", 2020
    (arXiv:2003.08934), section 5.1, equation 4, whose four bands for directions are the default, with the vector
    beside its waves as in the code published with it; Tancik et al., "Fourier Features Let Networks Learn High
    Frequency Functions in Low Dimensional Domains", 2020 (arXiv:2006.10739), for why.

    Each component is coded at the angular frequencies ``2^k pi`` for ``k < bands``. Raises ValueError where the code
    does not fit into ``width``, which is ``Dr``.
    """

    def __init__(
        self, *, width: Annotated[int, Interval(ge=1)], bands: Annotated[int, Interval(ge=1, le=10)] = 4
    ) -> None:
        super().__init__()
        needed = 3 + 6 * bands
        if needed > width:
            way_out = f"lower it to {(width - 3) // 6}, or choose" if width >= 9 else "choose"
            raise ValueError(
                f"position.bands={bands} needs tokens of width {needed} or more (the three components of a direction "
                f"and six numbers a band), these have {width}: {way_out} a larger latent width."
            )
        self.width, self.bands = width, bands

    def forward(self, tokens: Tensor, cameras: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """``(B, V, Q, Dr)`` tokens, as in ``YawPitchPosition``."""
        return tokens + self.code(_directions(cameras, grid)).to(tokens.dtype)

    def code(self, directions: Tensor) -> Tensor:
        """Code of unit vectors ``(..., 3)`` -> ``(..., Dr)``."""
        frequencies = math.pi * 2.0 ** torch.arange(self.bands, device=directions.device, dtype=directions.dtype)
        phases = (directions[..., None, :] * frequencies[:, None]).flatten(-2)
        return _filled(torch.cat([directions, phases.sin(), phases.cos()], dim=-1), self.width)


def _directions(cameras: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Unit vectors of the tokens of each view, ``(B, V, Q, 3)``; without a grid its centre, ``(B, V, 1, 3)``."""
    if grid is None:
        return view_directions(cameras)[..., None, :]
    return token_directions(cameras, grid).flatten(-3, -2)


def _filled(terms: Tensor, width: int) -> Tensor:
    """Terms ``(..., n)`` repeated and cut to ``(..., width)``; a linear projector can then average the content out."""
    repeats = -(-width // terms.shape[-1])
    return terms.repeat(*[1] * (terms.dim() - 1), repeats)[..., :width]


def _multiples(count: int, like: Tensor) -> Tensor:
    """``1 … count``; made at each call, as a buffer would not survive construction on the meta device."""
    return torch.arange(1, count + 1, device=like.device, dtype=like.dtype)
