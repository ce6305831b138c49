"""Drawing on pictures: text of any language, colours, heat over a panorama, and pages of titled panels."""

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from panollava.crop.sphere import direction_to_pixel

logger = logging.getLogger(__name__)
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
INK, PAPER, GREY = (24, 24, 24), (255, 255, 255), (110, 110, 110)
GOOD, BAD = (20, 120, 50), (180, 40, 30)
CHROMA = 0.19  # chroma of the colours of ``palette`` (Oklab); some are slightly outside sRGB and clipped
_FINER = 4  # text is drawn this many times larger and reduced, which keeps the spacing of letters
WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansKR-Regular.otf", "NanumGothic.ttf", "malgun.ttf", "AppleSDGothicNeo.ttc",
    "msyh.ttc", "YuGothM.ttc", "Arial Unicode.ttf", "DroidSansFallbackFull.ttf", "wqy-zenhei.ttc", "DejaVuSans.ttf",
    "arial.ttf", "Arial.ttf", "Symbola_hint.ttf",
)  # fmt: skip
"""Fonts of common systems with more than Latin letters; Pillow finds them by name."""
KOREAN = Path(__file__).with_name("fonts") / "NotoSansKR-Regular.ttf"  # for systems without a Korean font
PACKAGES = dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "HANGUL"), "fonts-noto-cjk")
"""Debian's font packages by the first word of a letter's Unicode name; fonts-noto-core has most others."""
PANEL = (384, 768)  # rows and columns of a panel
MARGIN, GAP, COLUMNS = 24, 20, 2  # pixels around the page and between panels, and panels in a row
TITLE, TEXT, CAPTION = 20, 16, 13  # heights of letters: the page's title, its text and the panels' titles, captions
UNSEEN = 128  # grey level of pixels that no view shows
HEAT, LIKENESS = cv2.COLORMAP_INFERNO, cv2.COLORMAP_VIRIDIS  # of attention, of similarity; lighter as values grow
_COVER = 0.7  # opacity of colours over the panorama
_BAR = (140, 12)  # columns and rows of a scale
_boxed: set[str] = set()  # characters of the current picture that were drawn as boxes


def draw_text(
    canvas: np.ndarray, text: str, position: tuple[int, int], *, size: int = 16, colour: Colour = INK
) -> None:
    """Writes one line onto a picture (H, W, 3) uint8 RGB, in place; text outside it is clipped.

    `position` is (x, y) of the upper left corner, `size` the height of the letters in pixels.
    """
    line = _printable(text)
    if not line.strip():
        return
    width, height = text_width(line, size) + 6, line_height(size)
    x, y = position
    x0, y0, x1, y1 = max(0, x), max(0, y), min(canvas.shape[1], x + width), min(canvas.shape[0], y + height)
    if x0 >= x1 or y0 >= y1:
        return
    patch = Image.fromarray(canvas[y0:y1, x0:x1])
    letters = _letters(line, size, (width, height), (3.0, 0.0), "la")
    patch.paste(colour, mask=letters.crop((x0 - x, y0 - y, x1 - x, y1 - y)))
    canvas[y0:y1, x0:x1] = np.asarray(patch)


def draw_tag(canvas: np.ndarray, text: str, middle: tuple[float, float], *, size: int, colour: Colour) -> None:
    """Writes a few characters on a rounded patch of colour onto a picture (H, W, 3) uint8 RGB, in place.

    The tag is moved to lie inside the picture; `middle` is (x, y).
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
    for fill, mask in ((colour, shape.reduce(_FINER)), (INK, letters)):
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
            last = lines[max_lines - 1]
            while last and text_width(last + " …", size) > width:
                last = last[:-1]
            return [*lines[: max_lines - 1], last + " …"]
    return lines


def resize(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture (H, W, 3) uint8 at another size, antialiased where it shrinks."""
    finer = picture.shape[1] > width
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if finer else cv2.INTER_LINEAR)


def encode_png(picture: np.ndarray) -> bytes:
    """The picture (H, W, 3) uint8 RGB, or (H, W, 4) RGBA, as a PNG file; logs its characters that no font here has."""
    warn_of_missing_glyphs(_boxed)
    _boxed.clear()
    order = cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, order), [cv2.IMWRITE_PNG_COMPRESSION, 4])
    return data.tobytes()


def palette(count: int) -> list[Colour]:
    """Bright colours, neighbours in the list far apart: steps of the golden angle around the colour wheel.

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
    """Coverage of the pixels of a box (width, height) by a line of text, as grey levels."""
    fine = Image.new("L", (box[0] * _FINER, box[1] * _FINER))
    place, font = (at[0] * _FINER, at[1] * _FINER), _font_for(text, size * _FINER)
    _boxed.update(char for char in _unusual(text) if not _has_glyph(font, char))
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


def _printable(text: str) -> str:
    """The text on one line, without control characters and surrogates."""
    return "".join(" " if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text)


def _font_for(text: str, size: int) -> Font:
    """The first font with most of the text's characters."""
    unusual = _unusual(text)
    if not unusual:
        return _plain_font(size)

    def known(font: Font) -> int:
        return sum(_has_glyph(font, char) for char in unusual)

    best = max([_plain_font(size), *_fonts((*WIDE_FONTS, str(KOREAN)), size)], key=known)
    scripts = sorted({_script(char).title() for char in unusual if not _has_glyph(best, char)})
    return max([best, *_fonts(tuple(f"NotoSans{script}-Regular.ttf" for script in scripts), size)], key=known)


def warn_of_missing_glyphs(characters: Iterable[str]) -> None:
    """Logs in one line the characters of a picture that no font here has, and what to install."""
    missing = sorted(set(characters))
    if not missing:
        return
    symbols = {"fonts-symbola" for char in missing if unicodedata.category(char) == "So"}
    letters = {PACKAGES.get(_script(char), "fonts-noto-core") for char in missing if unicodedata.category(char) != "So"}
    logger.warning(
        "Characters that no font here has are drawn as boxes: %s%s. Debian and Ubuntu have such fonts in %s.",
        " ".join(missing[:5]),
        f" and {len(missing) - 5} more" if len(missing) > 5 else "",
        ", ".join(sorted(symbols | letters)),
    )


def _script(char: str) -> str:
    return unicodedata.name(char, "?").split()[0]


def _unusual(text: str) -> frozenset[str]:
    """Characters with a glyph that not every font has."""
    return frozenset(char for char in text if ord(char) > 0x7E and unicodedata.category(char)[0] not in "CMZ")


@lru_cache(maxsize=8)
def _plain_font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=256)
def _fonts(names: tuple[str, ...], size: int) -> tuple[Font, ...]:
    found: list[Font] = []
    for name in names:
        with suppress(OSError):  # not on this system
            found.append(ImageFont.truetype(name, size))
    return tuple(found)


@lru_cache(maxsize=4096)
def _has_glyph(font: Font, char: str) -> bool:
    """Whether a font has a glyph for a character, different from the one for a missing character."""
    missing, mask = font.getmask("\U0010fffd"), font.getmask(char)
    return mask.size != missing.size or bytes(mask) != bytes(missing)


@dataclass(frozen=True)
class Panel:
    """A picture with a title above it and a caption below it."""

    title: str
    picture: np.ndarray  # (H, W, 3) uint8 of size ``PANEL``
    caption: str = ""
    scale: tuple[int, str, str] | None = None  # colour map and the texts at its ends; None where colours have no order


def page(title: str, text: Sequence[str], panels: Sequence[Panel], notes: Sequence[str]) -> np.ndarray:
    """A title, wrapped lines of text, panels in rows of two, and notes in small letters, as (H, W, 3) uint8 RGB."""
    width = COLUMNS * PANEL[1] + (COLUMNS - 1) * GAP + 2 * MARGIN
    head = [line for one in text for line in wrap_text(one, width - 2 * MARGIN - 6, TEXT, max_lines=4)]
    foot = [line for one in notes for line in wrap_text(one, width - 2 * MARGIN - 6, CAPTION, max_lines=4)]
    top = MARGIN + line_height(TITLE) + line_height(TEXT) * len(head) + MARGIN // 2
    step = line_height(TEXT) + PANEL[0] + line_height(CAPTION) + GAP
    bottom = top + step * -(-len(panels) // COLUMNS)
    canvas = np.full((bottom + line_height(CAPTION) * len(foot) + MARGIN, width, 3), PAPER, np.uint8)
    draw_text(canvas, title, (MARGIN - 3, MARGIN), size=TITLE)
    for number, line in enumerate(head):
        draw_text(canvas, line, (MARGIN - 3, MARGIN + line_height(TITLE) + line_height(TEXT) * number), size=TEXT)
    for number, panel in enumerate(panels):
        _draw_panel(canvas, panel, MARGIN + number % COLUMNS * (PANEL[1] + GAP), top + number // COLUMNS * step)
    for number, line in enumerate(foot):
        draw_text(canvas, line, (MARGIN - 3, bottom + line_height(CAPTION) * number), size=CAPTION, colour=GREY)
    return canvas


def colours(values: Tensor) -> np.ndarray:
    """Colours ``(H, W, 3)`` in 0..1 as a picture; values that are not a number are grey."""
    return np.where(values.isnan(), UNSEEN, np.rint(255 * values.nan_to_num().numpy())).astype(np.uint8)


def heat(panorama: np.ndarray, values: Tensor, colour_map: int, low: float, high: float) -> np.ndarray:
    """Values ``(H, W)`` as colours over a grey panorama (H, W, 3) uint8; where they are not a number, it shows alone.

    `low` and `high` are the values of the colour map's first and last colour; values beyond them are clamped.
    """
    grey = np.repeat(cv2.cvtColor(panorama, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    coloured = overlay(values, colour_map, low, high)
    covered = _COVER * coloured[..., :3].astype(float) + (1 - _COVER) * grey
    return np.where(coloured[..., 3:] == 0, grey, np.rint(covered)).astype(np.uint8)


def overlay(values: Tensor, colour_map: int, low: float, high: float) -> np.ndarray:
    """Values ``(H, W)`` as colours (H, W, 4) RGBA uint8, transparent where they are not a number; else as ``heat``."""
    share = ((values - low) / max(high - low, 1e-12)).clamp(0, 1)
    colours = _mapped(np.rint(255 * share.nan_to_num().numpy()), colour_map)
    return np.dstack((colours, np.where(values.isnan().numpy(), 0, 255))).astype(np.uint8)


def marked(picture: np.ndarray, direction: Tensor) -> np.ndarray:
    """The panorama with a ring and a dot at a direction ``(3)``; the mark wraps around the seam."""
    result = picture.copy()
    column, row = (round(float(at)) for at in direction_to_pixel(direction, picture.shape[:2]))
    for shift in (-picture.shape[1], 0, picture.shape[1]):
        for radius, thickness, shade in ((10, 4, 0), (10, 2, 255), (3, -1, 0), (2, -1, 255)):
            cv2.circle(result, (column + shift, row), radius, (shade,) * 3, thickness, cv2.LINE_AA)
    return result


def fitted(panorama: np.ndarray) -> np.ndarray:
    """The panorama (H, W, 3) uint8 at a panel's size."""
    return resize(panorama, PANEL[1], PANEL[0])


def _draw_panel(canvas: np.ndarray, panel: Panel, x: int, y: int) -> None:
    height, width = PANEL
    draw_text(canvas, panel.title, (x - 3, y), size=TEXT)
    y += line_height(TEXT)
    canvas[y : y + height, x : x + width] = panel.picture
    y += height
    if panel.scale is not None:
        colour_map, low, high = panel.scale
        end = x + PANEL[1] - text_width(high, CAPTION)
        bar, middle = end - _BAR[0] - 6, y + line_height(CAPTION) // 2
        ramp = _COVER * _mapped(np.tile(np.linspace(0, 255, _BAR[0]), (_BAR[1], 1)), colour_map)
        canvas[middle - _BAR[1] // 2 : middle + _BAR[1] // 2, bar : bar + _BAR[0]] = ramp + (1 - _COVER) * UNSEEN
        start = bar - text_width(low, CAPTION) - 6
        for text, place in ((high, end), (low, start)):
            draw_text(canvas, text, (place - 3, y), size=CAPTION, colour=GREY)
        width = start - x - GAP
    caption = wrap_text(panel.caption, width, CAPTION, max_lines=1)[0]
    draw_text(canvas, caption, (x - 3, y), size=CAPTION, colour=GREY)


def _mapped(levels: np.ndarray, colour_map: int) -> np.ndarray:
    """Colours (H, W, 3) RGB of levels 0..255."""
    return cv2.applyColorMap(levels.astype(np.uint8), colour_map)[..., ::-1]
