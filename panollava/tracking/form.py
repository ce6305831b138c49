"""What MLflow takes: names and values of parameters and metrics, and pictures as files."""

from __future__ import annotations

import re

import numpy as np

MAX_KEY, MAX_VALUE = 250, 6000


def key_of(name: str) -> str:
    """A name MLflow accepts on every system: other characters become `_` (question types are free text)."""
    parts = [re.sub(r"[^\w.\- ]", "_", part).strip() for part in str(name).split("/")]
    return "/".join(part for part in parts if part.strip("."))[:MAX_KEY].rstrip("/ ") or "_"


def value_of(value: object) -> str:
    """A parameter's value as text; one that is longer than MLflow keeps ends in "…", to be told from a whole one."""
    text = str(value)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def picture_of(picture: np.ndarray, suffix: str) -> bytes:
    """An (H, W, 3) uint8 RGB picture as the content of a file with that ending."""
    import cv2

    done, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"A picture of shape {picture.shape} could not be written as {suffix!r}; use .png.")
    return data.tobytes()
