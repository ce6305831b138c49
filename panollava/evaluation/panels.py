"""Panels over a panorama: colours, heat with its scale, a mark at a direction, and a page of titled panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from panollava.crop.sphere import direction_to_pixel
from panollava.evaluation.drawing import GREY, PAPER, draw_text, line_height, resize, text_width, wrap_text

PANEL = (384, 768)
"""Rows and columns of a panel."""

MARGIN, GAP, COLUMNS = 24, 20, 2
"""Pixels around everything and between panels, and panels side by side."""

TITLE, TEXT, CAPTION = 20, 16, 13
"""Height of letters: of the page, of its text and the panels' titles, below a panel."""

UNSEEN = 128
"""Grey level of what no view shows."""

HEAT, LIKENESS = cv2.COLORMAP_INFERNO, cv2.COLORMAP_VIRIDIS
"""Colours of attention, and of similarity; both get lighter as values grow."""

_COVER = 0.7
"""How much of the panorama colours hide."""

_BAR = (140, 12)
"""Columns and rows of a scale."""


@dataclass(frozen=True)
class Panel:
    """A picture with words.

    Attributes:
        title: above it.
        picture: (H, W, 3) uint8 of size ``PANEL``.
        caption: below it.
        scale: colours and the texts at their two ends, None where colours have no order.
    """

    title: str
    picture: np.ndarray
    caption: str = ""
    scale: tuple[int, str, str] | None = None


def page(title: str, text: Sequence[str], panels: Sequence[Panel], notes: Sequence[str]) -> np.ndarray:
    """Panels in rows of two below a title and lines of text, and notes below them.

    Args:
        title: one line.
        text: what the panels are about; long lines are wrapped.
        panels: of size ``PANEL``.
        notes: small print; long lines are wrapped.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    width = COLUMNS * PANEL[1] + (COLUMNS - 1) * GAP + 2 * MARGIN
    head = [line for one in text for line in wrap_text(one, width - 2 * MARGIN - 6, TEXT, max_lines=4)]
    foot = [line for one in notes for line in wrap_text(one, width - 2 * MARGIN - 6, CAPTION, max_lines=4)]
    top = MARGIN + line_height(TITLE) + line_height(TEXT) * len(head) + MARGIN // 2
    step = line_height(TEXT) + PANEL[0] + line_height(CAPTION) + GAP
    bottom = top + step * -(-len(panels) // COLUMNS)
    canvas = np.full((bottom + line_height(CAPTION) * len(foot) + MARGIN, width, 3), PAPER, np.uint8)
    draw_text(canvas, title, (MARGIN - 3, MARGIN), size=TITLE)
    for number, line in enumerate(head):
        place = (MARGIN - 3, MARGIN + line_height(TITLE) + line_height(TEXT) * number)
        draw_text(canvas, line, place, size=TEXT)
    for number, panel in enumerate(panels):
        x, y = MARGIN + number % COLUMNS * (PANEL[1] + GAP), top + number // COLUMNS * step
        _draw_panel(canvas, panel, x, y)
    for number, line in enumerate(foot):
        draw_text(canvas, line, (MARGIN - 3, bottom + line_height(CAPTION) * number), size=CAPTION, colour=GREY)
    return canvas


def colours(values: Tensor) -> np.ndarray:
    """Colours ``(H, W, 3)`` in 0..1 as a picture; what is not a number is grey."""
    return np.where(values.isnan(), UNSEEN, np.rint(255 * values.nan_to_num().numpy())).astype(np.uint8)


def heat(panorama: np.ndarray, values: Tensor, colour_map: int, low: float, high: float) -> np.ndarray:
    """Values over a panorama that keeps its lights and shadows; what is not a number shows it as it is, in grey.

    Args:
        panorama: (H, W, 3) uint8 RGB.
        values: ``(H, W)``.
        colour_map: ``HEAT`` or ``LIKENESS``.
        low: value of the map's first colour.
        high: of its last; values beyond them have the nearer one's.
    """
    grey = np.repeat(cv2.cvtColor(panorama, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    share = ((values - low) / max(high - low, 1e-12)).clamp(0, 1)
    covered = _COVER * _mapped(np.rint(255 * share.nan_to_num().numpy()), colour_map) + (1 - _COVER) * grey
    return np.where(values.isnan()[..., None], grey, np.rint(covered)).astype(np.uint8)


def marked(picture: np.ndarray, direction: Tensor) -> np.ndarray:
    """The picture of a panorama with a ring and a dot at a direction ``(3)``; over the seam it goes on behind."""
    result = picture.copy()
    column, row = (round(float(at)) for at in direction_to_pixel(direction, picture.shape[:2]))
    for turn in (-picture.shape[1], 0, picture.shape[1]):
        for radius, thickness, shade in ((10, 4, 0), (10, 2, 255), (3, -1, 0), (2, -1, 255)):
            cv2.circle(result, (column + turn, row), radius, (shade,) * 3, thickness, cv2.LINE_AA)
    return result


def fitted(panorama: np.ndarray) -> np.ndarray:
    """The panorama (H, W, 3) uint8 at a panel's size."""
    return resize(panorama, PANEL[1], PANEL[0])


def _draw_panel(canvas: np.ndarray, panel: Panel, x: int, y: int) -> None:
    draw_text(canvas, panel.title, (x - 3, y), size=TEXT)
    y += line_height(TEXT)
    canvas[y : y + PANEL[0], x : x + PANEL[1]] = panel.picture
    y += PANEL[0]
    room = PANEL[1]
    if panel.scale is not None:
        colour_map, low, high = panel.scale
        end = x + PANEL[1] - text_width(high, CAPTION)
        draw_text(canvas, high, (end - 3, y), size=CAPTION, colour=GREY)
        bar = end - _BAR[0] - 6
        middle = y + line_height(CAPTION) // 2
        ramp = _COVER * _mapped(np.tile(np.linspace(0, 255, _BAR[0]), (_BAR[1], 1)), colour_map)
        canvas[middle - _BAR[1] // 2 : middle + _BAR[1] // 2, bar : bar + _BAR[0]] = ramp + (1 - _COVER) * UNSEEN
        start = bar - text_width(low, CAPTION) - 6
        draw_text(canvas, low, (start - 3, y), size=CAPTION, colour=GREY)
        room = start - x - GAP
    (caption, *_) = wrap_text(panel.caption, room, CAPTION, max_lines=1)
    draw_text(canvas, caption, (x - 3, y), size=CAPTION, colour=GREY)


def _mapped(levels: np.ndarray, colour_map: int) -> np.ndarray:
    """Colours (H, W, 3) RGB of levels 0..255."""
    return cv2.applyColorMap(levels.astype(np.uint8), colour_map)[..., ::-1]
