"""Pictures of a run: what the views of a panorama see, and what was answered about it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from panollava.crop.cameras import Column, point_directions, view_directions
from panollava.crop.sphere import direction_to_pixel
from panollava.evaluation.answers import is_correct
from panollava.evaluation.drawing import (
    BAD,
    GOOD,
    GREY,
    INK,
    PAPER,
    Colour,
    draw_text,
    line_height,
    palette,
    resize,
    wrap_text,
)
from panollava.evaluation.predictions import Prediction

MARGIN = 12
EDGE_POINTS = 256


def views_picture(
    panorama: np.ndarray, views: Tensor | np.ndarray, cameras: Tensor, *, width: int = 1280
) -> np.ndarray:
    """The panorama with the borders of the tiles drawn on it, and the views below it.

    Args:
        panorama: (H, W, 3) uint8 RGB.
        views: (V, 3, h, w) uint8.
        cameras: (V, C).
        width: of the picture.

    Returns:
        (?, width, 3) uint8 RGB.
    """
    count, _, height, view_width = views.shape
    colours = palette(count)
    top = resize(panorama, width, width // 2)
    for number in range(count):
        if not cameras[number, Column.IS_GLOBAL]:
            _draw_border(top, cameras[number], colours[number])
    for number in range(count):
        if not cameras[number, Column.IS_GLOBAL]:
            column, row = direction_to_pixel(view_directions(cameras[number]), top.shape[:2])
            draw_text(top, str(number), (int(column) - 8, int(row) - 10), background=PAPER)

    columns = math.ceil(count / math.ceil(count / 6))
    cell = (width - MARGIN * (columns + 1)) // columns
    cell_height = max(1, round(cell * height / view_width))
    label = line_height(14) + 4
    rows = math.ceil(count / columns)
    canvas = _canvas(top.shape[0] + MARGIN + rows * (cell_height + label + MARGIN), width)
    canvas[: top.shape[0]] = top
    for number in range(count):
        x = MARGIN + (number % columns) * (cell + MARGIN)
        y = top.shape[0] + MARGIN + (number // columns) * (cell_height + label + MARGIN)
        view = np.ascontiguousarray(np.asarray(views[number]).transpose(1, 2, 0))
        canvas[y : y + cell_height, x : x + cell] = resize(view, cell, cell_height)
        cv2.rectangle(canvas, (x, y), (x + cell - 1, y + cell_height - 1), colours[number], 2)
        draw_text(canvas, _view_label(number, cameras[number]), (x, y + cell_height + 3), size=14)
    return canvas


def answers_picture(panorama: np.ndarray, predictions: Sequence[Prediction], *, width: int = 1280) -> np.ndarray:
    """The panorama with questions about it, the answers given, and the references of wrong ones beside it.

    Args:
        panorama: (H, W, 3) uint8 RGB.
        predictions: sample answers, as many as shall be shown.
        width: of the picture.

    Returns:
        (?, width, 3) uint8 RGB.
    """
    left = width * 3 // 5
    scene = resize(panorama, left, left // 2)
    space = width - left - 2 * MARGIN
    lines = [line for prediction in predictions for line in _answer_lines(prediction, space)]
    step = line_height(16)
    canvas = _canvas(max(scene.shape[0], 2 * MARGIN + step * len(lines)), width)
    canvas[: scene.shape[0], :left] = scene
    for number, (text, colour) in enumerate(lines):
        draw_text(canvas, text, (left + MARGIN, MARGIN + step * number), colour=colour)
    return canvas


def _answer_lines(prediction: Prediction, width: int) -> list[tuple[str, Colour]]:
    right = is_correct(prediction.prediction, prediction.references)
    said = prediction.prediction.strip() or "(no answer)"
    parts = [(prediction.question, INK), (f"answer: {said}", GOOD if right else BAD)]
    if not right:
        parts.append((f"reference: {prediction.references[0]}", GREY))
    lines = [(line, colour) for text, colour in parts for line in wrap_text(text, width - 6, 16, max_lines=4)]
    return [*lines, ("", INK)]


def _draw_border(picture: np.ndarray, camera: Tensor, colour: Colour) -> None:
    """Draws the outline of a view, a curve on the panorama, in place."""
    height, width = picture.shape[:2]
    column, row = direction_to_pixel(_border_directions(camera), (height, width))
    points = np.stack((column.numpy(), row.numpy()), axis=-1)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        # Across the seam the line goes on at the other side: it is drawn at both, and cut by the picture.
        turn = np.array((width * round((start[0] - end[0]) / width), 0.0))
        for shift in {0.0, float(turn[0])}:
            first, last = start - (shift, 0), end + turn - (shift, 0)
            cv2.line(picture, _whole(first), _whole(last), colour, 2, cv2.LINE_AA)


def _border_directions(camera: Tensor) -> Tensor:
    """Unit vectors (P, 3) once around the content of a view (C)."""
    x0, y0, x1, y1 = (float(camera[column]) for column in range(Column.BOX_X0, Column.BOX_Y1 + 1))
    along = torch.linspace(0, 1, EDGE_POINTS, dtype=camera.dtype)
    x, y = x0 + along * (x1 - x0), y0 + along * (y1 - y0)
    edges = (
        point_directions(camera, x, y[:1])[0],
        point_directions(camera, x[-1:], y)[:, 0],
        point_directions(camera, x, y[-1:])[0].flip(0),
        point_directions(camera, x[:1], y)[:, 0].flip(0),
    )
    return torch.cat(edges)


def _view_label(number: int, camera: Tensor) -> str:
    if camera[Column.IS_GLOBAL]:
        return f"{number}  whole panorama"
    yaw, pitch = (math.degrees(float(camera[column])) for column in (Column.YAW, Column.PITCH))
    return f"{number}  yaw {round(yaw + 180) % 360 - 180}°  pitch {round(pitch)}°"


def _whole(point: np.ndarray) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


def _canvas(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)
