"""Text and frames for pictures: any text of any language is drawn, as boxes where no font knows it."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK, PAPER, GREY = (24, 24, 24), (255, 255, 255), (110, 110, 110)
GOOD, BAD = (20, 120, 50), (180, 40, 30)

WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansKR-Regular.otf",
    "NanumGothic.ttf",
    "malgun.ttf",
    "AppleSDGothicNeo.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "Arial Unicode.ttf",
    "DroidSansFallbackFull.ttf",
    "wqy-zenhei.ttc",
    "DejaVuSans.ttf",
    "arial.ttf",
    "Arial.ttf",
)
"""Fonts of the usual systems that know more than Latin letters; Pillow finds them by name."""


def draw_text(
    canvas: np.ndarray,
    text: str,
    position: tuple[int, int],
    *,
    size: int = 16,
    colour: Colour = INK,
    background: Colour | None = None,
) -> None:
    """Writes one line onto a picture.

    Args:
        canvas: (H, W, 3) uint8 RGB, changed in place; what lies outside it is cut.
        text: any text; control characters become spaces.
        position: (x, y) of the upper left corner.
        size: height of the letters in pixels.
        colour: of the letters.
        background: of a box behind them.
    """
    line = _printable(text)
    if not line.strip():
        return
    font = _font_for(line, size)
    width, height = text_width(line, size) + 6, line_height(size)
    x0, y0 = max(0, position[0]), max(0, position[1])
    x1, y1 = min(canvas.shape[1], position[0] + width), min(canvas.shape[0], position[1] + height)
    if x0 >= x1 or y0 >= y1:
        return
    patch = Image.fromarray(canvas[y0:y1, x0:x1])
    drawing = ImageDraw.Draw(patch)
    if background is not None:
        drawing.rectangle((0, 0, x1 - x0, y1 - y0), fill=background)
    drawing.text((position[0] - x0 + 3, position[1] - y0), line, fill=colour, font=font)
    canvas[y0:y1, x0:x1] = np.asarray(patch)


def text_width(text: str, size: int) -> int:
    """Pixels that a line takes."""
    line = _printable(text)
    return int(np.ceil(_font_for(line, size).getlength(line)))


def line_height(size: int) -> int:
    """Pixels from one line to the next."""
    return round(1.4 * size)


def wrap_text(text: str, width: int, size: int, max_lines: int) -> list[str]:
    """Lines no wider than `width` pixels; words that are wider are cut, and the rest ends in "…"."""
    lines = [""]
    for word in _printable(text).split():
        for piece in _pieces(word, width, size):
            longer = f"{lines[-1]} {piece}".strip()
            if text_width(longer, size) <= width:
                lines[-1] = longer
            else:
                lines.append(piece)
        if len(lines) > max_lines:
            return [*lines[: max_lines - 1], _shortened(lines[max_lines - 1], width, size)]
    return lines


def resize(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture (H, W, 3) uint8 at another size, without the jaggies of a coarse one."""
    finer = picture.shape[1] > width
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if finer else cv2.INTER_LINEAR)


def palette(count: int) -> list[Colour]:
    """Colours that can be told apart, around the colour wheel."""
    hues = (np.arange(count) * 180 / max(1, count)).astype(np.uint8)
    wheel = np.stack((hues, np.full_like(hues, 200), np.full_like(hues, 255)), axis=-1)[None]
    red, green, blue = cv2.cvtColor(wheel, cv2.COLOR_HSV2RGB)[0].T.tolist()
    return list(zip(red, green, blue, strict=True))


def _pieces(word: str, width: int, size: int) -> list[str]:
    pieces = [""]
    if text_width(word, size) <= width:
        return [word]
    for char in word:
        if pieces[-1] and text_width(pieces[-1] + char, size) > width:
            pieces.append("")
        pieces[-1] += char
    return pieces


def _shortened(line: str, width: int, size: int) -> str:
    while line and text_width(line + " …", size) > width:
        line = line[:-1]
    return line + " …"


def _printable(text: str) -> str:
    """The text on one line, without characters that steer or that cannot be encoded."""
    return "".join(" " if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text)


def _font_for(text: str, size: int) -> Font:
    """The first font that knows most of the text."""
    unusual = frozenset(char for char in text if ord(char) > 0x7E)
    if not unusual:
        return _plain_font(size)
    fonts = [_plain_font(size), *_system_fonts(size)]
    return max(fonts, key=lambda font: sum(_knows(font, char) for char in unusual))


@lru_cache(maxsize=8)
def _plain_font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=8)
def _system_fonts(size: int) -> tuple[Font, ...]:
    found: list[Font] = []
    for name in WIDE_FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:  # not on this system
            continue
    return tuple(found)


@lru_cache(maxsize=4096)
def _knows(font: Font, char: str) -> bool:
    """Whether a font has a picture of its own for a character: it differs from the one for no character."""
    missing, mask = font.getmask("\U0010fffd"), font.getmask(char)
    return mask.size != missing.size or bytes(mask) != bytes(missing)
