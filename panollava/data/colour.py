"""Changed colours of views: brightness, contrast, saturation and hue, all of them linear in red, green and blue."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from panollava.data.augment import Change

_MIDDLE = 127.5
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""Source: FCC NTSC standard, 47 CFR 73.682: brightness, and two axes of colour."""


def recoloured(views: Tensor, change: Change) -> Tensor:
    """All views of a panorama in changed colours; what is quite black stays so, as it may be padding.

    Args:
        views: ``(V, 3, h, w)`` uint8.
        change: what is done to them.

    Returns:
        The same shape and type.
    """
    if (change.brightness, change.contrast, change.saturation, change.hue_deg) == (1.0, 1.0, 1.0, 0.0):
        return views
    red, green, blue = views.float().unbind(1)
    offset = (1.0 - change.contrast) * _MIDDLE
    # Plane by plane: a product of matrices may round otherwise with another number of threads.
    mixed = [r * red + g * green + b * blue + offset for r, g, b in _mixture(change)]
    changed = torch.stack(mixed, dim=1).round_().clamp_(0, 255).to(torch.uint8)
    return torch.where(views.amax(dim=1, keepdim=True) == 0, views, changed)


def _mixture(change: Change) -> list[list[float]]:
    """What of red, green and blue each of them becomes; grey stays grey."""
    angle = np.deg2rad(change.hue_deg)
    in_yiq = np.eye(3)
    in_yiq[1:, 1:] = change.saturation * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mixture: list[list[float]] = (
        change.contrast * change.brightness * (np.linalg.inv(_TO_YIQ) @ in_yiq @ _TO_YIQ)
    ).tolist()
    return mixture
