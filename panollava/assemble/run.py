"""A run: its config, its folder, its tracker, its processes, and the backbones its stages share."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from panollava.assemble.check import STAGES
from panollava.assemble.conditions import learnt_record
from panollava.assemble.data import RunData, open_data
from panollava.assemble.features import open_features
from panollava.assemble.status import awaits_model, changed_inputs, evaluation_due, pending_stages, recorded_inputs
from panollava.assemble.tracking import open_tracker, send_left
from panollava.checkpoint import BEST, LAST, find_checkpoint, follow, read_state
from panollava.config.job import gpu_beside_others, in_sweep, swept_values
from panollava.data.loader import StageLoader
from panollava.logs import LOG, configure_console, log_file
from panollava.model.backbones import Backbones
from panollava.run_folder import (
    CONFIG,
    METADATA,
    Experiment,
    experiment_name,
    flatten,
    prompt_date,
    read_metadata,
)
from panollava.store.catalogue import known_pictures
from panollava.store.making import FeatureMaker
from panollava.store.options import StoreOptions
from panollava.store.pictures import KnownPictures
from panollava.sweep_folder import job_name, read_start
from panollava.tracking.database import FOLDER_TAG
from panollava.tracking.store import STAGES_TAG
from panollava.tracking.tracker import NullTracker, Tracker
from panollava.training.distributed import Processes
from panollava.training.optim import OptimOptions
from panollava.training.options import StageOptions, TrainerOptions
from panollava.training.precision import Compute, choose_compute


@dataclass
class Run:
    """Everything the stages of one run share.

    Attributes:
        cfg: the checked config.
        experiment: its folder on disk.
        recording: opens the tracker with further parameters of the run; one that keeps nothing on ranks other than 0.
        procs, compute: processes, device and number format.
        backbones: encoder and language model, opened once.
        data: the splits.
        pending: stages to train, in order; the others were finished when the run was opened.
        parameters: what its stages add to the parameters in the tracker, before it is opened.
        evaluation_due: whether the last stage is to be evaluated, in the first process.
    """

    cfg: DictConfig
    experiment: Experiment
    recording: Callable[[Mapping[str, object]], Tracker]
    procs: Processes
    compute: Compute
    backbones: Backbones
    data: RunData
    pending: list[str]
    evaluation_due: bool = False
    parameters: dict[str, object] = field(default_factory=dict)

    @cached_property
    def tracker(self) -> Tracker:
        """Where metrics go; opened when it is first asked for, since a start that is refused leaves no record."""
        tracker = self.recording(self.parameters)
        self.experiment.begin()
        return tracker

    @property
    def plain(self) -> dict[str, Any]:
        """The config as plain Python."""
        return plain(self.cfg)

    def stage_options(self, name: str) -> StageOptions:
        """``stage.<name>``, without the loss."""
        options = {key: value for key, value in plain(self.cfg.stage[name]).items() if key != "loss"}
        return StageOptions(**options)

    @property
    def trainer(self) -> TrainerOptions:
        """``trainer.*``; a dry run takes one step a stage."""
        options = plain(self.cfg.trainer)
        return TrainerOptions(**({**options, "max_steps": 1, "num_workers": 0} if self.cfg.dry_run else options))

    @property
    def is_sharded(self) -> bool:
        """Whether each process has but a share of the weights."""
        return self.trainer.parallel == "fsdp" and self.procs.world_size > 1

    def agreed_path(self, path: Path | None) -> Path | None:
        """The first process's path, which all of them take: two may look at a folder at different times."""
        first = self.procs.texts(str(path or ""))[0]
        return Path(first) if first else None

    @property
    def optim(self) -> OptimOptions:
        """``optim.*``."""
        options = plain(self.cfg.optim)
        return OptimOptions(**{**options, "betas": tuple(options["betas"])})

    def seed(self, name: str) -> int:
        """Seed of a stage: a function of (seed, stage)."""
        return int.from_bytes(hashlib.sha256(f"{self.cfg.seed}/{name}".encode()).digest()[:4], "big")

    def batches(self, name: str, options: StageOptions) -> StageLoader:
        """Training windows and validation batches of a stage."""
        return self.data.batches(
            name,
            options,
            seed=self.seed(name),
            procs=self.procs,
            num_workers=self.trainer.num_workers,
            pin_memory=self.compute.device.type == "cuda",
            validation_batches=1 if self.cfg.dry_run else None,
            features=self._features(name),
        )

    @cached_property
    def known(self) -> KnownPictures:
        """What recognises pictures and other files."""
        return known_pictures(self.store)

    def inputs(self, name: str) -> dict[str, Any]:
        """The content of what a stage learns from: both backbones and the data; empty in a dry run, which ends soon."""
        if self.cfg.dry_run:
            return {}
        parts = ("vision",) if name == "vision" else ("vision", "language")
        return {part: self._inputs[part] for part in (*parts, "train", "val")}

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        backbones = {part: self.backbones.record(part, self.known.identify) for part in ("vision", "language")}
        splits = {"train": self.data.train, "val": self.data.val}
        return {**backbones, **{split: learnt_record(source, self.known) for split, source in splits.items()}}

    @property
    def store(self) -> StoreOptions:
        """``store.*``; a dry run keeps nothing."""
        options = StoreOptions(**plain(self.cfg.store))
        return replace(options, enabled=False) if self.cfg.dry_run else options

    def _features(self, name: str) -> FeatureMaker | None:
        """What keeps the features of the encoder with its weights of now, unless they are about to change."""
        tower = self.backbones.tower
        if any(weight.requires_grad for weight in tower.parameters()):
            LOG.info("Stage %s trains the encoder, so its features are not kept.", name)
            return None
        if self.store.enabled and self.data.augment.is_on:
            LOG.info("Training pictures are changed at random, so only features of the other splits are kept.")
        return open_features(self.store, tower, self.backbones.crop)

    def resume_point(self, name: str) -> Path | None:
        """Checkpoint to resume a stage from: ``resume=<path>``, else where an unfinished run stopped."""
        if self.cfg.overwrite:
            return None
        if self.cfg.resume not in ("auto", "none"):
            path = Path(self.cfg.resume).expanduser()
            checkpoint = follow(path / LAST) or find_checkpoint(path)
            # Of several stages only the one the checkpoint belongs to resumes; alone, a misfit is the loop's error.
            alone = len(self.cfg.stage.run) == 1
            return checkpoint if alone or read_state(checkpoint).get("stage") == name else None
        folder = self.experiment.stage_folder(name)
        return follow(folder / LAST) or follow(folder / BEST) if self.cfg.resume == "auto" else None


def plain(section: DictConfig) -> dict[str, Any]:
    """A config section as plain Python."""
    values = OmegaConf.to_container(section, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@contextmanager
def open_run(cfg: DictConfig, procs: Processes) -> Iterator[Run]:
    """Opens a run: whatever can be wrong with its folder, its data or its backbones' names is found here.

    Args:
        cfg: a checked config.
        procs: this process's place.
    """
    configure_console(logging.INFO if procs.is_main else logging.ERROR)
    place = procs.local_rank if procs.world_size > 1 else gpu_beside_others()
    compute = choose_compute(cfg.trainer.device, cfg.trainer.precision, place)
    with ExitStack() as stack:
        root = Path(procs.texts(str(_root(cfg, stack) if procs.is_main else ""))[0])
        experiment = stack.enter_context(Experiment(root, setting(cfg), name=job_name(root), owner=procs.is_main))
        if procs.is_main:
            stack.enter_context(log_file(root / "logs", "full_pipeline"))
        LOG.info("Experiment %s in %s", root.name, root)
        pending = pending_stages(plain(cfg), experiment)  # refuses a folder of another config, nothing opened yet
        pending = json.loads(procs.texts(json.dumps(pending))[0])
        model = plain(cfg.model) if cfg.overwrite else _pinned(cfg, experiment)
        today = date.fromisoformat(procs.texts((_date(cfg, experiment) or date.today()).isoformat())[0])
        backbones = Backbones(model, plain(cfg.crop), dtype=compute.dtype, seed=cfg.seed, today=today)
        data = open_data(plain(cfg.data), backbones, evaluate=cfg.evaluation.enabled)

        def recording(parameters: Mapping[str, object]) -> Tracker:
            tracker = NullTracker() if is_over else stack.enter_context(_tracker(cfg, experiment, procs))
            settings = {key: value for key, value in flatten(plain(cfg)).items() if value is not None}
            tracker.params({**settings, **_swept(), **parameters})
            tracker.text(OmegaConf.to_yaml(cfg), CONFIG)
            if tracker.run_id:
                tracker.inputs(data.described(plain(cfg.data)))
            return tracker

        run = Run(cfg, experiment, recording, procs, compute, backbones, data, pending)
        if problem := procs.texts(changed_inputs(run) if procs.is_main else "")[0]:
            raise ValueError(problem)
        run.evaluation_due = procs.is_main and evaluation_due(run)
        is_over = not (pending or run.evaluation_due or awaits_model(plain(cfg), experiment))
        if is_over and procs.is_main:
            send_left(root)
        try:
            yield run
        except Exception:
            LOG.debug("The run stopped.", exc_info=True)  # for the log file; the terminal gets the message alone
            raise


def _pinned(cfg: DictConfig, experiment: Experiment) -> dict[str, Any]:
    """The model section, with the commits of the hub that stages which were trained here have opened."""
    model = plain(cfg.model)
    for name in cfg.stage.run:
        inputs = recorded_inputs(experiment.stage_folder(name)) or {}
        for part in ("vision", "language"):
            if model[part].get("revision") is None:
                model[part]["revision"] = (inputs.get(part) or {}).get("commit")
    return model


def _date(cfg: DictConfig, experiment: Experiment) -> date | None:
    """The day that the prompts of the stages name from which this run goes on; None where there are none."""
    begun = [experiment.stage_folder(name) for name in STAGES if not (cfg.overwrite and name in cfg.stage.run)]
    if cfg.resume not in ("auto", "none") and not cfg.overwrite:
        path = Path(cfg.resume).expanduser()
        begun.insert(0, path.parent if path.suffix == ".ckpt" else path)
    dates = (prompt_date(read_metadata(folder)) for folder in begun if (folder / METADATA).is_file())
    return next((day for day in dates if day is not None), None)


def setting(cfg: DictConfig) -> str:
    """Name of each stage's folder: ``<crop-with-hyphens>_<resampler>``."""
    return f"{cfg.crop.type.replace('_', '-')}_{cfg.model.resampler.type}"


def _root(cfg: DictConfig, stack: ExitStack) -> Path:
    if cfg.dry_run:
        folder = Path(tempfile.mkdtemp(prefix="panollava-dry-run-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder / "dry_run"
    if in_sweep():
        return Path(HydraConfig.get().runtime.output_dir)
    name = cfg.experiment_name or default_name(cfg)
    if name != Path(name).name or name in (".", ".."):
        raise ValueError(f"experiment_name={name!r} is not a plain folder name; output_dir= says where it goes.")
    return Path(cfg.output_dir).expanduser() / name


def default_name(cfg: DictConfig) -> str:
    """The experiment's name where none is given."""
    return experiment_name(
        vision=cfg.model.vision.name,
        language=cfg.model.language.name,
        resampler=cfg.model.resampler.type,
        crop=cfg.crop.type,
        position=cfg.model.position.type,
        overlap=cfg.crop.get("overlap", 0.5),
    )


def _tracker(cfg: DictConfig, experiment: Experiment, procs: Processes) -> Tracker:
    if cfg.dry_run or not procs.is_main:
        return NullTracker()
    # A run that was stopped, in a stage, between two or before its evaluation, goes on in the same record.
    states = [experiment.state(name) for name in cfg.stage.run] if not cfg.overwrite else []
    known = [state["tracking_run"] for state in states if state.get("tracking_run")]
    return open_tracker(
        plain(cfg.tracking),
        run_name=experiment.root.name,
        outbox=experiment.root,
        run_id=known[-1] if known else None,
        parent_run_id=_parent_run(cfg),
        tags={FOLDER_TAG: str(experiment.root.resolve()), STAGES_TAG: ",".join(cfg.stage.run), **_swept()},
    )


def _parent_run(cfg: DictConfig) -> str | None:
    """The run of the sweep that this run is a job of."""
    start = read_start(Path(HydraConfig.get().sweep.dir)) if in_sweep() else None
    return start.run_id if start is not None and cfg.tracking.type == "mlflow" else None


def _swept() -> dict[str, str]:
    """The values a sweep gave this run, as parameters and tags."""
    return {f"sweep.{key}": value for key, value in swept_values().items()}
