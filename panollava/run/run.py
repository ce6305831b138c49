"""A run: its config, its folder, its tracker, its processes, and the backbones its stages share."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panollava.checkpoint import BEST, LAST, find_checkpoint, follow, read_state
from panollava.component import label
from panollava.config.job import gpu_beside_others, in_sweep, swept_values
from panollava.data.loader import StageLoader
from panollava.disk import read_document
from panollava.evaluation.predictions import METRICS, read_answers
from panollava.logs import LOG, configure_console, log_file
from panollava.model.backbones import Backbones
from panollava.run.conditions import answer_conditions, differences, learnt_record, mismatch, scoring, told
from panollava.run.config_check import EvaluationOptions
from panollava.run.data import RunData, open_data
from panollava.run.features import open_features
from panollava.run_folder import CONFIG, METADATA, Experiment, experiment_name, flatten, prompt_date, read_metadata
from panollava.stages.registry import StageRecord, stages_of
from panollava.store.catalogue import StoreOptions
from panollava.store.feature_maker import FeatureMaker
from panollava.store.identity import FileIdentity
from panollava.sweep_folder import job_name, read_start
from panollava.tracking.database import FOLDER_TAG
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.outbox import OUTBOX, deliver
from panollava.tracking.store import STAGES_TAG
from panollava.tracking.tracker import NullTracker, Tracker
from panollava.training.distributed import DistributedContext
from panollava.training.options import OptimOptions, StageOptions, TrainerOptions
from panollava.training.precision import Compute, choose_compute

FINISHED, SKIPPED = "finished", "skipped"


def pending_stages(config: Mapping[str, Any], experiment: Experiment) -> list[str]:
    """Stages of ``stage.run`` that are not finished in this experiment with this config, in order.

    Raises:
        ValueError: a stage's folder holds a run of another config, an unfinished one with ``resume=none``, or one
            that started from an earlier stage which has changed since.
    """
    listed, stages = list(config["stage"]["run"]), stages_of(config["stage"])
    if config["overwrite"]:
        return listed
    pending = [name for name in listed if not _is_done(config, experiment, name)]
    for name in listed:
        stale = [one for one in stages[name].starts_from if _is_newer(experiment, one, name, pending)]
        if name not in pending and stale:
            raise ValueError(
                f"{experiment.stage_folder(name)} was trained from an earlier {stale[0]} stage than the one of now. "
                f"Train it anew with stage={name} overwrite=true, or give this run a name of its own "
                "(experiment_name=<name>)."
            )
    return pending


def recorded_inputs(folder: Path) -> dict[str, Any] | None:
    """The content of what a stage's folder was trained on, None where its metadata do not tell."""
    if not (folder / METADATA).is_file():
        return None
    try:
        found = read_metadata(folder).get("inputs")
    except ValueError:  # which stage it is says config.yaml, and what trains writes the metadata anew
        return None
    return dict(found) if isinstance(found, dict) and found else None


def check_inputs(run: Run, name: str, folder: Path, way_out: str) -> None:
    """Refuses to go on with a stage whose data or backbones are no longer what it was trained on.

    Args:
        run: of now.
        name: the stage.
        folder: where it was trained.
        way_out: what to do about it, beside putting things back.

    Raises:
        ValueError: naming what changed.
    """
    recorded = recorded_inputs(folder)
    if recorded is None:
        LOG.info("%s: the content of its data and backbones is not recorded, so changes go unnoticed.", folder)
        return
    changed = dict.fromkeys(_named(run, key) for key in differences(recorded, run.inputs(name)))
    if changed:
        raise ValueError(
            f"{folder} was trained on other content than there is now: {'; '.join(changed)}. Put back what it was, "
            f"{way_out}."
        )


def changed_inputs(run: Run) -> str:
    """Why stages that have begun or ended here are not of the data and backbones of now; empty where they are."""
    if run.cfg.overwrite or run.cfg.dry_run:
        return ""
    for name in run.cfg.stage.run:
        folder = run.experiment.stage_folder(name)
        if _has_begun(folder):
            try:
                check_inputs(
                    run, name, folder, "give this run a name of its own (experiment_name=<name>), or train anew "
                    "(overwrite=true)",
                )  # fmt: skip
            except ValueError as error:  # for every process of the run to raise
                return str(error)
    return ""


def evaluation_due(run: Run) -> bool:
    """Whether the last stage can answer questions, and was not asked those of now under the conditions of now."""
    last, test = run.cfg.stage.run[-1], run.data.test
    if test is None or not run.stages[last].answers or run.cfg.dry_run:
        return False
    evaluated = run.experiment.state(last).get("evaluated")
    if run.pending or not evaluated:
        return True
    path = Path(evaluated) / METRICS
    if not path.is_file():
        LOG.info("The evaluation on record, %s, is not there: the test split is evaluated again.", path.parent)
        return True
    metrics = read_document(path)
    try:
        read_answers(path.parent, metrics)
    except (OSError, ValueError) as error:
        LOG.warning("The test split is evaluated again: %s.", str(error).rstrip("."))
        return True
    options = EvaluationOptions(**run.plain["evaluation"])
    folder, settings = run.experiment.stage_folder(last), metrics.get("settings", {})
    sections = {
        "model": run.backbones.model,
        "crop": run.backbones.crop_spec,
        "inputs": recorded_inputs(folder) or {},
        "generation": run.plain["generation"],
        "prompt": {"date": None if run.backbones.today is None else run.backbones.today.isoformat()},
    }
    now = answer_conditions(find_checkpoint(folder), sections, test, run.known)
    found = mismatch(settings, now, options.max_samples)
    if found is None:
        # An older record tells only of which weights the answers are, and of how many questions.
        told_of = {**settings, "conditions": {"weights": settings.get("fingerprint")}}
        found = mismatch(told_of, now, options.max_samples) or {}
        if not found:
            LOG.info("%s does not record the conditions of its answers; it is taken as it is.", path.parent)
            return False
    found |= differences({"scores": settings.get("scores")}, {"scores": scoring(options)})
    if found:
        LOG.info("The evaluation in %s has other conditions (%s): a new one is made.", path.parent, told(found))
    else:
        LOG.info("The evaluation in %s is of these conditions, and stays.", path.parent)
    return bool(found)


def _named(run: Run, key: str) -> str:
    """Which file or folder of a run a key of its inputs is about, in words."""
    part, _, what = key.partition(".")
    config = run.plain
    if part in config["model"]:
        return f"{part}.name={config['model'][part]['name']} ({what.removeprefix('files.')})"
    files = [name for kind in ("csv", "json") if (name := f"{part}_{kind}") in config["data"]]
    where = f"data.{files[0]}={config['data'][files[0]]}" if files else f"the {part} split of {config['data']['name']}"
    return f"{where} ({what})"


def recorded_config(folder: Path) -> dict[str, Any] | None:
    """The ``config.yaml`` of a stage's folder, None where there is none.

    Raises:
        ValueError: it is not YAML.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, ValueError, OmegaConfBaseException) as error:
        values, reason = None, str(error)
    else:
        reason = "it is empty"
    if not isinstance(values, dict) or not values:
        raise ValueError(
            f"{path} does not say with which config the folder was trained ({' '.join(reason.split())[:200]}). Put the "
            "right one there, give this run a name of its own (experiment_name=<name>), or replace it (overwrite=true)."
        )
    return values


def wanted_model(tracking: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the ``tracking`` section wants done with the trained model, None for nothing."""
    if tracking["type"] == "none" or (tracking["log_model"] == "none" and tracking["register"] is None):
        return None
    return {key: tracking[key] for key in ("log_model", "register", "alias")}


def awaits_model(config: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether the tracker is to get the last stage's model and did not get it yet as it is now."""
    wanted, state = wanted_model(config["tracking"]), experiment.state(config["stage"]["run"][-1])
    kept = {**(wanted or {}), "finished": state.get("finished")}
    return wanted is not None and state.get("kept_model") != kept


def _is_done(config: Mapping[str, Any], experiment: Experiment, name: str) -> bool:
    state = experiment.state(name)
    if state.get("status") == SKIPPED:
        return len(config["stage"]["run"]) > 1  # asked for by itself it is an error that says why
    recorded = recorded_config(experiment.stage_folder(name))
    if recorded is None:
        return False
    experiment.check_same_config(name, config, recorded)
    epochs, steps = config["stage"][name]["epochs"], config["trainer"]["max_steps"]
    if state.get("status") == FINISHED and state.get("epochs", 0) >= epochs and state.get("max_steps") == steps:
        if state["epochs"] > epochs:
            LOG.warning(
                "Stage %s was trained for %d epochs and stays as it is: stage.%s.epochs=%d needs a run of its own "
                "(experiment_name=<name>) or overwrite=true.",
                name, state["epochs"], name, epochs,
            )  # fmt: skip
        return True
    if config["resume"] == "none" and _has_begun(experiment.stage_folder(name)):
        raise ValueError(
            f"{experiment.stage_folder(name)} holds an unfinished run of this config. Go on with resume=auto, "
            "or start it anew with overwrite=true."
        )
    return False


def _has_begun(folder: Path) -> bool:
    return (follow(folder / LAST) or follow(folder / BEST)) is not None


def _is_newer(experiment: Experiment, earlier: str, name: str, pending: list[str]) -> bool:
    """Whether ``earlier`` was, or is about to be, trained after ``name`` had started."""
    times = experiment.state(earlier).get("finished"), experiment.state(name).get("started")
    if earlier in pending or None in times:
        return earlier in pending
    finished, started = map(datetime.fromisoformat, map(str, times))  # clocks are put back once a year
    return finished > started


def open_tracker(
    section: Mapping[str, Any],
    *,
    run_name: str,
    outbox: Path,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Tracker:
    """The tracker of a ``tracking`` section.

    Args:
        section: plain ``tracking`` section.
        run_name: where the section gives none; that of a sweep's job stands, since the section's is the sweep's.
        outbox: folder for what a tracking server does not take at once.
        run_id: run to go on with.
        parent_run_id: run of the sweep that this is a job of.
        tags: of the run.
    """
    if section["type"] == "none":
        return NullTracker()
    options = {key: value for key, value in section.items() if key not in ("type", "run_name")}
    return MlflowTracker(
        **options,
        run_name=run_name if parent_run_id else section["run_name"] or run_name,
        run_id=run_id,
        parent_run_id=parent_run_id,
        tags=tags,
        outbox=outbox,
    )


def send_left(folder: Path) -> None:
    """Sends what earlier starts of a finished run left in its outbox, if there is one."""
    if not (folder / OUTBOX).is_dir():
        return
    waiting, left = deliver(folder)
    LOG.info("%d of %d records that waited in %s are sent.", waiting - left, waiting, folder / OUTBOX)


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
    procs: DistributedContext
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

    @cached_property
    def stages(self) -> dict[str, StageRecord]:
        """The stages that there are, by name."""
        return stages_of(plain(self.cfg.stage))

    def stage_options(self, name: str) -> StageOptions:
        """``stage.<name>``, without the options that this stage alone has."""
        known = {each.name for each in fields(StageOptions)}
        return StageOptions(**{key: value for key, value in plain(self.cfg.stage[name]).items() if key in known})

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
            self.stages[name].targets,
            options,
            seed=self.seed(name),
            procs=self.procs,
            num_workers=self.trainer.num_workers,
            pin_memory=self.compute.device.type == "cuda",
            validation_batches=1 if self.cfg.dry_run else None,
            features=self._features(name),
        )

    @cached_property
    def known(self) -> FileIdentity:
        """What recognises pictures and other files."""
        return self.store.file_identity()

    def inputs(self, name: str) -> dict[str, Any]:
        """The content of what a stage learns from: both backbones and the data; empty in a dry run, which ends soon."""
        if self.cfg.dry_run:
            return {}
        return {part: self._inputs[part] for part in (*self.stages[name].backbones, "train", "val")}

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
def open_run(cfg: DictConfig, procs: DistributedContext) -> Iterator[Run]:
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
    names = [name for name in stages_of(plain(cfg.stage)) if not (cfg.overwrite and name in cfg.stage.run)]
    begun = [experiment.stage_folder(name) for name in names]
    if cfg.resume not in ("auto", "none") and not cfg.overwrite:
        path = Path(cfg.resume).expanduser()
        begun.insert(0, path.parent if path.suffix == ".ckpt" else path)
    dates = (prompt_date(read_metadata(folder)) for folder in begun if (folder / METADATA).is_file())
    return next((day for day in dates if day is not None), None)


def setting(cfg: DictConfig) -> str:
    """Name of each stage's folder: ``<crop-with-hyphens>_<resampler>``."""
    return f"{label(cfg.crop.type).replace('_', '-')}_{label(cfg.model.resampler.type)}"


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
        resampler=label(cfg.model.resampler.type),
        crop=label(cfg.crop.type),
        position=label(cfg.model.position.type),
        overlap=cfg.crop.get("overlap", 0.5),
    )


def _tracker(cfg: DictConfig, experiment: Experiment, procs: DistributedContext) -> Tracker:
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
