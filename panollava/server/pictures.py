"""The panoramas that a server knows: those it offers, and those that clients sent, as long as there is memory."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any

import cv2
import numpy as np

from panollava.crop.cameras import Camera
from panollava.crop.crop import Crop, Cut, read_panorama
from panollava.crop.image_file import check_panorama
from panollava.crop.partial import Covered
from panollava.crop.strategies import global_camera
from panollava.data.world import WorldSource
from panollava.model.processor import read_picture
from panollava.server.guard import RefusedError

SHOWN = (2048, 4096)
"""Most rows and columns of a panorama in the viewer."""
MAX_SIDE = 16384
"""Most pixels of a side."""
_DECODING = BoundedSemaphore(2)
"""Panoramas that are decoded at once: small files may be of many pixels, which take memory while they are decoded."""
WORLD_HEIGHT = 1024
WORLD_SCENES = 6


@dataclass(eq=False)
class Panorama:
    """A panorama with what was computed of it.

    Attributes:
        id: by which clients name it.
        digest: of its content.
        content: of its file, or the array ``(H, W, 3)`` uint8 RGB.
        size: (H, W) of the file.
        computed: views by crop, and other results by name, each made once.
    """

    id: str
    digest: str
    content: bytes | np.ndarray
    size: tuple[int, int]
    computed: dict[Any, Any] = field(default_factory=dict)
    lock: Any = field(default_factory=Lock)

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """A result by its name; threads that need it at the same time make it once."""
        with self.lock:
            if name not in self.computed:
                self.computed[name] = make()
            return self.computed[name]

    def pixels(self, crop: Crop) -> np.ndarray:
        """The whole sphere ``(H, W, 3)``, as a crop needs it."""
        with _DECODING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a tilt that the file states: the client does not read the log
            return read_picture(self.content, crop)

    def views(self, crop: Crop) -> Cut:
        """Views with their cameras."""
        return self.once(("views", str(crop.signature)), lambda: crop.cut(self.pixels(crop)))

    def cameras(self, crop: Crop) -> tuple[Camera, ...]:
        """The cameras of its views."""
        if not crop.is_adaptive:
            return crop.cameras
        return self.once(("cameras", str(crop.signature)), lambda: crop.cameras_of(self.pixels(crop)))

    def jpeg(self, covered: Covered | None) -> bytes:
        """The whole sphere as JPEG, for a viewer."""
        return self.once("jpeg", lambda: self._jpeg(covered))

    def _jpeg(self, covered: Covered | None) -> bytes:
        with _DECODING:
            pixels = self.content
            if isinstance(pixels, bytes):
                pixels = read_panorama(io.BytesIO(pixels), [global_camera("resize", SHOWN)], SHOWN, covered)
            height = min(len(pixels), SHOWN[0])
            pixels = cv2.resize(np.asarray(pixels), (2 * height, height), interpolation=cv2.INTER_AREA)
        _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
        return data.tobytes()

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        sizes = (value.nbytes if hasattr(value, "nbytes") else len(value) for value in list(self.computed.values()))
        return (self.content.nbytes if isinstance(self.content, np.ndarray) else len(self.content)) + sum(sizes)


@dataclass(frozen=True)
class Offered:
    """A panorama that the page offers."""

    id: str
    name: str
    question: str | None  # to begin with
    open: Callable[[], bytes | np.ndarray]


class Pictures:
    """Panoramas by id.

    Args:
        crops: of the models; a picture must fit all of them.
        offered: what is always there.
        limit: bytes of memory; beyond, the panoramas that were used least recently are forgotten.
    """

    def __init__(self, crops: Sequence[Crop], offered: Sequence[Offered], *, limit: int = 2**30) -> None:
        self.crops, self.offered, self.limit = crops, {one.id: one for one in offered}, limit
        self._known: OrderedDict[str, Panorama] = OrderedDict()
        self._lock = Lock()

    def add(self, content: bytes) -> Panorama:
        """Takes a picture of a client. Raises RefusedError where it is no panorama of a size that is read."""
        name = _digest(content)
        with self._lock:
            if name in self._known:
                self._known.move_to_end(name)
                return self._known[name]
        return self._keep(Panorama(name, name, content, self._checked(content)))

    def get(self, name: str) -> Panorama:
        """A panorama by its id. Raises RefusedError where it is unknown, or forgotten."""
        with self._lock:
            if name in self._known:
                self._known.move_to_end(name)
                return self._known[name]
        if name not in self.offered:
            raise RefusedError(404, f"There is no picture {name[:40]!r} here any more. Send it again.")
        try:
            content = self.offered[name].open()
        except OSError as error:
            raise RefusedError(404, f"{self.offered[name].name} cannot be read ({error.strerror}).") from error
        size = self._checked(content) if isinstance(content, bytes) else (content.shape[0], content.shape[1])
        return self._keep(Panorama(name, _digest(content), content, size))

    def _keep(self, panorama: Panorama) -> Panorama:
        with self._lock:
            kept = self._known.setdefault(panorama.id, panorama)
            used = sum(one.nbytes for one in self._known.values())
            while used > self.limit and len(self._known) > 1:
                used -= self._known.popitem(last=False)[1].nbytes
            return kept

    def _checked(self, content: bytes) -> tuple[int, int]:
        """(H, W) of a file's picture; its data are not decoded."""
        try:
            sizes = [check_panorama(io.BytesIO(content), crop.panorama_fov_deg).size for crop in self.crops]
        except ValueError as error:
            raise RefusedError(400, str(error)) from error
        height, width = sizes[0]
        if max(height, width) > MAX_SIDE:
            raise RefusedError(
                400, f"The picture has {width} x {height} pixels; a side has {MAX_SIDE} at most. Scale it down first."
            )
        return height, width


def _digest(content: bytes | np.ndarray) -> str:
    return hashlib.sha256(content).hexdigest()[:16]  # type: ignore[arg-type]


def world_pictures() -> list[Offered]:
    """Some scenes of the built-in world, each with a question."""
    source = WorldSource(split="test", scenes=WORLD_SCENES, height=WORLD_HEIGHT)
    first: dict[str, str] = {}
    for question in source.questions():
        if question.question_type == "where":
            first.setdefault(question.image_id, question.question)
    return [
        Offered(f"world-{index}", f"world {index}", first.get(source.image_id(index)), partial(source.panorama, index))
        for index in range(WORLD_SCENES)
    ]


def file_pictures(paths: Sequence[Path]) -> list[Offered]:
    """Files as offered panoramas; their ids depend on their names alone, so that links hold."""
    names = [os.fsencode(path.name) for path in paths]  # any bytes
    return [
        Offered(f"file-{_digest(name)}", name.decode(errors="replace"), None, path.read_bytes)
        for name, path in zip(names, paths, strict=True)
    ]
