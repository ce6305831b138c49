"""A stage's module: the model it needs, with what it trains switched on."""

from __future__ import annotations

from panollava.assemble.run import Run, plain
from panollava.model.lora import add_lora
from panollava.stages.instruct import InstructStage
from panollava.stages.overlap import OverlapStage

AnyStage = OverlapStage | InstructStage


def build_stage(run: Run, name: str) -> AnyStage:
    """The stage ``name`` around the run's backbones, its new components as the seed gives them."""
    if name == "vision":
        return OverlapStage(run.backbones.vision(), **plain(run.cfg.stage.vision.loss))
    model = run.backbones.composite()
    lora = plain(run.cfg.model.lora)
    if lora.pop("enabled") and name == "finetune":
        add_lora(model, **lora, seed=run.cfg.seed)
    return InstructStage(model, name=name, checkpoint_activations=run.cfg.trainer.checkpoint_activations)


def skip_reason(run: Run, name: str) -> str | None:
    """Why a stage has nothing to learn from this model and crop, or None."""
    if name != "vision":
        return None
    return OverlapStage.obstacle(run.backbones.outline, run.backbones.crop.camera_rows)
