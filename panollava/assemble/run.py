"""A run: its config, its folder, its tracker, its processes, and the backbones its stages share."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from panollava.assemble.check import STAGES
from panollava.assemble.data import RunData, open_data
from panollava.assemble.tracking import open_tracker
from panollava.checkpoint import LAST, find_checkpoint, follow, read_state
from panollava.data.loader import StageLoader
from panollava.logs import LOG, configure_console, log_file
from panollava.model.backbones import Backbones
from panollava.run_folder import CONFIG, Experiment, experiment_name, flatten
from panollava.tracking.tracker import NullTracker, Tracker
from panollava.training.distributed import Processes
from panollava.training.optim import OptimOptions
from panollava.training.options import StageOptions, TrainerOptions
from panollava.training.precision import Compute, choose_compute

FINISHED = "finished"


@dataclass
class Run:
    """Everything the stages of one run share.

    Attributes:
        cfg: the checked config.
        experiment: its folder on disk.
        tracker: where metrics go; keeps nothing on ranks other than 0.
        procs, compute: processes, device and number format.
        backbones: encoder and language model, opened once.
        data: the splits.
        was_done: whether every stage was finished when the run was opened.
    """

    cfg: DictConfig
    experiment: Experiment
    tracker: Tracker
    procs: Processes
    compute: Compute
    backbones: Backbones
    data: RunData
    was_done: bool

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
        )

    def pending(self) -> list[str]:
        """Stages to run, in order, without those that are finished.

        Raises:
            ValueError: a stage's folder holds a run of another config, or an unfinished one with resume=none.
        """
        return [name for name in self.cfg.stage.run if not stage_is_done(self.cfg, self.experiment, name)]

    def resume_point(self, name: str) -> Path | None:
        """Checkpoint to resume a stage from: ``resume=<path>``, else where an unfinished run stopped."""
        if self.cfg.resume not in ("auto", "none"):
            checkpoint = find_checkpoint(Path(self.cfg.resume).expanduser())
            # Of several stages only the one the checkpoint belongs to resumes; alone, a misfit is the loop's error.
            alone = len(self.cfg.stage.run) == 1
            return checkpoint if alone or read_state(checkpoint).get("stage") == name else None
        return follow(self.experiment.stage_folder(name) / LAST) if self.cfg.resume == "auto" else None


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
    configure_console()
    compute = choose_compute(cfg.trainer.device, cfg.trainer.precision, procs.local_rank)
    with ExitStack() as stack:
        root = _root(cfg, stack)
        experiment = stack.enter_context(Experiment(root, setting(cfg), owner=procs.is_main))
        if cfg.overwrite and procs.is_main:
            for name in cfg.stage.run:
                experiment.clear(name)
        procs.barrier()
        if procs.is_main:
            stack.enter_context(log_file(root / "logs", "full_pipeline"))
        LOG.info("Experiment %s in %s", root.name, root)
        # Refuses a folder of another config before anything is opened.
        done = [stage_is_done(cfg, experiment, name) for name in cfg.stage.run]
        backbones = Backbones(plain(cfg.model), plain(cfg.crop), dtype=compute.dtype, seed=cfg.seed)
        data = open_data(plain(cfg.data), backbones, evaluate=cfg.evaluation.enabled)
        is_over = all(done) and not _awaits_evaluation(cfg, experiment)
        tracker = NullTracker() if is_over else stack.enter_context(_tracker(cfg, experiment, procs))
        tracker.params({key: value for key, value in flatten(plain(cfg)).items() if value is not None})
        tracker.text(OmegaConf.to_yaml(cfg), CONFIG)
        try:
            yield Run(cfg, experiment, tracker, procs, compute, backbones, data, all(done))
        except Exception:
            LOG.debug("The run stopped.", exc_info=True)  # for the log file; the terminal gets the message alone
            raise


def setting(cfg: DictConfig) -> str:
    """Name of each stage's folder: ``<crop-with-hyphens>_<resampler>``."""
    return f"{cfg.crop.type.replace('_', '-')}_{cfg.model.resampler.type}"


def stage_is_done(cfg: DictConfig, experiment: Experiment, name: str) -> bool:
    """Whether a stage is finished in this experiment with this config.

    Raises:
        ValueError: its folder holds a run of another config, or an unfinished one with ``resume=none``.
    """
    recorded = experiment.stage_folder(name) / CONFIG
    if not recorded.is_file():
        return False
    experiment.check_same_config(name, plain(cfg), plain(OmegaConf.load(recorded)))  # type: ignore[arg-type]
    state = experiment.state(name)
    is_whole = state.get("epochs", 0) >= cfg.stage[name].epochs and state.get("max_steps") == cfg.trainer.max_steps
    if state.get("status") == FINISHED and is_whole:
        return True
    has_checkpoint = follow(experiment.stage_folder(name) / LAST) is not None
    if cfg.resume == "none" and has_checkpoint:
        raise ValueError(
            f"{experiment.stage_folder(name)} holds an unfinished run of this config. Go on with resume=auto, "
            "or start it anew with overwrite=true."
        )
    return False


def _awaits_evaluation(cfg: DictConfig, experiment: Experiment) -> bool:
    """Whether the last stage can answer questions and was not asked any yet."""
    last = cfg.stage.run[-1]
    return cfg.evaluation.enabled and last != "vision" and not experiment.state(last).get("evaluated")


def _root(cfg: DictConfig, stack: ExitStack) -> Path:
    if cfg.dry_run:
        folder = Path(tempfile.mkdtemp(prefix="panollava-dry-run-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder / "dry_run"
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
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
    states = [experiment.state(name) for name in STAGES]
    unfinished = [s["tracking_run"] for s in states if s.get("tracking_run") and s.get("status") != FINISHED]
    return open_tracker(
        plain(cfg.tracking),
        run_name=experiment.root.name,
        run_id=unfinished[-1] if unfinished else None,
        tags={"panollava.folder": str(experiment.root.resolve()), "panollava.stages": ",".join(cfg.stage.run)},
    )
