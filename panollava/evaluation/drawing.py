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
CHROMA = 0.19
"""How vivid the colours of ``palette`` are (Oklab); a little more than a screen can show of some."""

_FINER = 4
"""Text is drawn so many times larger and shrunk, so that letters keep their distances."""

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
    width, height = text_width(line, size) + 6, line_height(size)
    x, y = position
    x0, y0 = max(0, x), max(0, y)
    x1, y1 = min(canvas.shape[1], x + width), min(canvas.shape[0], y + height)
    if x0 >= x1 or y0 >= y1:
        return
    patch = Image.fromarray(canvas[y0:y1, x0:x1])
    if background is not None:
        patch.paste(background, (0, 0, *patch.size))
    letters = _letters(line, size, (width, height), (3.0, 0.0), "la")
    patch.paste(colour, mask=letters.crop((x0 - x, y0 - y, x1 - x, y1 - y)))
    canvas[y0:y1, x0:x1] = np.asarray(patch)


def draw_tag(
    canvas: np.ndarray, text: str, middle: tuple[float, float], *, size: int, colour: Colour, ink: Colour = INK
) -> None:
    """Writes a short text on a rounded patch of colour.

    Args:
        canvas: (H, W, 3) uint8 RGB, changed in place; the tag is moved to lie inside it.
        text: a few characters.
        middle: (x, y) of the tag's middle.
        size: height of the letters in pixels.
        colour: of the patch.
        ink: of the letters.
    """
    width, height = tag_width(text, size), line_height(size)
    x, y = (
        round(min(max(0.0, centre - side / 2), max(0, whole - side)))
        for centre, side, whole in zip(middle, (width, height), (canvas.shape[1], canvas.shape[0]), strict=True)
    )
    shape = Image.new("L", (width * _FINER, height * _FINER))
    outline = (0, 0, shape.width - 1, shape.height - 1)
    ImageDraw.Draw(shape).rounded_rectangle(outline, shape.height / 2, fill=255)
    letters = _letters(text, size, (width, height), (width / 2, height / 2), "mm")
    patch = Image.fromarray(canvas[y : y + height, x : x + width])
    for fill, mask in ((colour, shape.reduce(_FINER)), (ink, letters)):
        patch.paste(fill, mask=mask.crop((0, 0, *patch.size)))
    canvas[y : y + height, x : x + width] = np.asarray(patch)


def tag_width(text: str, size: int) -> int:
    """Pixels that a tag takes; one with a single letter is round."""
    return max(line_height(size), text_width(text, size) + size)


def text_width(text: str, size: int) -> int:
    """Pixels that a line takes."""
    line = _printable(text)
    return int(np.ceil(_font_for(line, size * _FINER).getlength(line) / _FINER))


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


def encode_png(picture: np.ndarray) -> bytes:
    """The picture (H, W, 3) uint8 RGB as the content of a PNG file."""
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 6])
    return data.tobytes()


def palette(count: int) -> list[Colour]:
    """Bright colours of which neighbours in the list differ most: steps of the golden angle around the colour wheel.

    Source: B. Ottosson, "A perceptual color space for image processing", 2020 (Oklab to linear sRGB).
    """
    step = np.arange(count)
    hue, lightness = 0.6 + step * np.pi * (3 - np.sqrt(5)), np.array((0.78, 0.68, 0.86))[step % 3]
    a, b = CHROMA * np.cos(hue), CHROMA * np.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
    linear = np.stack((red, green, blue), axis=-1).clip(0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return [(int(r), int(g), int(b)) for r, g, b in np.rint(255 * curved)]


def _letters(text: str, size: int, box: tuple[int, int], at: tuple[float, float], anchor: str) -> Image.Image:
    """How much each pixel of a box (width, height) is covered by a line of text, as a picture of grey levels."""
    fine = Image.new("L", (box[0] * _FINER, box[1] * _FINER))
    place = (at[0] * _FINER, at[1] * _FINER)
    ImageDraw.Draw(fine).text(place, text, fill=255, font=_font_for(text, size * _FINER), anchor=anchor)
    return fine.reduce(_FINER)


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
