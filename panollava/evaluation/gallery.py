"""The gallery: a panorama with the borders of its views drawn on it, and the views below."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from panollava.crop.borders import border_curves, narrowed
from panollava.crop.cameras import EQUIRECTANGULAR, Camera, camera_tensor, view_directions
from panollava.crop.sphere import direction_to_pixel
from panollava.evaluation.drawing import (
    PAPER,
    Colour,
    draw_tag,
    draw_text,
    line_height,
    palette,
    resize,
    tag_width,
    text_width,
)

MARGIN, GAP = 24, 20
"""Pixels around everything, and between two views."""

MOST_COLUMNS, WIDEST_CELL = 8, 420
"""Views side by side, and how wide one is shown at most: a single view need not fill the picture."""

FRAME = 4
"""Width of the frame around a view."""

TITLE, NUMBER, LABEL, SMALLEST_LABEL = 20, 18, 15, 9
"""Height of letters: above the panorama, on it, below a view, and there at least."""

LINE, HALO, HALO_SHARE = 2.0, 4.5, 0.45
"""Width of a border and of the shadow that sets it off from the panorama, and how dark the shadow is."""

WHOLE = (205, 205, 205)
"""Colour of views of the whole panorama."""

_FINER = 2
"""Borders are drawn so many times finer and averaged, which smooths them more than cv2 alone does."""

_FRACTION_BITS = 4


def gallery_picture(
    panorama: np.ndarray, views: Tensor | np.ndarray, cameras: Sequence[Camera], *, title: str, width: int = 1600
) -> np.ndarray:
    """The panorama with the borders and numbers of its tiles, and the views below it with their angles.

    Args:
        panorama: (H, W, 3) uint8 RGB.
        views: (V, 3, h, w) uint8.
        cameras: V cameras.
        title: a line above it all.
        width: of the picture.

    Returns:
        (?, width, 3) uint8 RGB.
    """
    inner = width - 2 * MARGIN
    top = with_borders(resize(panorama, inner, inner // 2), cameras)
    below = _grid(views, cameras, inner)
    head = line_height(TITLE) + MARGIN // 2
    canvas = np.full((head + top.shape[0] + below.shape[0] + 3 * MARGIN, width, 3), PAPER, np.uint8)
    draw_text(canvas, title, (MARGIN - 3, MARGIN), size=TITLE)
    y = MARGIN + head
    for part in (top, below):
        canvas[y : y + part.shape[0], MARGIN : MARGIN + inner] = part
        y += part.shape[0] + MARGIN
    return canvas


def with_borders(panorama: np.ndarray, cameras: Sequence[Camera]) -> np.ndarray:
    """The panorama with the border of each tile, a curve in a colour of its own, and its number in the middle.

    A border is drawn just inside its tile, so that those of tiles that touch lie side by side, and those of strips
    that overlap one within the other. Views of the whole panorama have none.

    Args:
        panorama: (H, W, 3) uint8 RGB.
        cameras: V cameras.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = panorama.shape[:2]
    colours = view_colours(cameras)
    line_rad = LINE * 2 * math.pi / width
    curves = {
        number: border_curves(narrowed(camera, line_rad, line_rad * (1 + 2 * level)), (height, width))
        for number, (camera, level) in enumerate(zip(cameras, _levels(cameras), strict=True))
        if not camera.is_global
    }
    cover = np.zeros((height * _FINER, width * _FINER), np.uint8)
    ink = np.zeros((*cover.shape, 3), np.uint8)
    for border in curves.values():
        _draw_curves(cover, border, width, HALO, round(255 * HALO_SHARE))
    for number, border in curves.items():
        _draw_curves(cover, border, width, LINE, 255)
        _draw_curves(ink, border, width, LINE, colours[number])
    share = resize(cover, width, height)[..., None] / 255
    drawn = np.rint(panorama * (1 - share) + resize(ink, width, height)).clip(0, 255).astype(np.uint8)
    for number in curves:
        draw_tag(drawn, str(number), _middle(cameras[number], (height, width)), size=NUMBER, colour=colours[number])
    return drawn


def view_colours(cameras: Sequence[Camera]) -> list[Colour]:
    """A colour a view; views of the whole panorama are grey."""
    colours = iter(palette(sum(not camera.is_global for camera in cameras)))
    return [WHOLE if camera.is_global else next(colours) for camera in cameras]


def view_label(camera: Camera) -> str:
    """Where a view looks, in degrees, or that it shows everything."""
    if camera.is_global:
        return "whole panorama"
    yaw_deg, pitch_deg = (round(math.degrees(angle), 1) for angle in (camera.yaw_rad, camera.pitch_rad))
    return f"yaw {180 - (180 - yaw_deg) % 360:g}°  pitch {pitch_deg + 0.0:g}°"  # + 0.0 makes -0.0 a plain zero


def _grid(views: Tensor | np.ndarray, cameras: Sequence[Camera], width: int) -> np.ndarray:
    """The views in rows of equal length, each in its colour's frame above its label."""
    count, _, view_height, view_width = views.shape
    columns = math.ceil(count / math.ceil(count / MOST_COLUMNS))
    cell = min(WIDEST_CELL, (width - GAP * (columns - 1)) // columns)
    cell_height = round((cell - 2 * FRAME) * view_height / view_width) + 2 * FRAME
    step = cell_height + FRAME + line_height(LABEL) + GAP
    canvas = np.full((math.ceil(count / columns) * step - GAP, width, 3), PAPER, np.uint8)
    labels = [view_label(camera) for camera in cameras]
    size = _label_size(labels, cell - tag_width(str(count - 1), LABEL) - 4)
    for number, (colour, label) in enumerate(zip(view_colours(cameras), labels, strict=True)):
        x, y = number % columns * (cell + GAP), number // columns * step
        view = np.ascontiguousarray(np.asarray(views[number]).transpose(1, 2, 0))
        canvas[y : y + cell_height, x : x + cell] = colour
        canvas[y + FRAME : y + cell_height - FRAME, x + FRAME : x + cell - FRAME] = resize(
            view, cell - 2 * FRAME, cell_height - 2 * FRAME
        )
        tag, middle = tag_width(str(number), LABEL), y + cell_height + FRAME + line_height(LABEL) / 2
        draw_tag(canvas, str(number), (x + tag / 2, middle), size=LABEL, colour=colour)
        draw_text(canvas, label, (x + tag + 2, round(middle - line_height(size) / 2)), size=size)
    return canvas


def _label_size(labels: Sequence[str], width: int) -> int:
    """The largest letters in which every label fits."""
    sizes = range(LABEL, SMALLEST_LABEL, -1)
    return next((size for size in sizes if max(text_width(label, size) for label in labels) <= width), SMALLEST_LABEL)


def _draw_curves(
    canvas: np.ndarray, curves: Sequence[np.ndarray], width: int, thickness: float, colour: Colour | int
) -> None:
    """Draws curves (P, 2) of a panorama of so many columns, in place; what sticks out over the seam goes on behind."""
    for curve in curves:
        for turn in (-width, 0, width):
            columns = curve[:, 0] + turn
            if columns.max() < -thickness or columns.min() > width + thickness:
                continue
            fine = (np.stack((columns, curve[:, 1]), axis=-1) + 0.5) * _FINER - 0.5
            points = np.rint(fine * 2**_FRACTION_BITS).astype(np.int32)
            cv2.polylines(canvas, [points], False, colour, round(thickness * _FINER), cv2.LINE_AA, _FRACTION_BITS)


def _middle(camera: Camera, panorama_size: tuple[int, int]) -> tuple[float, float]:
    """Column and row of the middle of a view."""
    direction = view_directions(camera_tensor([camera], torch.float64))[0]
    column, row = direction_to_pixel(direction, panorama_size)
    return float(column), float(row)


def _levels(cameras: Sequence[Camera]) -> list[int]:
    """How many lines further in a border's upper and lower edge goes than another's that it would cover.

    It is overlapping strips of one ring that have these edges in common.
    """
    levels: list[int] = []
    for camera in cameras:
        taken = {level for level, other in zip(levels, cameras, strict=False) if _share_edges(other, camera)}
        levels.append(next(level for level in range(len(cameras)) if level not in taken))
    return levels


def _share_edges(one: Camera, other: Camera) -> bool:
    is_strip = one.projection == other.projection == EQUIRECTANGULAR and not (one.is_global or other.is_global)
    same_row = math.isclose(one.pitch_rad, other.pitch_rad, abs_tol=1e-9) and one.v_extent_rad == other.v_extent_rad
    apart = abs(math.remainder(one.yaw_rad - other.yaw_rad, 2 * math.pi))
    return is_strip and same_row and apart < (one.h_extent_rad + other.h_extent_rad) / 2 - 1e-6
