"""Draws the README's picture: from a panorama to an answer, and what each stage trains.

python experiments/pictures/pipeline.py [experiments/pictures/pipeline.png]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from panollava.crop.crop import Crop
from panollava.crop.strategies import AnyresE2pCrop
from panollava.data.world import WorldSource

INK, SOFT, TRAINS, FROZEN, ABSENT = "#1f2933", "#64748b", "#2a78b5", "#c9d1da", "#f1f4f7"
PARTS = (
    ("vision\nencoder", "patches\n(B, V, N, Dv)"),
    ("resampler", "tokens\n(B, V, Q, Dr)"),
    ("position +\nprojector", "tokens\n(B, V, Q, Dl)"),
    ("language\nmodel", "sequence\n(B, S, Dl)"),
)
"""A part of the model, and what the arrow out of it (for the last: into it) carries."""

STAGES = (
    ("vision", "neighbouring views agree", ("frozen", "trains", "absent", "absent")),
    ("resampler", "next token of the text", ("frozen", "trains", "trains", "frozen")),
    ("finetune", "next token of the answer", ("frozen", "trains", "trains", "LoRA")),
)
SCENE, QUESTION, ANSWER = 3, "where is the yellow ring?", "left"
LEFT, STEP, WIDTH = 6.95, 2.45, 1.6
TOP, ROW = 3.1, 0.5


def main() -> None:
    """Draws it."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("pipeline.png")
    plt.rcParams["font.family"] = "DejaVu Sans"
    figure, axes = plt.subplots(figsize=(17.4, 4.85), dpi=100)
    axes.set(xlim=(0, 17.4), ylim=(0.0, 4.85), aspect="equal")
    axes.axis("off")
    _pictures(axes)
    _model(axes)
    _stages(axes)
    figure.subplots_adjust(0, 0, 1, 1)
    figure.savefig(target, facecolor="white", metadata={"Software": None})


def _pictures(axes: Axes) -> None:
    """A panorama of the built-in world and its views, the global one first."""
    world = WorldSource(split="train", scenes=SCENE + 1, height=512)
    assert any((asked.question, asked.references) == (QUESTION, (ANSWER,)) for asked in world.questions())
    panorama = world.panorama(SCENE)
    crop = Crop(AnyresE2pCrop(overlap=0.5), view_size=(224, 224))
    views = crop.views(panorama).permute(0, 2, 3, 1).numpy()
    axes.imshow(panorama, extent=(0.15, 3.15, TOP - 0.75, TOP + 0.75), interpolation="antialiased")
    _label(axes, 1.65, TOP + 1.0, "panorama", "(H, W, 3)")
    _arrow(axes, 3.2, 3.8, TOP, "crop")
    side, gap, x0 = 0.62, 0.06, 3.95
    for number, view in enumerate(views):
        x, y = x0 + (number % 3) * (side + gap), TOP + 0.36 - (number // 3) * (side + gap)
        axes.imshow(np.asarray(view), extent=(x, x + side, y, y + side), interpolation="antialiased")
    _label(axes, 4.95, TOP + 1.25, "views with their cameras", "(B, V, 3, h, w)")
    _arrow(axes, 6.1, LEFT - 0.1, TOP, "")


def _model(axes: Axes) -> None:
    for number, (name, carries) in enumerate(PARTS):
        x = LEFT + number * STEP
        _box(axes, x, TOP - 0.5, WIDTH, 1.0, "#e8f1f8", TRAINS)
        axes.text(x + WIDTH / 2, TOP, name, ha="center", va="center", size=14, weight="bold", color=INK)
        if number < len(PARTS) - 1:
            _arrow(axes, x + WIDTH + 0.08, x + STEP - 0.08, TOP, "")
            axes.text(x + WIDTH + 0.42, TOP + 0.62, carries, ha="center", va="bottom", size=10.5, color=SOFT)
    end = LEFT + (len(PARTS) - 1) * STEP + WIDTH / 2
    speech: dict[str, Any] = {"size": 12, "style": "italic", "color": INK}
    axes.text(end, TOP + 1.3, f"“{QUESTION}”", ha="center", va="bottom", **speech)
    axes.annotate("", (end, TOP + 0.55), (end, TOP + 1.25), arrowprops={"arrowstyle": "-|>", "color": SOFT, "lw": 1.6})
    _arrow(axes, end + WIDTH / 2 + 0.08, end + WIDTH / 2 + 0.55, TOP, "")
    axes.text(end + WIDTH / 2 + 0.6, TOP, f"“{ANSWER}”", ha="left", va="center", **speech)


def _stages(axes: Axes) -> None:
    """One line a stage, one cell a part: blue trains, grey is frozen, empty is not loaded."""
    for row, (name, learns, cells) in enumerate(STAGES):
        y = 1.35 - row * ROW
        axes.text(
            LEFT - 3.3, y, f"stage={name}", ha="left", va="center", size=12.5, family="DejaVu Sans Mono", color=INK
        )
        axes.text(LEFT - 3.45, y, learns, ha="right", va="center", size=12, color=SOFT)
        for number, cell in enumerate(cells):
            face = {"frozen": FROZEN, "absent": ABSENT}.get(cell, TRAINS)
            text = {"absent": "–"}.get(cell, cell)
            x = LEFT + number * STEP
            _box(axes, x, y - 0.17, WIDTH, 0.34, face, face)
            ink = "white" if face == TRAINS else SOFT
            axes.text(x + WIDTH / 2, y, text, ha="center", va="center", size=11.5, color=ink)


def _box(axes: Axes, x: float, y: float, width: float, height: float, face: str, edge: str) -> None:
    style = "round,pad=0,rounding_size=0.1"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=1.4))


def _arrow(axes: Axes, start: float, end: float, y: float, text: str) -> None:
    axes.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "-|>", "color": SOFT, "lw": 1.6})
    axes.text((start + end) / 2, y + 0.12, text, ha="center", va="bottom", size=12, color=SOFT)


def _label(axes: Axes, x: float, y: float, name: str, shape: str) -> None:
    axes.text(x, y, name, ha="center", va="center", size=14, weight="bold", color=INK)
    axes.text(x, TOP - 1.2, shape, ha="center", va="center", size=10.5, color=SOFT)


if __name__ == "__main__":
    main()
