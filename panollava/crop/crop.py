"""The crop of a run: one strategy at one view size, from a picture file to the views of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from panollava.component import find_component
from panollava.crop.cameras import camera_tensor
from panollava.crop.gpano import part_of
from panollava.crop.image_file import DECODERS, Panorama, check_panorama, needed_size, read_panorama
from panollava.crop.partial import Covered, Part, Spanned, check_covered, check_shape, made_whole
from panollava.crop.render import Renderer, device_here, render_views
from panollava.crop.strategies import CropStrategy

COMMON_KEYS = ("renderer", "device", "panorama_fov_deg")
"""Keys of a ``crop`` section that every strategy has beside its own, ``type`` and ``view_size``."""


class Crop:
    """Cuts panoramas; it holds no panorama and no maps, so it is cheap to send to loader workers.

    Attributes:
        strategy: which views there are.
        view_size: (h, w).
        renderer: what cuts them.
        device: where the torch renderer runs.
        panorama_fov_deg: degrees that the pictures cover, horizontally and vertically, before what their
            tags say; None for that, and for the whole sphere where there are none.
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
        panorama_fov_deg: Covered | None = None,
    ) -> None:
        check_covered(panorama_fov_deg)
        self.strategy = strategy
        self.view_size = (int(view_size[0]), int(view_size[1]))
        self.renderer: Renderer = renderer
        self.device = device
        self.panorama_fov_deg: Covered | None = None
        if panorama_fov_deg is not None:
            self.panorama_fov_deg = (float(panorama_fov_deg[0]), float(panorama_fov_deg[1]))
        self.cameras = tuple(strategy.cameras(self.view_size))
        self.camera_rows = camera_tensor(self.cameras)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], *, view_size: tuple[int, int]) -> Crop:
        """The crop of a ``crop`` config section.

        Args:
            spec: ``{"type": ..., <COMMON_KEYS>, <keywords of the strategy>}``; ``view_size`` in it is for whoever
                opens the encoder.
            view_size: (h, w) that the encoder takes.

        Runs and exports travel: where this machine lacks their device, the CPU takes its place.
        """
        common = {key: spec[key] for key in COMMON_KEYS if key in spec}
        if "device" in common:
            common["device"] = device_here(common["device"])
        options = {key: value for key, value in spec.items() if key not in ("type", "view_size", *common)}
        strategy = find_component("crop.strategies", spec["type"], "Crop")(**options)
        return cls(strategy, view_size=view_size, **common)

    @property
    def summary(self) -> str:
        """Number and size of the views and what they have in common, in words."""
        count, (height, width) = len(self.cameras), self.view_size
        views = f"{count} view{'s' if count > 1 else ''} of {height}x{width} pixels"
        return f"{views}, effective overlap {self.strategy.effective_overlap:.3f}"

    @property
    def signature(self) -> dict[str, Any]:
        """All that the views of a picture file depend on beside the file and the code of this room; plain values."""
        return {
            "cameras": [list(camera.row()) for camera in self.cameras],
            "view_size": list(self.view_size),
            "renderer": self.renderer,
            "device": self.device,
            "panorama_fov_deg": None if self.panorama_fov_deg is None else list(self.panorama_fov_deg),
            "libraries": {**DECODERS, "numpy": np.__version__},
        }

    def views(self, panorama: np.ndarray) -> Tensor:
        """Views ``(V, 3, h, w)`` uint8 of a panorama ``(H, W, 3)`` uint8 of the whole sphere."""
        views = render_views(panorama, self.cameras, self.view_size, self.renderer, self.device)
        return torch.from_numpy(views).permute(0, 3, 1, 2).contiguous()

    def read(self, source: str | Path | BinaryIO) -> np.ndarray:
        """A picture file as panorama ``(H, W, 3)`` uint8 RGB of the whole sphere, no finer than these views need."""
        return read_panorama(source, self.cameras, self.view_size, self.panorama_fov_deg)

    def whole(self, picture: np.ndarray, xmp: tuple[bytes, ...] = ()) -> np.ndarray:
        """A picture ``(H, W, 3)`` that is no file, as panorama of the whole sphere; one that was read is whole already.

        Args:
            picture: the pixels.
            xmp: the XMP packets that came with it.

        Raises:
            ValueError: it has not the shape of what it covers, or its tags cannot be used.
        """
        if isinstance(picture, Spanned):
            return picture
        covered = self.panorama_fov_deg
        part = part_of("The picture", xmp) if covered is None else Part(*covered)
        check_shape("The picture", (picture.shape[0], picture.shape[1]), part)
        return made_whole(picture, part, needed_size(self.cameras, self.view_size))

    def check(self, source: str | Path | BinaryIO) -> Panorama:
        """Check a picture file without decoding it; raises what ``check_panorama`` does."""
        return check_panorama(source, self.panorama_fov_deg)
