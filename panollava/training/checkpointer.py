"""Starting a stage from another run's weights: what fits is loaded, the rest is listed with its shapes."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panollava import checkpoint as files
from panollava.disk import writing
from panollava.training.distributed import Processes
from panollava.training.parallel import put, share, whole

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


OPTIMIZER, RANDOM, FINAL = "optimizer.safetensors", "random.safetensors", "model_final.safetensors"


@dataclass
class Progress:
    """Where a stage stands.

    Attributes:
        epoch, step_in_epoch: the next optimiser step to take, as two integers.
        global_step: optimiser steps taken.
        best_loss: lowest validation loss so far.
        validations_since_best: for early stopping.
        seconds: wall-clock time of training, validation included, over all processes that took part one after another.
        samples, step_seconds: training samples, and the time spent in training steps.
        peak_memory_gb: most memory used.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    global_step: int = 0
    best_loss: float = math.inf
    validations_since_best: int = 0
    seconds: float = field(default=0.0, compare=False)
    samples: float = field(default=0.0, compare=False)
    step_seconds: float = field(default=0.0, compare=False)
    peak_memory_gb: float = field(default=0.0, compare=False)

    @property
    def samples_per_second(self) -> float:
        """Training samples over the time spent in training steps."""
        return self.samples / max(self.step_seconds, 1e-9)


class Checkpointer:
    """Writes and reads the checkpoints of one stage's folder.

    Args:
        folder: the stage's run folder.
        prefix: start of the checkpoints' names: ``<vision>_<resampler>_<crop>_<dataset>``.
        stage_name: written into the state, so that a checkpoint of another stage is not resumed by mistake.
        parameters: what trains, named as in the file.
        optimizer, scaler: whose state makes resuming exact.
        procs: whose shares and random states are kept; None for a single process.
        notes: more for ``state.json``, such as the tracking run's id.
        on_save: called with (progress, validation loss) after a best checkpoint was written.
        frozen: weights of the backbones that do not train here, which an earlier stage may have trained.

    Attributes:
        inherited: those of ``frozen`` that an earlier stage has trained: part of every checkpoint, since without them
            it would not be this model.
    """

    def __init__(
        self,
        folder: Path,
        *,
        prefix: str,
        stage_name: str,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        procs: Processes | None = None,
        notes: Mapping[str, object] | None = None,
        on_save: Callable[[Progress, float], None] | None = None,
        frozen: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self.folder, self.prefix, self.stage_name = folder, prefix, stage_name
        self.parameters, self.optimizer, self.scaler = dict(parameters), optimizer, scaler
        self.procs = procs or Processes()
        self.notes, self.on_save = dict(notes or {}), on_save
        self.frozen = dict(frozen or {})
        self.inherited: dict[str, Tensor] = {}
        self._saved: tuple[Progress, Path] | None = None

    def inherit(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts weights that an earlier stage trained into the frozen backbones, and keeps them as they came."""
        for name, tensor in tensors.items():
            put(self.frozen[name], tensor)
        self.inherited = dict(tensors)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Everything that differs from the named backbones."""
        return {**self.inherited, **self.parameters}

    def save(self, progress: Progress, loss: float | None, *, is_best: bool) -> Path:
        """Writes a checkpoint, moves the links to it, and removes those that no link names.

        All processes call it, for their shares; the first one writes.

        Args:
            progress: the place that resuming returns to.
            loss: validation loss, or None in mid-epoch.
            is_best: whether ``best.ckpt`` moves too.

        Returns:
            The checkpoint; the one that is there if this very place was saved last.
        """
        if loss is None and self._saved is not None and self._saved[0] == progress:
            return self._saved[1]
        if loss is None:
            name = f"{self.prefix}_step{progress.global_step:06d}.ckpt"
        else:
            # Two validations of one epoch may agree in four digits; the step keeps their folders apart.
            step = f"_step{progress.global_step:06d}" if progress.step_in_epoch else ""
            name = f"{self.prefix}_epoch{progress.epoch:02d}_loss{loss:.4f}{step}.ckpt"
        target = self.folder / name
        tensors = {
            files.TRAINED: self._gathered(self.weights),
            OPTIMIZER: self._gathered(optimizer_tensors(self.parameters, self.optimizer)),
            RANDOM: random_of_all(self.procs),
        }
        if not self.procs.is_main:
            self._saved = replace(progress), target
            return target
        files.write_checkpoint(
            target,
            tensors,
            {
                "stage": self.stage_name,
                "validation_loss": loss,
                "progress": {**asdict(progress), "best_loss": _finite(progress.best_loss)},
                "scaler": self.scaler.state_dict(),
                **self.notes,
            },
        )
        if is_best:
            files.write_tensors(self.folder / FINAL, tensors[files.TRAINED])
            files.point(self.folder / files.BEST, target)
        files.point(self.folder / files.LAST, target)
        self.remove_unlinked()
        if is_best and self.on_save is not None and loss is not None:
            self.on_save(progress, loss)
        self._saved = replace(progress), target
        return target

    def restore(self, checkpoint: Path) -> Progress:
        """Puts weights, optimiser, scaler and random state back.

        Raises:
            ValueError: a checkpoint of another stage, or one whose tensors are not those that train here.
        """
        state = files.read_state(checkpoint)
        if state.get("stage") != self.stage_name:
            raise ValueError(
                f"resume={checkpoint} is a checkpoint of stage {state.get('stage')!r}, not {self.stage_name!r}. "
                f"To start {self.stage_name!r} from its weights use init_from={checkpoint}."
            )
        tensors = files.read_weights(checkpoint)
        inherited = {name: tensors[name] for name in tensors.keys() & self.frozen.keys()}
        own = {name: tensor for name, tensor in tensors.items() if name not in inherited}
        wrong = sorted(
            [
                name
                for name in {*own, *self.parameters}
                if name not in own or name not in self.parameters or not _is_alike(own[name], self.parameters[name])
            ]
            + [name for name, tensor in inherited.items() if tensor.shape != self.frozen[name].shape]
        )
        if wrong:
            raise ValueError(
                f"resume={checkpoint} holds other weights than this run trains ({len(wrong)} differ, first: "
                f"{', '.join(wrong[:3])}). Resume with the config it was made with, or use init_from={checkpoint}."
            )
        moments, states = (files.read_tensors(checkpoint / name) for name in (OPTIMIZER, RANDOM))
        progress = Progress(**read_progress(state, checkpoint))
        check_optimizer(moments, self.parameters, checkpoint, is_new=progress.global_step == 0)
        check_random(states, checkpoint)
        for name, parameter in self.parameters.items():
            put(parameter, tensors[name])
        self.inherit(inherited)
        load_optimizer(self.parameters, self.optimizer, moments)
        self.scaler.load_state_dict(state["scaler"])
        load_random(states, self.procs.rank)
        return progress

    def _gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors, one after the other, for the process that writes."""
        complete = ((name, whole(value.detach())) for name, value in tensors.items())
        return {name: value.cpu() for name, value in complete if self.procs.is_main}

    def remove_unlinked(self) -> None:
        """Removes the checkpoints that no link names, as each save does; a killed process may have left some."""
        kept = {files.follow(self.folder / name) for name in (files.BEST, files.LAST)}
        pattern = re.compile(re.escape(self.prefix) + r"_(epoch\d+_loss.+|step\d+)\.ckpt")
        for path in self.folder.iterdir():
            leftover = path.name.startswith((".old-", ".tmp-"))
            if leftover or (pattern.fullmatch(path.name) and path not in kept):
                with writing(path):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def optimizer_tensors(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as named tensors ``<parameter>/<entry>``."""
    return {
        f"{name}/{entry}": value
        for name, parameter in parameters.items()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of ``optimizer_tensors``."""
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][entry] = value if entry == "step" else share(value, parameter)


def random_tensors() -> dict[str, Tensor]:
    """State of torch's generators in this process; nothing else is drawn from during training."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def random_of_all(procs: Processes) -> dict[str, Tensor]:
    """Those of all processes; names of the first one's are ``cpu`` and ``cuda``, of others ``rank1/cpu`` and so on."""
    own = random_tensors()
    gathered = {name: procs.gather(own[name]) for name in sorted(own)}
    return {_of(rank) + name: state for name, states in gathered.items() for rank, state in enumerate(states)}


def load_random(states: Mapping[str, Tensor], rank: int = 0) -> None:
    """Inverse of ``random_of_all``; a process that was not there when it was saved keeps its own."""
    if (state := states.get(f"{_of(rank)}cpu")) is not None:
        torch.set_rng_state(state)
    if (state := states.get(f"{_of(rank)}cuda")) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state)


def _of(rank: int) -> str:
    return f"rank{rank}/" if rank else ""


def _is_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


@dataclass
class Transfer:
    """What came of ``transfer``.

    Attributes:
        loaded: names of tensors taken over.
        misfits: ``name (its shape there) -> (its shape here)``.
        fresh: ``name (its shape)`` of those trained here that are not in the checkpoint.
        unused: ``name (its shape)`` of those in the checkpoint that are not in this model.
    """

    loaded: list[str]
    misfits: list[str]
    fresh: list[str]
    unused: list[str]

    def summary(self, source: Path) -> str:
        """A line for the log: where the weights come from, and how many."""
        counts = [f"{len(names)} {what}" for what, names in self._left() if names]
        return f"Starting from {source}: {', '.join([f'{len(self.loaded)} tensors loaded', *counts])}."

    def details(self) -> str:
        """What was not loaded, a line a kind; empty where all was."""
        return "\n".join(f"  {what}: {', '.join(names)}" for what, names in self._left() if names)

    def _left(self) -> list[tuple[str, list[str]]]:
        return [
            ("of another shape and left as they were", self.misfits),
            ("not in the checkpoint and left as they were", self.fresh),
            ("in the checkpoint only and not used", self.unused),
        ]


def transfer(
    tensors: Mapping[str, Tensor], targets: Mapping[str, nn.Parameter], *, kept: Container[str] = ()
) -> Transfer:
    """Copies every tensor whose name and shape fit.

    Args:
        tensors: of the checkpoint.
        targets: parameters of the model that may be filled.
        kept: names of tensors that are of use elsewhere.
    """
    result = Transfer([], [], [], [])
    for name, target in targets.items():
        if name not in tensors:
            result.fresh.append(f"{name} {tuple(target.shape)}")
        elif tensors[name].shape != target.shape:
            result.misfits.append(f"{name} {tuple(tensors[name].shape)} -> {tuple(target.shape)}")
        else:
            put(target, tensors[name])
            result.loaded.append(name)
    result.unused = [
        f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if name not in targets and name not in kept
    ]
    return result
