"""Text and frames for pictures: any text of any language is drawn, as boxes where no font knows it, which is told."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)

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
    "Symbola_hint.ttf",
)
"""Fonts of the usual systems that know more than Latin letters; Pillow finds them by name."""

KOREAN = Path(__file__).with_name("fonts") / "NotoSansKR-Regular.ttf"
"""Latin and Korean letters for systems without a font of the latter."""

PACKAGES = dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "HANGUL"), "fonts-noto-cjk")
"""Debian's packages of fonts, by the first word of their letters' names; of others fonts-noto-core has most."""

_undrawn: set[str] = set()
"""Characters of the picture at hand that were drawn as boxes."""


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
    """The picture (H, W, 3) uint8 RGB as the content of a PNG file; says which of its characters no font here knows."""
    tell_undrawn(_undrawn)
    _undrawn.clear()
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
    place, font = (at[0] * _FINER, at[1] * _FINER), _font_for(text, size * _FINER)
    _undrawn.update(char for char in _unusual(text) if not _knows(font, char))
    ImageDraw.Draw(fine).text(place, text, fill=255, font=font, anchor=anchor)
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
    unusual = _unusual(text)
    if not unusual:
        return _plain_font(size)

    def known(font: Font) -> int:
        return sum(_knows(font, char) for char in unusual)

    best = max([_plain_font(size), *_fonts((*WIDE_FONTS, str(KOREAN)), size)], key=known)
    scripts = sorted({_script(char).title() for char in unusual if not _knows(best, char)})
    return max([best, *_fonts(tuple(f"NotoSans{script}-Regular.ttf" for script in scripts), size)], key=known)


def tell_undrawn(characters: Iterable[str]) -> None:
    """Says in one line that a picture has characters which no font here knows, and what to install."""
    missing = sorted(set(characters))
    if not missing:
        return
    symbols = {"fonts-symbola" for char in missing if unicodedata.category(char) == "So"}
    letters = [char for char in missing if unicodedata.category(char) != "So"]
    packages = sorted(symbols | {PACKAGES.get(_script(char), "fonts-noto-core") for char in letters})
    logger.warning(
        "Characters that no font here knows are drawn as boxes: %s%s. Debian and Ubuntu have such fonts in %s.",
        " ".join(missing[:5]),
        f" and {len(missing) - 5} more" if len(missing) > 5 else "",
        ", ".join(packages),
    )


def _script(char: str) -> str:
    """The first word of a letter's name."""
    return unicodedata.name(char, "?").split()[0]


def _unusual(text: str) -> frozenset[str]:
    """Characters that have a picture and that not every font knows."""
    return frozenset(char for char in text if ord(char) > 0x7E and unicodedata.category(char)[0] not in "CMZ")


@lru_cache(maxsize=8)
def _plain_font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=256)
def _fonts(names: tuple[str, ...], size: int) -> tuple[Font, ...]:
    """Those that are there."""
    found: list[Font] = []
    for name in names:
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
