"""The vision part of a run, with the language model behind it where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from panollava.checkpoint import find_checkpoint, read_weights
from panollava.component import allow as allow_packages
from panollava.crop.crop import Crop
from panollava.model.api import PanoLlava
from panollava.model.backbones import Backbones
from panollava.model.trainable import load_trained
from panollava.model.vision import PanoVision
from panollava.run_folder import find_run_folder, read_metadata, with_paths_found
from panollava.stages.registry import recorded_stage

_VISION = "vision."
"""What the names of the seeing part's tensors begin with, in checkpoints of every stage."""


@dataclass(frozen=True)
class Sight:
    """What a run sees with.

    Attributes:
        name: of the experiment, or of an export's folder.
        vision: encoder and resampler.
        crop: how panoramas are cut into views.
        pano: the whole model; None for a stage-1 run, which has no language part.
    """

    name: str
    vision: PanoVision
    crop: Crop
    pano: PanoLlava | None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        allow: str | Sequence[str] = (),
    ) -> Sight:
        """Opens what ``PanoLlava.from_pretrained`` opens, and stage-1 runs too.

        Args:
            folder: a run folder, an experiment's folder, a checkpoint in one, or an export.
            device: where the model goes.
            dtype: of the frozen backbones.
            allow: see ``PanoLlava.from_pretrained``.

        Raises:
            FileNotFoundError: no run there; the message names those nearby.
            ValueError: weights that do not fit the metadata.
        """
        allow_packages(allow)
        path = Path(folder).expanduser()
        if not (path / "config.json").is_file():
            metadata = read_metadata(find_run_folder(path))
            if not recorded_stage(metadata).answers:
                return cls._without_language(path, torch.device(device), dtype)
        pano = PanoLlava.from_pretrained(path, device=device, dtype=dtype)
        name = pano.metadata.get("experiment_name", path.name)
        return cls(name=name, vision=pano.model.vision, crop=pano.crop, pano=pano)

    @classmethod
    def _without_language(cls, path: Path, device: torch.device, dtype: torch.dtype) -> Sight:
        run = find_run_folder(path)
        metadata = with_paths_found(read_metadata(run), run)
        checkpoint = find_checkpoint(path if path.suffix == ".ckpt" else run)
        backbones = Backbones(metadata["model"], metadata["crop"], dtype=dtype)
        backbones.warn_of_changes(metadata.get("inputs"))
        vision = backbones.vision()
        tensors = read_weights(checkpoint)  # the head that only stage 1 has is left where it is
        own = {name.removeprefix(_VISION): tensor for name, tensor in tensors.items() if name.startswith(_VISION)}
        load_trained(vision, own, str(checkpoint))
        return cls(name=metadata["experiment_name"], vision=vision.to(device).eval(), crop=backbones.crop, pano=None)
