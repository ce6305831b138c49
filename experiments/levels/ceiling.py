"""What the shipped backbones can read of each level, without a training: ``python -m experiments.levels.ceiling``.

The encoder: each solid's colour, shape, direction and height as the linear heads that it was trained with read them,
put together over all patches of the tiles that see the solid. The language model: its answers about scenes in words,
and as sums of words patch by patch, as it was trained on them in place of a resampler's tokens.
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from experiments.tiny.make import LANGUAGE_FOLDER, open_probe
from experiments.tiny.reading import Reader
from experiments.tiny.seeing import COLOUR_CLASSES, OFFSET_UNIT_DEG, SHAPE_CLASSES, Bank, default_bank, label_views
from experiments.tiny.train_language import HELD_OUT, measure_language_model
from experiments.tiny.train_vision import PatchReader
from panollava.data.scenes.scene import HEIGHTS, LEVELS, SECTOR_DEG, SECTORS, Scene, Solid, scene_at, wrap_deg

logger = logging.getLogger(__name__)

NEAR_DEG = 9.0
"""A patch that reads a solid's colour this close to it reads that solid."""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=100, help="held-out scenes a level")
    scenes = parser.parse_args().scenes
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    probe = open_probe().eval()
    reader = Reader(AutoTokenizer.from_pretrained(LANGUAGE_FOLDER))
    model = Qwen3ForCausalLM.from_pretrained(LANGUAGE_FOLDER, dtype=torch.float32)
    for level in LEVELS:
        for overlap in (0.5, 0.0):
            bank = default_bank(overlap)
            read = [
                read_solid(solid, *views)
                for index in range(scenes)
                for scene in [scene_at(0, "backbones", HELD_OUT + index, level)]
                for views in [read_views(scene, probe, bank)]
                for solid in scene.solids
            ]
            shares = dict(zip(("colour", "shape", "direction", "height"), np.mean(read, axis=0), strict=True))
            logger.info("level %d encoder, overlap %g: %s", level, overlap, _shown(shares))
        for form in ("views", "written"):
            measured = measure_language_model(model, reader, form=form, scenes=scenes, level=level)
            logger.info("level %d language model, %s: %s", level, form, _shown(measured))


@torch.no_grad()
def read_views(scene: Scene, probe: PatchReader, bank: Bank) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per patch of the tiles: colour class (n), log-probabilities of shapes (n, classes), yaw and pitch (n, 2)."""
    colour, shape, offset = probe(label_views(scene, bank).views)
    tiles = np.array([not camera.is_global for camera in bank.cameras])
    where = bank.angles + offset.numpy() * OFFSET_UNIT_DEG
    parts = colour.argmax(-1).numpy(), shape.log_softmax(-1).numpy(), where
    first, second, third = (part[tiles].reshape(-1, *part.shape[2:]) for part in parts)
    return first, second, third


def read_solid(
    solid: Solid, colours: np.ndarray, shapes: np.ndarray, where: np.ndarray
) -> tuple[bool, bool, bool, bool]:
    """Which of a solid's colour, shape, direction and height are read right."""
    miss = where - (solid.yaw_deg, solid.pitch_deg)
    miss[:, 0] = (miss[:, 0] + 180.0) % 360.0 - 180.0
    mine = (colours == COLOUR_CLASSES.index(solid.colour)) & (np.hypot(*miss.T) < NEAR_DEG)
    if not mine.any():
        return False, False, False, False
    shape = SHAPE_CLASSES[int(shapes[mine].sum(axis=0).argmax())]
    yaw, pitch = np.array([solid.yaw_deg, solid.pitch_deg]) + np.median(miss[mine], axis=0)
    sector = round(wrap_deg(float(yaw)) / SECTOR_DEG) % len(SECTORS)
    height = min(HEIGHTS, key=lambda word: abs(HEIGHTS[word] - float(pitch)))
    return True, shape == solid.shape, sector == solid.sector, height == solid.height


def _shown(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f}" for name, share in shares.items())


if __name__ == "__main__":
    main()
