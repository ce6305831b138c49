"""Runs the real pipeline in this process, on small backbones, with the config that a command line would make."""

from __future__ import annotations

import copy
import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from panollava import train
from panollava.config.command_line import CONF, canonical
from panollava.config.sweep_arguments import register_resolvers
from panollava.run.config_check import checked
from panollava.run.run import Run, open_run
from panollava.tracking.tracker import NullTracker
from panollava.training.distributed import DistributedContext

Backbone = Callable[[str], Path]

QUICK = (
    "data.train_scenes=12",
    "data.val_scenes=4",
    "data.test_scenes=1",
    "trainer.num_workers=0",
    "trainer.device=cpu",
    "trainer.log_every_steps=1",
    "crop.overlap=0.0",
    "model.latent_width=32",
    "lora.rank=4",
    "stage.vision.batch_size=4",
    "stage.resampler.batch_size=4",
    "stage.finetune.batch_size=4",
    "stage.resampler.epochs=1",
    "stage.finetune.epochs=1",
    "stage.resampler.max_text_length=64",
    "stage.finetune.max_text_length=64",
    "evaluation.max_new_tokens=4",
)
"""Seconds a run: five views of sixteen patches, a dozen scenes, three optimiser steps a stage."""
UNTRACKED = "tracking=none"
CLOCKED = ("samples_per_second", "memory_gb", "seconds", "latency")
"""Metrics that depend on the machine's mood."""


def backbones(backbone: Backbone, vision: str = "siglip", language: str = "qwen3") -> list[str]:
    """The arguments that name two families of ``tests/support/hub_folders.py``."""
    return [f"vision.name={backbone(vision)}", f"language.name={backbone(language)}"]


def config(*arguments: str, root: str = "train") -> DictConfig:
    """The config that ``python -m panollava.<root>`` would compose of its arguments."""
    return copy.deepcopy(_composed(arguments, root))


@lru_cache(maxsize=64)
def _composed(arguments: tuple[str, ...], root: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(root, overrides=canonical(arguments))


@contextmanager
def opened(*arguments: str, procs: DistributedContext | None = None) -> Iterator[Run]:
    """A run, opened as ``panollava.train`` opens it."""
    with open_run(checked(config(*arguments)), procs or DistributedContext()) as run:
        yield run


def run_train(*arguments: str) -> float | None:
    """``python -m panollava.train`` without Hydra's own part: errors arrive as exceptions."""
    return train.main.__wrapped__(config(*arguments))  # type: ignore[attr-defined]


def command(monkeypatch: pytest.MonkeyPatch, module: Any, *arguments: str) -> int:
    """``python -m <module> <arguments>`` whole, with Hydra, in this process.

    Returns:
        The exit status.
    """
    monkeypatch.setattr(sys, "argv", [module.__file__, *arguments])
    try:
        module.main()
    except SystemExit as error:
        if isinstance(error.code, str):  # the interpreter writes a text and ends with 1
            sys.stderr.write(error.code)
            return 1
        return error.code or 0
    return 0


class Recorder(NullTracker):
    """A tracker that keeps metrics as ``(key, step) -> value``."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], float] = {}

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Keeps them; a step that is taken again must give the same numbers again."""
        for key, value in values.items():
            if not any(word in key for word in CLOCKED):
                assert self.kept.setdefault((key, step), value) == value, f"{key} of step {step} changed"


def record(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A recorder that takes the place of every run's tracker for the rest of the test."""
    tracker = Recorder()
    monkeypatch.setattr("panollava.run.run.open_tracker", lambda *args, **options: tracker)
    return tracker


def stage_folder(experiment: str, stage: str) -> Path:
    """The only folder of a stage of ``runs/<experiment>`` in the working directory."""
    (folder,) = (Path("runs") / experiment / stage).iterdir()
    return folder


def checkpoint_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder: weights, optimiser and random state."""
    files = sorted(checkpoint.glob("*.safetensors"))
    assert {file.name for file in files} == {"trained.safetensors", "optimizer.safetensors", "random.safetensors"}
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Equal names, and tensors equal to the last bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def predictions(experiment: str, results: str = "results") -> list[dict[str, str]]:
    """Rows of the newest evaluation of an experiment, without the time each answer took."""
    newest = max(Path(results, "eval_results", experiment).glob("predictions_*/predictions.csv"))
    with newest.open(encoding="utf-8-sig", newline="") as file:
        return [{key: value for key, value in row.items() if key != "latency_s"} for row in csv.DictReader(file)]


def metrics(experiment: str, results: str = "results") -> dict[str, Any]:
    """The newest evaluation's ``metrics.json``."""
    newest = max(Path(results, "eval_results", experiment).glob("predictions_*/metrics.json"))
    return dict(json.loads(newest.read_text("utf-8")))
