"""A picture of a run's answers: a panorama, what was asked about it, and what was said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from panollava.evaluation.answers import is_correct
from panollava.evaluation.drawing import BAD, GOOD, GREY, INK, PAPER, Colour, draw_text, line_height, resize, wrap_text
from panollava.evaluation.predictions import Prediction

MARGIN = 12


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
    height = max(scene.shape[0], 2 * MARGIN + step * len(lines))
    canvas = np.full((height, width, 3), PAPER, np.uint8)
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
