"""Checkpoints of a stage: saving, bit-exact resuming, and starting from another run's weights."""

import glob
import math
import re
import shutil
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import panollava.checkpoint as files
from panollava.disk import writing
from panollava.training.distributed import DistributedContext
from panollava.training.learning import LearningCurve
from panollava.training.parallel import copy_into, full_tensor, shard_like

OPTIMIZER, RANDOM, FINAL = "optimizer.safetensors", "random.safetensors", "model_final.safetensors"

_COUNTS = ("epoch", "step_in_epoch", "global_step", "validations_since_best")
_MEASURES = ("seconds", "samples", "step_seconds", "peak_memory_gb")
_CURVE, _DUE = "curve", "validation_due"
"""Older checkpoints have no measures, nor these."""


@dataclass
class Progress:
    """How far the training of a stage has come.

    Attributes:
        epoch, step_in_epoch: the next optimiser step to take, from 0.
        global_step: optimiser steps taken.
        best_loss: lowest validation loss so far.
        validations_since_best: for early stopping.
        validation_due: whether the last step is to be followed by a validation that has not been made.
        seconds: wall-clock time with validations, added up over interruptions.
        samples, step_seconds: training samples, and the time spent in training steps.
        peak_memory_gb: most memory used.
        curve: losses since the beginning, or since a checkpoint of a version that recorded none.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    global_step: int = 0
    best_loss: float = math.inf
    validations_since_best: int = 0
    validation_due: bool = False
    seconds: float = field(default=0.0, compare=False)
    samples: float = field(default=0.0, compare=False)
    step_seconds: float = field(default=0.0, compare=False)
    peak_memory_gb: float = field(default=0.0, compare=False)
    curve: LearningCurve = field(default_factory=LearningCurve)

    @property
    def samples_per_second(self) -> float:
        """Training samples over the time spent in training steps."""
        return self.samples / max(self.step_seconds, 1e-9)

    @property
    def whole_curve(self) -> LearningCurve | None:
        """The curve; None where it lacks the first steps."""
        return self.curve if self.curve.steps == self.global_step else None


def read_progress(state: Mapping[str, Any], source: Path) -> Progress:
    """The progress in a checkpoint's ``state.json``; ``source`` names the checkpoint in messages.

    Raises:
        ValueError: it has none, or wrong values; the message names their keys.
    """
    found = state.get("progress")
    values = dict(found) if isinstance(found, dict) else {}
    wrong = ({*values} - {*_MEASURES, _CURVE, _DUE}) ^ {*_COUNTS, "best_loss"}
    wrong |= {key for key in _COUNTS if type(values.get(key)) is not int or values[key] < 0}
    wrong |= {key for key in _MEASURES if not (_is_number(values.get(key, 0)) and values.get(key, 0) >= 0)}
    if not isinstance(values.get(_DUE, False), bool):
        wrong.add(_DUE)
    best = values.get("best_loss")  # JSON has no infinity: null before the first validation
    if best is not None and not _is_number(best):
        wrong.add("best_loss")
    if not isinstance(state.get("scaler"), dict):
        wrong.add("scaler")
    try:
        curve = LearningCurve.of_json(values[_CURVE]) if _CURVE in values else LearningCurve()
    except ValueError:
        wrong.add(_CURVE)
    if wrong:
        raise ValueError(
            f"{source}: its state.json has no valid training progress ({', '.join(sorted(wrong))}). To start from its "
            f"weights use init_from={source}; to resume, name another checkpoint of the run with resume=."
        )
    return Progress(**{**values, "best_loss": math.inf if best is None else float(best), _CURVE: curve})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass
class Checkpointer:
    """Writes and reads the checkpoints of one stage's folder.

    Attributes:
        folder: the stage's run folder.
        prefix: start of the checkpoints' names: ``<vision>_<resampler>_<crop>_<dataset>``.
        stage_name: saved in the state, so that a checkpoint of another stage is not resumed by mistake.
        parameters: trained parameters, named as in the file.
        optimizer, scaler: their state makes resuming exact.
        procs: the processes whose shards and random states are saved.
        notes: further entries of ``state.json``, such as the tracking run's id.
        keep_best: checkpoints with the lowest validation losses that stay.
        on_save: called with (progress, validation loss) after a best checkpoint was written.
        frozen: backbone weights that do not train here.
        inherited: values of those of ``frozen`` that an earlier stage trained. Every checkpoint has them, since the
            model is not complete without.
    """

    folder: Path
    prefix: str
    stage_name: str
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    procs: DistributedContext = field(default_factory=DistributedContext)
    notes: dict[str, object] = field(default_factory=dict)
    keep_best: int = 1
    on_save: Callable[[Progress, float], None] | None = None
    frozen: Mapping[str, nn.Parameter] = field(default_factory=dict)
    inherited: Mapping[str, Tensor] = field(default_factory=dict, init=False)
    _saved: tuple[Progress, Path] | None = field(default=None, init=False)

    def inherit(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies weights that an earlier stage trained into the frozen backbones, and keeps them for checkpoints."""
        for name, tensor in tensors.items():
            copy_into(self.frozen[name], tensor)
        self.inherited = dict(tensors)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Everything that differs from the named backbones."""
        return {**self.inherited, **self.parameters}

    def save(self, progress: Progress, loss: float | None, *, is_best: bool) -> Path:
        """Writes a checkpoint, moves the links to it, and removes those that are neither linked nor among the best.

        All processes must call it, since it gathers their shards; the main one writes.

        Args:
            progress: where a resumed run continues.
            loss: validation loss, or None within an epoch.
            is_best: whether to move ``best.ckpt`` too.

        Returns:
            The checkpoint; the existing one if the same progress was saved last.
        """
        if loss is None and self._saved is not None and self._saved[0] == progress:
            return self._saved[1]
        step = f"step{progress.global_step:06d}"
        name = f"{self.prefix}_{step}.ckpt"
        if loss is not None:
            # Two validations of one epoch may agree in four digits; the step keeps their folders apart.
            within = f"_{step}" if progress.step_in_epoch else ""
            name = f"{self.prefix}_epoch{progress.epoch:02d}_loss{loss:.4f}{within}.ckpt"
        target = self.folder / name
        tensors = {
            files.TRAINED: self._gather(self.weights),
            OPTIMIZER: self._gather(optimizer_tensors(self.parameters, self.optimizer)),
            RANDOM: random_states(self.procs),
        }
        if self.procs.is_main:
            self._write(target, tensors, progress, loss, is_best)
        self._saved = replace(progress), target
        return target

    def _write(
        self, target: Path, tensors: dict[str, dict[str, Tensor]], progress: Progress, loss: float | None, is_best: bool
    ) -> None:
        best_loss = progress.best_loss if math.isfinite(progress.best_loss) else None
        state = {
            "stage": self.stage_name,
            "validation_loss": loss,
            "progress": {**asdict(progress), "best_loss": best_loss},
            "scaler": self.scaler.state_dict(),
            **self.notes,
        }
        files.write_checkpoint(target, tensors, state)
        if is_best:
            files.write_tensors(self.folder / FINAL, tensors[files.TRAINED])
            files.point(self.folder / files.BEST, target)
        files.point(self.folder / files.LAST, target)
        self.remove_unlinked()
        if is_best and self.on_save is not None and loss is not None:
            self.on_save(progress, loss)

    def restore(self, checkpoint: Path) -> Progress:
        """Loads weights, optimiser, scaler and random state; nothing is changed unless all of them fit.

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
        own = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items() if name not in inherited}
        expected = {name: (parameter.shape, parameter.dtype) for name, parameter in self.parameters.items()}
        wrong = [name for name in own.keys() | expected.keys() if own.get(name) != expected.get(name)]
        wrong += [name for name, tensor in inherited.items() if tensor.shape != self.frozen[name].shape]
        if wrong:
            raise ValueError(
                f"resume={checkpoint} holds other weights than this run trains ({len(wrong)} differ, first: "
                f"{', '.join(sorted(wrong)[:3])}). Resume with the config it was made with, or use "
                f"init_from={checkpoint}."
            )
        moments, states = (files.read_tensors(checkpoint / name) for name in (OPTIMIZER, RANDOM))
        progress = read_progress(state, checkpoint)
        _check_optimizer(moments, self.parameters, checkpoint, is_new=progress.global_step == 0)
        _check_random(states, checkpoint)
        for name, parameter in self.parameters.items():
            copy_into(parameter, tensors[name])
        self.inherit(inherited)
        load_optimizer(self.parameters, self.optimizer, moments)
        self.scaler.load_state_dict(state["scaler"])
        load_random(states, self.procs.rank)
        return progress

    def remove_unlinked(self) -> None:
        """Removes checkpoints that no link names and that are not among the best, and what a killed process left."""
        kept = {files.follow(self.folder / name) for name in (files.BEST, files.LAST)} | self._best()
        pattern = re.compile(re.escape(self.prefix) + r"_(epoch\d+_loss.+|step\d+)\.ckpt")
        for path in self.folder.iterdir():
            leftover = path.name.startswith((".old-", ".tmp-"))
            if leftover or (pattern.fullmatch(path.name) and path not in kept):
                with writing(path):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _best(self) -> set[Path]:
        """The ``keep_best`` checkpoints with the lowest validation losses; of equal ones the earlier."""
        if self.keep_best == 1:  # the linked one
            return set()
        validated = self.folder.glob(f"{glob.escape(self.prefix)}_epoch*_loss*.ckpt")
        states = {path: files.read_state(path) for path in validated if not path.is_symlink()}
        order = sorted(states, key=lambda path: (states[path]["validation_loss"], path.name))
        return set(order[: self.keep_best])

    def _gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Full tensors on the CPU of the main process, one after the other to save memory; empty in other processes."""
        gathered = ((name, full_tensor(value.detach())) for name, value in tensors.items())
        return {name: value.cpu() for name, value in gathered if self.procs.is_main}


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
        optimizer.state[parameter][entry] = value if entry == "step" else shard_like(value, parameter)


def _check_optimizer(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], source: Path, *, is_new: bool
) -> None:
    """Checks that an optimiser's state is of these parameters; it may be empty if the run has taken no step."""

    def fits(key: str, value: Tensor) -> bool:
        name, _, entry = key.rpartition("/")
        if name not in parameters or not value.is_floating_point() or not torch.isfinite(value).all():
            return False
        return value.ndim == 0 if entry == "step" else value.shape == parameters[name].shape

    wrong = [key for key, value in tensors.items() if not fits(key, value)]
    if wrong or (not tensors and not is_new):
        what = f"not of these weights ({', '.join(wrong[:3])})" if wrong else "empty"
        raise ValueError(
            f"resume={source}: its optimiser state is {what}. To start from its weights use init_from={source}; to "
            "resume, name another checkpoint of the run with resume=."
        )


def random_states(procs: DistributedContext) -> dict[str, Tensor]:
    """States of torch's generators in all processes; training draws from no others.

    Returns:
        ``cpu`` and, with a GPU, ``cuda`` or ``mps`` of rank 0; ``rank1/cpu`` and so on of the others.
    """
    gathered = {name: procs.gather(module.get_rng_state()) for name, module in _generators().items()}
    return {_of_rank(rank) + name: state for name, states in gathered.items() for rank, state in enumerate(states)}


def load_random(states: Mapping[str, Tensor], rank: int = 0) -> None:
    """Inverse of ``random_states``; a rank that the saved run did not have keeps its own state."""
    for name, module in _generators().items():
        if (state := states.get(_of_rank(rank) + name)) is not None:
            module.set_rng_state(state)


def _generators() -> dict[str, Any]:
    """Kind of device -> the module of torch with the functions of its generator."""
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    modules = {"cpu": torch.random, "cuda": torch.cuda, "mps": torch.mps}
    return {name: module for name, module in modules.items() if has[name]}


def _of_rank(rank: int) -> str:
    return f"rank{rank}/" if rank else ""


def _check_random(states: Mapping[str, Tensor], source: Path) -> None:
    """Checks that random states are of this version of torch."""
    size, cpu = torch.get_rng_state().numel(), states.get("cpu")
    is_wrong = any(state.dtype != torch.uint8 or state.ndim != 1 for state in states.values())
    if cpu is None or is_wrong or cpu.numel() != size:
        problem = "none" if cpu is None or is_wrong else f"of {cpu.numel()} bytes, here it has {size}"
        raise ValueError(
            f"resume={source}: its random state is {problem}. Resume with the version of torch it was made with, or "
            f"use init_from={source}."
        )


MISFIT = "of another shape and left as they were"


@dataclass
class Transfer:
    """Which tensors ``transfer`` copied (``loaded``, their names), and by reason ``name (shape)`` of the others."""

    loaded: list[str]
    not_loaded: dict[str, list[str]]

    def summary(self, source: Path) -> str:
        """One line for the log with counts."""
        counts = [f"{len(names)} {reason}" for reason, names in self.not_loaded.items()]
        return f"Starting from {source}: {', '.join([f'{len(self.loaded)} tensors loaded', *counts])}."

    def details(self) -> str:
        """Names of tensors that were not loaded, one line per reason; empty if there are none."""
        return "\n".join(f"  {reason}: {', '.join(names)}" for reason, names in self.not_loaded.items())


def transfer(
    tensors: Mapping[str, Tensor], targets: Mapping[str, nn.Parameter], *, kept: Container[str] = ()
) -> Transfer:
    """Copies every tensor whose name and shape fit.

    Args:
        tensors: of the checkpoint.
        targets: parameters of the model that may be filled.
        kept: names of tensors that are used elsewhere, so not reported as unused.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    here = {name: tuple(target.shape) for name, target in targets.items()}
    common = [name for name in here if name in shapes]
    loaded = [name for name in common if here[name] == shapes[name]]
    for name in loaded:
        copy_into(targets[name], tensors[name])
    others = {
        MISFIT: [f"{name} {shapes[name]} -> {here[name]}" for name in common if here[name] != shapes[name]],
        "not in the checkpoint and left as they were": [f"{n} {here[n]}" for n in here if n not in shapes],
        "in the checkpoint only and not used": [f"{n} {shapes[n]}" for n in shapes if n not in here and n not in kept],
    }
    return Transfer(loaded, {reason: names for reason, names in others.items() if names})
