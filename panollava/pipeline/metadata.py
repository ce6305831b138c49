"""What a run writes down about a stage beside its weights."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from panollava.assemble.run import Run, plain
from panollava.training.state import Progress


def stage_metadata(run: Run, name: str, progress: Progress, loss: float | None) -> dict[str, Any]:
    """What ``checkpoint_metadata.json`` holds: enough to rebuild the model, to read its data, and to cite it.

    Args:
        name: the stage.
        progress: where it stands.
        loss: validation loss of the best checkpoint so far, None before there is one.
    """
    cfg, options = run.cfg, run.stage_options(name)
    data, model, inputs = plain(cfg.data), plain(cfg.model), run.inputs(name)
    for part in model.keys() & inputs.keys():  # a hub model is opened again at the commit it was trained with
        model[part]["revision"] = (inputs[part] or {}).get("commit", model[part].get("revision"))
    return {
        "experiment_name": run.experiment.name,
        "stage": name,
        "model_config": {
            "vision_name": cfg.model.vision.name,
            "language_model_name": cfg.model.language.name,
            "resampler_type": cfg.model.resampler.type,
            "latent_dimension": run.backbones.outline.width,
            "image_size": list(run.backbones.tower.image_size),
        },
        "training_config": {
            "crop_strategy": cfg.crop.type,
            "fov_deg": cfg.crop.get("fov_deg"),
            "overlap_ratio": cfg.crop.get("overlap"),
            "effective_overlap": run.backbones.crop.strategy.effective_overlap,
            "learning_rate": options.lr,
            "batch_size": options.batch_size,
            "use_vision_processor": True,
        },
        "dataset": {
            "train_csv": data.get("train_csv", data.get("train_json")),
            "val_csv": data.get("val_csv", data.get("val_json")),
            "dataset_name": data["name"],
        },
        "epoch": progress.epoch,
        "step": progress.global_step,
        "validation_loss": loss,
        "model": model,
        "crop": plain(cfg.crop),
        "data": data,
        "evaluation": plain(cfg.evaluation),
        "generation": plain(cfg.generation),
        "stage_settings": plain(cfg.stage[name]),
        "precision": cfg.trainer.precision,
        "inputs": inputs,
        "workplace": str(Path.cwd()),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in _RECORDED}},
        "git_commit": _git_commit(),
        **({} if name == "vision" else {"prompt": run.backbones.prompt.format.record()}),
    }


_RECORDED = ("panollava", "torch", "transformers", "peft", "timm", "numpy", "opencv-python")


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parents[2]), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # not a checkout, or no git here: the versions above still say what ran
