"""A stage's module: the model it needs, with what it trains switched on."""

from __future__ import annotations

from typing import Any

from torch import nn

from panollava.assemble.objective import build_objective, pairing_note
from panollava.assemble.run import Run, plain
from panollava.logs import LOG
from panollava.losses.protocol import Objective
from panollava.model.lora import add_lora, lora_arguments
from panollava.stages.instruct import InstructStage
from panollava.stages.overlap import OverlapStage

AnyStage = OverlapStage | InstructStage


def build_stage(run: Run, name: str) -> AnyStage:
    """The stage ``name`` around the run's backbones, its new components as the seed gives them."""
    options = run.stage_options(name)
    encoder: nn.Module = run.backbones.tower.model
    encoder.to(run.backbones.dtype)  # an earlier stage of this run may have trained it, in fp32
    if name == "vision":
        objective, settings = _objective(run)
        _announce(run, objective, settings)
        return OverlapStage(
            run.backbones.vision(),
            objective=objective,
            head_width=run.cfg.stage.vision.loss.head_width,
            vision_blocks=options.vision_trainable_blocks,
            checkpoint_activations=run.trainer.checkpoint_activations,
        )
    model = run.backbones.composite()
    lora = plain(run.cfg.model.lora)
    if lora["enabled"] and name == "finetune":
        add_lora(model, **lora_arguments(lora), seed=run.cfg.seed)
    return InstructStage(
        model,
        name=name,
        vision_blocks=options.vision_trainable_blocks,
        language_blocks=options.language_trainable_blocks,
        checkpoint_activations=run.trainer.checkpoint_activations,
    )


def skip_reason(run: Run, name: str) -> str | None:
    """Why a stage has nothing to learn from this model and crop, or None.

    Raises:
        ValueError: it has, but not with the objective that was asked for.
    """
    if name != "vision":
        return None
    reason = OverlapStage.obstacle(run.backbones.outline, run.backbones.crop.camera_rows)
    if reason is None:
        _objective(run)
    return reason


def _objective(run: Run) -> tuple[Objective, dict[str, Any]]:
    has_grid = run.backbones.outline.token_grid is not None
    return build_objective(
        plain(run.cfg.stage.vision.loss),
        has_grid=has_grid,
        resampler=run.cfg.model.resampler.type,
        cameras=run.backbones.crop.camera_rows,
    )


def _announce(run: Run, objective: Objective, settings: dict[str, Any]) -> None:
    """Says which objective was taken, with the values behind ``auto`` and ``null``, and what it depends on."""
    told = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "type")
    LOG.info("Stage vision: objective %s (%s).", settings["type"], told)
    if note := pairing_note(objective, run.backbones.crop.camera_rows, run.backbones.outline.token_grid):
        LOG.info("%s", note)
    run.parameters.update({f"stage.vision.objective.{key}": value for key, value in settings.items()})
    if not objective.coupled:
        return
    options, processes = run.stage_options("vision"), run.procs.world_size
    LOG.info(
        "Its %s are taken over a whole micro-batch, %d panoramas%s: the objective changes with "
        "stage.vision.batch_size, and its validation loss is that of each process's own batches.",
        objective.coupled,
        options.batch_size * processes,
        f" of {processes} processes" if processes > 1 else "",
    )
    if options.accumulate > 1:
        LOG.info(
            "stage.vision.accumulate=%d averages so many micro-batches, which is not the same as a larger one: "
            "raise stage.vision.batch_size for that.",
            options.accumulate,
        )
