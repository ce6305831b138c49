"""Pictures of views, places and answers: a panorama with borders of views or with boxes, or beside answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from panollava.crop.boxes import NOTHING, PictureBoxes, Places, box_frames
from panollava.crop.cameras import EQUIRECTANGULAR, Camera, camera_tensor, point_directions, view_directions
from panollava.crop.sphere import angles_to_pixel, direction_to_pixel
from panollava.evaluation import drawing
from panollava.evaluation.drawing import (
    PAPER,
    Colour,
    Panel,
    draw_tag,
    draw_text,
    line_height,
    resize,
    tag_width,
    text_width,
)
from panollava.evaluation.exact_match import is_correct
from panollava.evaluation.predictions import Prediction

MARGIN, GAP = 24, 20  # pixels around the page, and between two views
MOST_COLUMNS, WIDEST_CELL = 8, 420  # most views in a row, and greatest width of one: one view need not fill the page
FRAME = 4  # width of the frame around a view
TITLE, NUMBER, LABEL, SMALLEST_LABEL = 20, 18, 15, 9  # heights of letters: numbers on tiles, labels below views
LINE, HALO, HALO_SHARE = 2.0, 4.5, 0.45  # width of a border and of its shadow, and opacity of the shadow
MASK_SHARE = 0.55  # opacity of the colours of masks
WHOLE = (205, 205, 205)  # colour of views of the whole panorama
_FINER = 2  # borders are drawn this many times larger and averaged, smoother than cv2's antialiasing alone
_ANSWER_MARGIN = 12  # pixels around the text beside a panorama
_FRACTION_BITS = 4  # of cv2's fixed-point coordinates
_FIRST_POINTS = 128  # initial points around a view: a whole number per edge, so that the corners are among them
_STEPS = 256  # neighbouring points are at most the panorama's width divided by this apart
_OUTLINE = np.linspace(0, 4, 97)  # places around an outline, the corners and the middles of sides among them
_WHOLE_DEGREES = (180, 360)  # size of a panorama of a pixel a degree
_FINEST = 1e-9  # shortest step along an edge: points that are still far apart lie on two sides of a pole


def gallery_picture(
    panorama: np.ndarray, views: Tensor | np.ndarray, cameras: Sequence[Camera], *, title: str, width: int = 1600
) -> np.ndarray:
    """A picture (?, width, 3) uint8 RGB of a panorama of this type with the borders and numbers of its tiles.

    The views (V, 3, h, w) uint8 lie below it with their angles, and the title above.
    """
    inner, y = width - 2 * MARGIN, MARGIN + line_height(TITLE) + MARGIN // 2
    parts = with_borders(resize(panorama, inner, inner // 2), cameras), _grid(views, cameras, inner)
    canvas = np.full((y + sum(len(part) + MARGIN for part in parts), width, 3), PAPER, np.uint8)
    draw_text(canvas, title, (MARGIN - 3, MARGIN), size=TITLE)
    for part in parts:
        canvas[y : y + len(part), MARGIN : MARGIN + inner] = part
        y += len(part) + MARGIN
    return canvas


def with_borders(panorama: np.ndarray, cameras: Sequence[Camera]) -> np.ndarray:
    """The panorama (H, W, 3) uint8 RGB with the border of each tile, in its colour, and its number in the middle.

    A border is drawn just inside its tile, so that the borders of adjacent tiles lie side by side, and those of
    overlapping strips one within the other. Views of the whole panorama have no border.
    """
    height, width = panorama.shape[:2]
    colours = view_colours(cameras)
    line_rad = LINE * 2 * math.pi / width
    curves = {
        number: border_curves(narrowed(camera, line_rad, line_rad * (1 + 2 * level)), (height, width))
        for number, (camera, level) in enumerate(zip(cameras, _levels(cameras), strict=True))
        if not camera.is_global
    }
    drawn = _with_curves(panorama, [(border, colours[number]) for number, border in curves.items()])
    for number in curves:
        direction = view_directions(camera_tensor([cameras[number]], torch.float64))[0]
        column, row = map(float, direction_to_pixel(direction, (height, width)))
        draw_tag(drawn, str(number), (column, row), size=NUMBER, colour=colours[number])
    return drawn


def with_boxes(panorama: np.ndarray, boxes: PictureBoxes, names: Sequence[str]) -> np.ndarray:
    """The panorama (H, W, 3) uint8 RGB with boxes in the colours of their classes, and names and scores as tags.

    A tag lies on the middle of its box's upper side.
    """
    size = panorama.shape[:2]
    colours = drawing.palette(len(names))
    kinds = boxes.classes.tolist()
    curves = [(box_curves(box, size), colours[kind]) for box, kind in zip(boxes.boxes, kinds, strict=True)]
    drawn = _with_curves(panorama, curves)
    letters = _tag_size(size[1])
    for at, (box, kind) in enumerate(zip(boxes.boxes, kinds, strict=True)):
        column, row = _box_points(box, np.array([0.5]), size)[0].tolist()
        text = names[kind] if boxes.scores is None else f"{names[kind]} {boxes.scores[at]:.2f}"
        draw_tag(drawn, text, (column, row), size=letters, colour=colours[kind])
    return drawn


def with_masks(panorama: np.ndarray, pixels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The panorama (H, W, 3) uint8 RGB with the classes (h, w) of its pixels as colours, and their names below.

    Pixels that are not annotated are grey; those of no class are left as they are.
    """
    height, width = panorama.shape[:2]
    classes = cv2.resize(pixels.astype(np.int16), (width, height), interpolation=cv2.INTER_NEAREST)
    colours = drawing.palette(len(names))
    table = np.array([*colours, (drawing.UNSEEN,) * 3, (0, 0, 0)], dtype=np.float64)  # IGNORED is -2, NOTHING -1
    mixed = MASK_SHARE * table[classes] + (1 - MASK_SHARE) * panorama
    drawn = np.where((classes == NOTHING)[..., None], panorama, np.rint(mixed)).astype(np.uint8)
    letters, x = _tag_size(width), 0
    for kind in np.unique(pixels[pixels >= 0]).tolist():
        wide = tag_width(names[kind], letters)
        draw_tag(drawn, names[kind], (x + wide / 2, height), size=letters, colour=colours[kind])
        x += wide + 2
    return drawn


def places_page(
    title: str,
    places: Sequence[tuple[str, np.ndarray, Places]],
    names: Sequence[str],
    note: str = "Where boxes do not lie on their things, a convention is wrong.",
) -> np.ndarray:
    """Panoramas (H, W, 3) uint8 with what is where in each, below their titles, as a page (H, W, 3) uint8 RGB."""
    panels = []
    for caption, panorama, place in places:
        picture = drawing.fitted(panorama)
        if place.pixels is not None:
            picture = with_masks(picture, place.pixels, names)
        panels.append(Panel(caption, with_boxes(picture, place.boxes, names), f"{len(place.boxes.boxes)} boxes"))
    return drawing.page(title, [], panels, [note])


def view_colours(cameras: Sequence[Camera]) -> list[Colour]:
    """A colour a view; views of the whole panorama are grey."""
    colours = iter(drawing.palette(sum(not camera.is_global for camera in cameras)))
    return [WHOLE if camera.is_global else next(colours) for camera in cameras]


def view_label(camera: Camera) -> str:
    """The yaw and pitch of a view in degrees, or that it shows the whole panorama."""
    if camera.is_global:
        return "whole panorama"
    yaw_deg, pitch_deg = (round(math.degrees(angle), 1) for angle in (camera.yaw_rad, camera.pitch_rad))
    return f"yaw {180 - (180 - yaw_deg) % 360:g}°  pitch {pitch_deg + 0.0:g}°"  # + 0.0 makes -0.0 a plain zero


def _grid(views: Tensor | np.ndarray, cameras: Sequence[Camera], width: int) -> np.ndarray:
    """The views in rows of equal length, each in a frame of its colour above its label."""
    count, _, view_height, view_width = views.shape
    columns = math.ceil(count / math.ceil(count / MOST_COLUMNS))
    cell = min(WIDEST_CELL, (width - GAP * (columns - 1)) // columns)
    cell_height = round((cell - 2 * FRAME) * view_height / view_width) + 2 * FRAME
    step = cell_height + FRAME + line_height(LABEL) + GAP
    canvas = np.full((math.ceil(count / columns) * step - GAP, width, 3), PAPER, np.uint8)
    labels = [view_label(camera) for camera in cameras]
    free = cell - tag_width(str(count - 1), LABEL) - 4
    sizes = range(LABEL, SMALLEST_LABEL, -1)
    size = next((one for one in sizes if max(text_width(label, one) for label in labels) <= free), SMALLEST_LABEL)
    for number, (colour, label) in enumerate(zip(view_colours(cameras), labels, strict=True)):
        x, y = number % columns * (cell + GAP), number // columns * step
        view = np.ascontiguousarray(np.asarray(views[number]).transpose(1, 2, 0))
        framed = canvas[y : y + cell_height, x : x + cell]
        framed[:] = colour
        framed[FRAME:-FRAME, FRAME:-FRAME] = resize(view, cell - 2 * FRAME, cell_height - 2 * FRAME)
        tag, middle = tag_width(str(number), LABEL), y + cell_height + FRAME + line_height(LABEL) / 2
        draw_tag(canvas, str(number), (x + tag / 2, middle), size=LABEL, colour=colour)
        draw_text(canvas, label, (x + tag + 2, round(middle - line_height(size) / 2)), size=size)
    return canvas


def _tag_size(width: int) -> int:
    """Height of letters on a panorama of `width` columns."""
    return max(SMALLEST_LABEL, min(LABEL, width // 80))


def _with_curves(panorama: np.ndarray, curves: Sequence[tuple[Sequence[np.ndarray], Colour]]) -> np.ndarray:
    """The panorama with curves in their colours, above a shadow."""
    height, width = panorama.shape[:2]
    cover = np.zeros((height * _FINER, width * _FINER), np.uint8)
    ink = np.zeros((*cover.shape, 3), np.uint8)
    for border, _ in curves:
        _draw_curves(cover, border, width, HALO, round(255 * HALO_SHARE))
    for border, colour in curves:
        _draw_curves(cover, border, width, LINE, 255)
        _draw_curves(ink, border, width, LINE, colour)
    drawn, cover = panorama.copy(), resize(cover, width, height)
    lines = cover > 0  # the few pixels to mix
    share = cover[lines][:, None] / 255
    drawn[lines] = np.rint(panorama[lines] * (1 - share) + resize(ink, width, height)[lines]).clip(0, 255)
    return drawn


def _draw_curves(
    canvas: np.ndarray, curves: Sequence[np.ndarray], width: int, thickness: float, colour: Colour | int
) -> None:
    """Draws curves (P, 2) of a panorama of `width` columns, in place; they wrap around the seam."""
    for curve in curves:
        for shift in (-width, 0, width):
            columns = curve[:, 0] + shift
            if columns.max() >= -thickness and columns.min() <= width + thickness:
                fine = (np.stack((columns, curve[:, 1]), axis=-1) + 0.5) * _FINER - 0.5
                points = np.rint(fine * 2**_FRACTION_BITS).astype(np.int32)
                cv2.polylines(canvas, [points], False, colour, round(thickness * _FINER), cv2.LINE_AA, _FRACTION_BITS)


def _levels(cameras: Sequence[Camera]) -> list[int]:
    """By how many line widths each border's upper and lower edge, which overlapping strips share, move inward."""
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


def narrowed(camera: Camera, across_rad: float, down_rad: float) -> Camera:
    """The camera with its edges moved inward by these angles, by a quarter of the view at most."""
    across, down = camera.h_extent_rad, camera.v_extent_rad
    across, down = across - 2 * min(across_rad, across / 4), down - 2 * min(down_rad, down / 4)
    return replace(camera, h_extent_rad=across, v_extent_rad=down)


def border_curves(camera: Camera, panorama_size: tuple[int, int]) -> list[np.ndarray]:
    """The edge of a view's content as curves ``(P, 2)`` float64 of columns and rows in a panorama of size (H, W).

    A curve ends at the seam, and the next one starts at the other side. A curve over a pole ends at the panorama's
    upper or lower edge, and the next one starts there half a panorama away. Whole numbers are pixel centres.
    Neighbouring points are at most a few thousandths of the width apart.
    """
    return _traced(partial(_edge_points, camera, panorama_size=panorama_size), panorama_size)


def box_curves(box: np.ndarray, panorama_size: tuple[int, int]) -> list[np.ndarray]:
    """The edge of a box ``(5,)`` as such curves. Its sides are great circles, of up to half a circle."""
    return _traced(partial(_box_points, box, panorama_size=panorama_size), panorama_size)


def border_outline(camera: Camera) -> np.ndarray:
    """The edge of a view's content as a closed curve ``(P, 2)`` of yaws and pitches in degrees."""
    return _degrees(_edge_points(camera, _OUTLINE, _WHOLE_DEGREES))


def box_outline(box: np.ndarray) -> np.ndarray:
    """The edge of a box ``(5,)`` as such a curve."""
    return _degrees(_box_points(box, _OUTLINE, _WHOLE_DEGREES))


def _degrees(points: np.ndarray) -> np.ndarray:
    """Yaws and pitches (P, 2) of columns and rows in a panorama of a pixel a degree; whole numbers are centres."""
    return np.stack((points[:, 0] - 179.5, 89.5 - points[:, 1]), axis=1)


def _traced(points_at: Callable[[np.ndarray], np.ndarray], panorama_size: tuple[int, int]) -> list[np.ndarray]:
    """A closed edge as curves; `points_at` gives columns and rows (P, 2) at places (P,) from 0 to 4 along it."""
    width = panorama_size[1]
    along = np.linspace(0, 4, _FIRST_POINTS + 1)
    while True:
        points = points_at(along)
        columns, rows = np.diff(points, axis=0).T  # the shorter way around the panorama
        is_far = np.maximum(np.abs(columns - width * np.round(columns / width)), np.abs(rows)) > width / _STEPS
        is_coarse = is_far & (np.diff(along) > _FINEST)
        if not is_coarse.any():
            return _split_curves(points, is_far, panorama_size)
        along = np.sort(np.concatenate((along, (along[:-1] + along[1:])[is_coarse] / 2)))


def _edge_points(camera: Camera, along: np.ndarray, panorama_size: tuple[int, int]) -> np.ndarray:
    """Columns and rows (P, 2) of points at 0 to 4 around a view: along the top, right, bottom and left edge."""
    x = torch.from_numpy(np.interp(along, np.arange(5), (0.0, 1.0, 1.0, 0.0, 0.0)))
    y = torch.from_numpy(np.interp(along, np.arange(5), (0.0, 0.0, 1.0, 1.0, 0.0)))
    if camera.projection == EQUIRECTANGULAR:
        # By angles, not directions: an edge on a pole has longitudes, and is a line in the picture.
        longitude = camera.yaw_rad + (x - 0.5) * camera.h_extent_rad
        latitude = camera.pitch_rad - (y - 0.5) * camera.v_extent_rad
        wrapped = torch.remainder(longitude + math.pi, 2 * math.pi) - math.pi
        column, row = angles_to_pixel(wrapped, latitude.clamp(-math.pi / 2, math.pi / 2), panorama_size)
    else:
        filled = camera_tensor([replace(camera, box=(0.0, 0.0, 1.0, 1.0))], torch.float64)
        directions = point_directions(filled.expand(len(along), -1), x[:, None], y[:, None])
        column, row = direction_to_pixel(directions[:, 0, 0], panorama_size)
    return torch.stack((column, row), dim=-1).numpy()


def _box_points(box: np.ndarray, along: np.ndarray, panorama_size: tuple[int, int]) -> np.ndarray:
    """Columns and rows (P, 2) of points at 0 to 4 around a box: each side is two arcs, as one may be half a circle."""
    right, up, forward = box_frames(box[None])[0]
    (sin_h, sin_v), (cos_h, cos_v) = np.sin(np.radians(box[2:4]) / 2), np.cos(np.radians(box[2:4]) / 2)
    corners = [
        x * sin_h * cos_v * right + y * cos_h * sin_v * up + cos_h * cos_v * forward
        for x, y in ((-1, 1), (1, 1), (1, -1), (-1, -1))
    ]
    top, bottom = forward * cos_v + up * sin_v, forward * cos_v - up * sin_v
    east, west = forward * cos_h + right * sin_h, forward * cos_h - right * sin_h
    knots = np.stack([corners[0], top, corners[1], east, corners[2], bottom, corners[3], west, corners[0]])
    knots /= np.linalg.norm(knots, axis=1, keepdims=True)
    place = np.minimum((2 * along).astype(int), 7)
    share = (2 * along - place)[:, None]
    directions = torch.from_numpy((1 - share) * knots[place] + share * knots[place + 1])
    column, row = direction_to_pixel(directions / directions.norm(dim=1, keepdim=True), panorama_size)
    return torch.stack((column, row), dim=-1).numpy()


def _split_curves(points: np.ndarray, is_far: np.ndarray, panorama_size: tuple[int, int]) -> list[np.ndarray]:
    """The points (P, 2) as curves; `is_far` (P - 1) marks steps over a pole."""
    height, width = panorama_size
    curves = [[points[0]]]
    for start, end, over_pole in zip(points[:-1], points[1:], is_far, strict=True):
        shift = width * round((start[0] - end[0]) / width)
        if over_pole:
            pole = -0.5 if start[1] < height / 2 else height - 0.5
            curves[-1].append(np.array((start[0], pole)))
            curves.append([np.array((end[0], pole)), end])
        elif shift:
            seam = width - 0.5 if shift > 0 else -0.5
            step = end[0] + shift - start[0]
            row = start[1] + (end[1] - start[1]) * ((seam - start[0]) / step if step else 1.0)
            curves[-1].append(np.array((seam, row)))
            curves.append([np.array((seam - shift, row)), end])
        else:
            curves[-1].append(end)
    return [np.stack(curve) for curve in curves if np.ptp(curve, axis=0).max() > 1e-6]


def answers_picture(panorama: np.ndarray, predictions: Sequence[Prediction], *, width: int = 1280) -> np.ndarray:
    """The panorama (H, W, 3) uint8 RGB, and beside it questions, answers, and the references of wrong answers."""
    left, step = width * 3 // 5, line_height(16)
    space = width - left - 2 * _ANSWER_MARGIN
    lines = [line for prediction in predictions for line in _answer_lines(prediction, space)]
    canvas = np.full((max(left // 2, 2 * _ANSWER_MARGIN + step * len(lines)), width, 3), PAPER, np.uint8)
    canvas[: left // 2, :left] = resize(panorama, left, left // 2)
    for number, (text, colour) in enumerate(lines):
        draw_text(canvas, text, (left + _ANSWER_MARGIN, _ANSWER_MARGIN + step * number), colour=colour)
    return canvas


def _answer_lines(prediction: Prediction, width: int) -> list[tuple[str, Colour]]:
    said = f"answer: {prediction.prediction.strip() or '(no answer)'}"
    parts = [(prediction.question, drawing.INK), (said, drawing.GOOD)]
    if not is_correct(prediction.prediction, prediction.references):
        parts[1:] = [(said, drawing.BAD), (f"reference: {prediction.references[0]}", drawing.GREY)]
    lines = [(line, colour) for text, colour in parts for line in drawing.wrap_text(text, width - 6, 16, max_lines=4)]
    return [*lines, ("", drawing.INK)]
