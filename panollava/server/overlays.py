"""What the page draws over a panorama: borders of views, boxes, masks, attention and similarity.

Angles in documents are degrees; pictures are PNG files of the whole sphere, transparent where there is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from panollava.crop.cameras import Camera
from panollava.crop.crop import Crop, Cut
from panollava.evaluation.drawing import HEAT, LIKENESS, PANEL, encode_png, overlay, palette
from panollava.evaluation.explain import (
    WHOLE,
    TokenMap,
    answer_attention,
    attention_values,
    see,
    similarity,
    token_towards,
)
from panollava.evaluation.gallery import border_outline, box_outline
from panollava.model.api import PanoLlava
from panollava.model.detector import Detections
from panollava.model.vision import PanoVision


@dataclass(frozen=True)
class Overlay:
    """A PNG file, and the values of the first and the last colour."""

    png: bytes
    low: float
    high: float


class Overlays:
    """Makes the overlays of a model; the places of its tokens are computed once where all panoramas have the same."""

    def __init__(self, vision: PanoVision, crop: Crop) -> None:
        self._vision, self._crop = vision, crop
        self._maps: dict[tuple[int, int], TokenMap] = {}

    def attention(
        self,
        pano: PanoLlava,
        views: torch.Tensor | Cut,
        question: str,
        answer: str,
        history: Sequence[tuple[str, str]],
    ) -> Overlay:
        """Attention of an answer, as a multiple of uniform attention; errors as of ``answer_attention``."""
        found = answer_attention(pano, views, question, answer, history=history)
        cameras = self._crop.with_cameras(views).cameras
        values = attention_values(found, self._map(self._vision.token_grid or WHOLE, cameras))
        high = max(float(values.nan_to_num().max()), 1.0)
        return Overlay(encode_png(overlay(values, HEAT, 0.0, high)), 0.0, high)

    def similar(self, views: torch.Tensor | Cut, yaw_deg: float, pitch_deg: float) -> Overlay:
        """Cosine similarity of the encoder's features with the one in a direction; ValueError if no view shows it."""
        grid, cut = self._vision.tower.grid, self._crop.with_cameras(views)
        index, _ = token_towards(cut.cameras, grid, yaw_deg, pitch_deg)
        features, _ = see(self._vision, *cut)
        values = self._map(grid, cut.cameras).paint(similarity(features.flatten(0, 1), index))
        low = float(values.nan_to_num(nan=1.0).min())
        return Overlay(encode_png(overlay(values, LIKENESS, low, 1.0)), low, 1.0)

    def _map(self, grid: tuple[int, int], cameras: torch.Tensor) -> TokenMap:
        if self._crop.is_adaptive:
            return TokenMap(cameras, grid, PANEL)
        if grid not in self._maps:
            self._maps[grid] = TokenMap(cameras, grid, PANEL)
        return self._maps[grid]


def views_document(cameras: Sequence[Camera]) -> dict[str, Any]:
    """The views of a panorama with their borders."""
    return {"views": [_view(number, camera) for number, camera in enumerate(cameras)]}


def _view(number: int, camera: Camera) -> dict[str, Any]:
    return {
        "number": number,
        "yaw": _rounded(np.degrees(camera.yaw_rad)),
        "pitch": _rounded(np.degrees(camera.pitch_rad)),
        "whole": camera.is_global,
        "border": [] if camera.is_global else [_curve(border_outline(camera))],
    }


def boxes_document(found: Detections) -> dict[str, Any]:
    """Boxes with their outlines, the best first."""
    outlines = map(box_outline, found.boxes.boxes)
    return {
        "boxes": [
            {
                "name": one.name,
                "score": _rounded(one.score),
                "yaw": _rounded(one.yaw),
                "pitch": _rounded(one.pitch),
                "width": _rounded(one.horizontal),
                "height": _rounded(one.vertical),
                "outline": _curve(outline),
            }
            for one, outline in zip(found, outlines, strict=True)
        ]
    }


def mask_png(found: Detections) -> bytes:
    """Masks in the colours of their classes."""
    colours = np.array([(*colour, 255) for colour in palette(len(found.names))] + [(0, 0, 0, 0)], np.uint8)
    return encode_png(colours[found.mask])  # -1, no class, is the last


def _curve(points: np.ndarray) -> list[list[float]]:
    """Yaws and pitches, continuous across the seam."""
    yaws = np.unwrap(points[:, 0], period=360)
    return [[_rounded(yaw), _rounded(pitch)] for yaw, pitch in zip(yaws, points[:, 1], strict=True)]


def _rounded(value: float) -> float:
    return round(float(value), 3) + 0.0
