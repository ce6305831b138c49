"""The crop of a run: one strategy at one view size, from a picture file to the views of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panollava.component import find_component
from panollava.crop.cameras import camera_tensor
from panollava.crop.extent import spanning
from panollava.crop.read import check_panorama, read_panorama
from panollava.crop.render import Renderer, render_views
from panollava.crop.strategies import CropStrategy


class Crop:
    """Cuts panoramas; it holds no panorama and no maps, so it is cheap to send to loader workers.

    Attributes:
        strategy: which views there are.
        view_size: (h, w).
        cameras: the V cameras, a global one first where there is one.
        camera_rows: ``(V, C)`` float32, the same as numbers.
    """

    def __init__(
        self,
        strategy: CropStrategy,
        *,
        view_size: tuple[int, int],
        renderer: Renderer = "cv2",
        device: str = "cpu",
    ) -> None:
        self.strategy = strategy
        self.view_size = (int(view_size[0]), int(view_size[1]))
        self.renderer: Renderer = renderer
        self.device = device
        self.cameras = tuple(strategy.cameras(self.view_size))
        self.camera_rows = camera_tensor(self.cameras)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], *, view_size: tuple[int, int]) -> Crop:
        """The crop of a ``crop`` config section.

        Args:
            spec: ``{"type": ..., "renderer": ..., <keywords of the strategy>}``; ``view_size`` in it is for
                whoever opens the encoder.
            view_size: (h, w) that the encoder takes.
        """
        options = {key: value for key, value in spec.items() if key not in ("type", "renderer", "view_size")}
        strategy = find_component("crop.strategies", spec["type"], "Crop")(**options)
        return cls(strategy, view_size=view_size, renderer=spec.get("renderer", "cv2"))

    @property
    def summary(self) -> str:
        """Number and size of the views and what they have in common, in words."""
        count, (height, width) = len(self.cameras), self.view_size
        views = f"{count} view{'s' if count > 1 else ''} of {height}x{width} pixels"
        return f"{views}, effective overlap {self.strategy.effective_overlap:.3f}"

    def views(self, panorama: np.ndarray) -> Tensor:
        """Views ``(V, 3, h, w)`` uint8 of a panorama ``(H, W, 3)`` uint8."""
        views = render_views(panorama, self.cameras, self.view_size, self.renderer, self.device)
        return torch.from_numpy(views).permute(0, 3, 1, 2).contiguous()

    def read(self, path: str | Path) -> np.ndarray:
        """A picture file as panorama ``(H, W, 3)`` uint8 RGB, no finer than these views need."""
        return spanning(read_panorama(path, self.cameras, self.view_size), check_panorama(path))
