"""Looks at what a checkpoint holds for resuming before any of it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_COUNTS = ("epoch", "step_in_epoch", "global_step", "validations_since_best")
_MEASURES = ("seconds", "samples", "step_seconds", "peak_memory_gb")
"""Older checkpoints have none of them."""


def read_progress(state: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The place in the run that a ``state.json`` tells.

    Args:
        state: the document.
        source: the checkpoint, for messages.

    Raises:
        ValueError: it tells none; the message names what is wrong.
    """
    found = state.get("progress")
    progress = dict(found) if isinstance(found, dict) else {}
    wrong = ({*progress} - {*_MEASURES}) ^ {*_COUNTS, "best_loss"}
    wrong |= {key for key in _COUNTS if type(progress.get(key)) is not int or progress[key] < 0}
    wrong |= {key for key in _MEASURES if not (_is_number(progress.get(key, 0)) and progress.get(key, 0) >= 0)}
    best = progress.get("best_loss")
    if best is not None and not _is_number(best):
        wrong.add("best_loss")
    if not isinstance(state.get("scaler"), dict):
        wrong.add("scaler")
    if wrong:
        raise ValueError(
            f"{source}: its state.json does not tell the place in the run ({', '.join(sorted(wrong))}). To start from "
            f"its weights use init_from={source}; to go on, name another checkpoint of the run with resume=."
        )
    return {**progress, "best_loss": math.inf if best is None else float(best)}


def check_optimizer(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], source: Path, *, is_new: bool
) -> None:
    """Whether an optimiser's state is of these parameters.

    Args:
        tensors: as ``optimizer_tensors`` gave them.
        parameters: what trains.
        source: the checkpoint, for messages.
        is_new: whether no step was taken yet, so that there may be none.

    Raises:
        ValueError: it is not.
    """
    wrong = [key for key, value in tensors.items() if not _fits(key, value, parameters)]
    if wrong or (not tensors and not is_new):
        what = f"not of these weights ({', '.join(wrong[:3])})" if wrong else "empty"
        raise ValueError(
            f"resume={source}: its optimiser state is {what}. To start from its weights use init_from={source}; to go "
            "on, name another checkpoint of the run with resume=."
        )


def check_random(states: Mapping[str, Tensor], source: Path) -> None:
    """Whether random states are of this torch.

    Raises:
        ValueError: they are not.
    """
    own = torch.get_rng_state()
    cpu = states.get("cpu")
    if cpu is None or any(state.dtype != torch.uint8 or state.ndim != 1 for state in states.values()):
        problem = "none"
    elif cpu.shape != own.shape:
        problem = f"of {cpu.numel()} bytes, here it has {own.numel()}"
    else:
        return
    raise ValueError(
        f"resume={source}: its random state is {problem}. Resume with the version of torch it was made with, or use "
        f"init_from={source}."
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _fits(key: str, value: Tensor, parameters: Mapping[str, nn.Parameter]) -> bool:
    name, _, entry = key.rpartition("/")
    if name not in parameters or not value.is_floating_point() or not torch.isfinite(value).all():
        return False
    return value.ndim == 0 if entry == "step" else value.shape == parameters[name].shape
