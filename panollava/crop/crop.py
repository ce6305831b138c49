"""The crop of a run: one strategy at one view size, from a picture file to the views of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from panollava.component import find_component
from panollava.crop.cameras import Camera, camera_tensor, needed_panorama_size
from panollava.crop.gpano import part_of
from panollava.crop.image_file import DECODERS, DIVISORS, PanoramaFile, check_panorama, decode_panorama
from panollava.crop.partial import (
    Covered,
    ExtentArray,
    Part,
    Size,
    check_covered,
    check_shape,
    pad_to_sphere,
    sphere_size,
    with_extent,
)
from panollava.crop.render import Renderer, available_device, render_views
from panollava.crop.strategies import ChoosingStrategy, CropStrategy

COMMON_KEYS = ("renderer", "device", "panorama_fov_deg")  # of every crop section, besides type and view_size


class Cut(NamedTuple):
    """The views of a panorama with their cameras."""

    views: Tensor  # (V, 3, h, w) uint8
    cameras: Tensor  # (V, C) float32

    @property
    def nbytes(self) -> int:
        return self.views.nbytes + self.cameras.nbytes


class Crop:
    """Cuts panoramas into views of (h, w) pixels, by one of the renderers of ``render_views``.

    It holds no panorama and no maps, so it is cheap to send to loader workers. ``panorama_fov_deg`` are the degrees
    that the pictures cover in place of their GPano tags; None for the tags, and for the whole sphere without any.
    ``cameras`` has the V cameras, a global one first, and ``camera_rows`` the same as ``(V, C)`` float32. They are
    those of every panorama, unless the crop ``is_adaptive``: then they are those of a panorama without detail, for
    counts and checks, and ``cameras_of`` and ``cut`` give a panorama's own.
    """

    def __init__(
        self,
        strategy: CropStrategy,
        *,
        view_size: Size,
        renderer: Renderer = "cv2",
        device: str = "cpu",
        panorama_fov_deg: Covered | None = None,
    ) -> None:
        check_covered(panorama_fov_deg)
        self.strategy = strategy
        self.view_size = (int(view_size[0]), int(view_size[1]))
        self.renderer: Renderer = renderer
        self.device = device
        fov_deg = panorama_fov_deg
        self.panorama_fov_deg: Covered | None = None if fov_deg is None else (float(fov_deg[0]), float(fov_deg[1]))
        self.cameras = tuple(strategy.cameras(self.view_size))
        self.camera_rows = camera_tensor(self.cameras)
        # Pictures are decoded as finely as any view of theirs may need.
        finest = (cast(ChoosingStrategy, strategy).finest(self.view_size),) if self.is_adaptive else ()
        self._decoded_for = (*self.cameras, *finest)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], *, view_size: Size) -> Crop:
        """The crop of a ``crop`` config section with the (h, w) that the encoder takes.

        ``spec`` has ``type``, ``COMMON_KEYS`` and the keywords of the strategy. Its ``view_size`` is ignored here.
        Runs and exports move between machines: a device that this one lacks is replaced by the CPU.
        """
        common = {key: spec[key] for key in COMMON_KEYS if key in spec}
        if "device" in common:
            common["device"] = available_device(common["device"])
        options = {key: value for key, value in spec.items() if key not in ("type", "view_size", *common)}
        strategy = find_component("crop.strategies", spec["type"], "Crop")(**options)
        return cls(strategy, view_size=view_size, **common)

    @property
    def summary(self) -> str:
        """Number, size and overlap of the views, in words."""
        count, (height, width) = len(self.cameras), self.view_size
        views = f"{count} view{'s' if count > 1 else ''} of {height}x{width} pixels"
        if self.is_adaptive:
            return f"{views}, chosen for each panorama"
        return f"{views}, effective overlap {self.strategy.effective_overlap:.3f}"

    @property
    def is_adaptive(self) -> bool:
        """Whether cameras differ from panorama to panorama: the strategy is a ``ChoosingStrategy``."""
        return hasattr(self.strategy, "choose")

    @property
    def signature(self) -> dict[str, Any]:
        """All that the views of a picture file depend on besides the file and the code, as plain values."""
        options = {key: str(value) for key, value in vars(self.strategy).items()}
        return {
            "cameras": [list(camera.row()) for camera in self.cameras],
            "view_size": list(self.view_size),
            "renderer": self.renderer,
            "device": self.device,
            "panorama_fov_deg": None if self.panorama_fov_deg is None else list(self.panorama_fov_deg),
            "libraries": {**DECODERS, "numpy": np.__version__},
            **({"choice": {"rule": type(self.strategy).__qualname__, **options}} if self.is_adaptive else {}),
        }

    def cameras_of(self, panorama: np.ndarray) -> tuple[Camera, ...]:
        """The cameras of a panorama ``(H, W, 3)`` uint8 of the whole sphere."""
        if self.is_adaptive:
            return tuple(cast(ChoosingStrategy, self.strategy).choose(panorama, self.view_size))
        return self.cameras

    def cut(self, panorama: np.ndarray) -> Cut:
        """Views and cameras of a panorama ``(H, W, 3)`` uint8 of the whole sphere."""
        cameras = self.cameras_of(panorama)
        views = render_views(panorama, cameras, self.view_size, self.renderer, self.device)
        rows = self.camera_rows if cameras is self.cameras else camera_tensor(cameras)
        return Cut(torch.from_numpy(views).permute(0, 3, 1, 2).contiguous(), rows)

    def views(self, panorama: np.ndarray) -> Tensor:
        """Views ``(V, 3, h, w)`` uint8 of a panorama ``(H, W, 3)`` uint8 of the whole sphere."""
        return self.cut(panorama).views

    def with_cameras(self, views: Tensor | Cut) -> Cut:
        """Views with their cameras; ValueError for views alone of a crop that chooses cameras for each panorama."""
        if isinstance(views, Cut):
            return views
        if self.is_adaptive:
            raise ValueError(
                "crop=adaptive chooses the cameras of each panorama, and these are views without them. Give what cut() "
                "returns, of a Crop or of a PanoLlava, in place of views()."
            )
        return Cut(views, self.camera_rows)

    def read(self, source: str | Path | BinaryIO) -> np.ndarray:
        """A picture file as panorama ``(H, W, 3)`` uint8 RGB of the whole sphere, no finer than these views need."""
        return read_panorama(source, self._decoded_for, self.view_size, self.panorama_fov_deg)

    def whole(self, picture: np.ndarray, xmp: tuple[bytes, ...] = ()) -> np.ndarray:
        """A picture ``(H, W, 3)`` in memory, with its XMP packets, as ``read`` gives it; that result as it is."""
        if isinstance(picture, ExtentArray):
            return picture
        covered = self.panorama_fov_deg
        part = part_of("The picture", xmp) if covered is None else Part(*covered)
        check_shape("The picture", (picture.shape[0], picture.shape[1]), part)
        return pad_to_sphere(picture, part, needed_size(self._decoded_for, self.view_size))

    def check(self, source: str | Path | BinaryIO) -> PanoramaFile:
        """Check a picture file without decoding it (see ``check_panorama``)."""
        return check_panorama(source, self.panorama_fov_deg)


def read_panorama(
    source: str | Path | BinaryIO, cameras: Sequence[Camera], view_size: Size, covered: Covered | None = None
) -> np.ndarray:
    """A JPEG or PNG file as panorama of the whole sphere; raises as ``decode_panorama``.

    JPEGs are decoded no finer than the views need. The result is ``(H, W, 3)`` uint8 RGB, upright, without alpha, black
    where the picture does not reach, with an ``extent`` if the sphere may end within the last row or column.
    """
    needed = needed_size(cameras, view_size)
    picture, file, divisor = decode_panorama(source, covered, lambda file: _divisor(file, needed))
    if divisor > 1:
        height, width = file.size
        picture = with_extent(picture, (height / divisor, width / divisor))
    return pad_to_sphere(picture, file.part, needed)


def needed_size(cameras: Sequence[Camera], view_size: Size) -> Size:
    """(H, W) of the coarsest panorama that is as fine as every view needs, both ways."""
    sizes = [needed_panorama_size(camera, view_size) for camera in cameras]
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _divisor(file: PanoramaFile, needed: Size) -> int:
    """The largest divisor whose result is still as fine as needed.

    The last row and column of a side that it does not divide lie in part beyond the picture. In a picture that is
    stored turned they may become the first, which an extent cannot express.
    """
    header, whole = file.header, sphere_size(file.size, file.part)
    return next(
        divisor
        for divisor in DIVISORS
        if divisor == 1
        or (
            all(have >= want * divisor for have, want in zip(whole, needed, strict=True))
            and (header.orientation == 1 or header.height % divisor == header.width % divisor == 0)
        )
    )
