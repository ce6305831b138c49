"""A checkpoint's loss and own measures on any split, as training takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from panollava.assemble.data import check_records
from panollava.assemble.features import open_features
from panollava.assemble.objective import build_objective
from panollava.assemble.sources import open_source
from panollava.assemble.stage import AnyStage
from panollava.batch import Batch
from panollava.checkpoint import read_weights
from panollava.data.collate import Collate
from panollava.data.dataset import PanoDataset, TextEncoder
from panollava.data.loader import StageLoader
from panollava.model.backbones import Backbones
from panollava.model.facade import PanoLlava
from panollava.model.trainable import load_trained
from panollava.pipeline.memory import explained
from panollava.pipeline.restore import Restored
from panollava.stages.instruct import InstructStage
from panollava.stages.overlap import OverlapStage
from panollava.store.options import StoreOptions
from panollava.training.distributed import Processes
from panollava.training.loop import validate
from panollava.training.precision import Compute


@dataclass
class _Split:
    """A split in the place of the validation split."""

    loader: StageLoader
    steps_per_epoch: int = 0

    def windows(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        raise NotImplementedError("nothing is trained here")

    def validation(self) -> Iterator[Batch]:
        return self.loader.validation()


def measure(
    run: Restored,
    pano: PanoLlava | None,
    data: dict[str, Any],
    split: str,
    compute: Compute,
    *,
    store: StoreOptions,
    num_workers: int = 0,
) -> dict[str, float]:
    """Loss and metrics of a checkpoint on a split, each divided by its own total.

    Args:
        run: the checkpoint.
        pano: its model where it is open; None for a stage-1 run, which has no language part.
        data: the ``data`` section.
        split: ``train``, ``val`` or ``test``.
        compute: device and precision.
        store: of the encoder's features.
        num_workers: processes that cut panoramas.

    Raises:
        ValueError: texts that the model cannot be given.
    """
    options, stage = run.settings["stage_settings"], _stage(run, pano, compute)
    crop = pano.crop if pano is not None else Backbones(run.settings["model"], run.settings["crop"]).crop
    source = open_source(data, split, crop)
    encode = None
    if pano is not None:
        targets = "text" if run.stage == "resampler" else "assistant"
        encoder = TextEncoder(pano.prompt, pano.image_tokens, options["max_text_length"], targets)  # type: ignore[arg-type]
        check_records(source, encoder, pano.limits)
        encode = encoder.record
    vision = stage.model.vision if isinstance(stage, InstructStage) else stage.vision
    features = open_features(store, vision.tower, crop)
    dataset = PanoDataset(source, crop, encode, None if features is None else features.store)
    collate = Collate(pad_id=0 if pano is None else pano.prompt.tokenizer.pad_token_id or 0)
    loader = StageLoader(
        dataset,
        dataset,
        collate,
        batch_size=options["batch_size"],
        num_workers=num_workers,
        complete=None if features is None else features.complete,
    )
    with explained(
        lambda: (
            f"Out of memory while measuring {options['batch_size']} samples at once, as the validation did: "
            "device=cpu may have more."
        )
    ):
        return validate(stage, stage, _Split(loader), compute, Processes())


def _stage(run: Restored, pano: PanoLlava | None, compute: Compute) -> AnyStage:
    if pano is not None:
        return InstructStage(pano.model, name=run.stage)
    settings = run.settings
    backbones = Backbones(settings["model"], settings["crop"], dtype=compute.dtype)
    backbones.warn_of_changes(settings.get("inputs"))
    vision = backbones.vision()
    loss = settings["stage_settings"]["loss"]
    objective, _ = build_objective(
        loss,
        has_grid=vision.token_grid is not None,
        resampler=settings["model"]["resampler"]["type"],
        cameras=backbones.crop.camera_rows,
    )
    stage = OverlapStage(vision, objective=objective, head_width=loss["head_width"])
    load_trained(stage, read_weights(run.checkpoint), str(run.checkpoint))
    return stage.to(compute.device)
