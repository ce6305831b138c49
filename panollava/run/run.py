"""A run: its config, folder, tracker, processes, backbones and data, opened and checked before anything trains."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write

from panollava.checkpoint import LAST, find_checkpoint, follow, read_state
from panollava.component import label
from panollava.config.job import gpu_beside_others, in_sweep, swept_values, this_start
from panollava.crop.places import PlaceEncoder
from panollava.data.loader import StageLoader
from panollava.disk import read_document
from panollava.evaluation.measure import Measure
from panollava.evaluation.predictions import METRICS, read_answers
from panollava.logs import LOG, configure_console, log_file
from panollava.model.backbones import Backbones
from panollava.run import conditions
from panollava.run.config_check import EvaluationOptions
from panollava.run.data import RunData, describe_split, open_data, split_measure
from panollava.run.features import open_features
from panollava.run.sources import FILE_KINDS, part_of
from panollava.run.tools import Tools
from panollava.run.tracker import open_tracker
from panollava.run_folder import (
    CONFIG,
    FORM,
    METADATA,
    Experiment,
    earlier_defaults,
    experiment_name,
    flatten,
    prompt_date,
    read_metadata,
    recorded_size,
)
from panollava.stages.registry import StageRecord, stages_of
from panollava.store.catalogue import StoreOptions
from panollava.store.feature_maker import FeatureMaker
from panollava.store.identity import FileIdentity
from panollava.sweep_folder import job_name, read_start
from panollava.tracking.database import FOLDER_TAG
from panollava.tracking.outbox import OUTBOX, deliver
from panollava.tracking.store import STAGES_TAG
from panollava.tracking.tracker import NullTracker, Tracker
from panollava.training.distributed import DistributedContext
from panollava.training.options import OptimOptions, StageOptions, TrainerOptions
from panollava.training.precision import FORMATS, Compute, choose_compute, continued, planned_compute

BACKBONES = ("vision", "language")
PLAN = "plan"
"""Value of ``dry_run`` that builds no stage with weights."""


def answering_stage(names: Sequence[str], stages: Mapping[str, StageRecord]) -> str | None:
    """The last of a run's stages, but for those that find boxes, if it answers questions; else None."""
    last = next((name for name in reversed(names) if not stages[name].finds), None)
    return last if last is not None and stages[last].answers else None


def finding_stage(names: Sequence[str], stages: Mapping[str, StageRecord]) -> str | None:
    """The last of a run's stages that finds boxes; None if none does."""
    return next((name for name in reversed(names) if stages[name].finds), None)


def plain(section: DictConfig) -> dict[str, Any]:
    """A config section as plain Python."""
    values = OmegaConf.to_container(section, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@dataclass
class Run:
    """Everything the stages of one run share; see `open_run`.

    Attributes:
        cfg: the checked config.
        experiment: its folder on disk.
        procs, compute: processes, device and number format.
        number_format: the ``trainer.precision`` that the run was begun with, ``auto`` resolved.
        backbones: encoder and language model, opened once.
        data: the splits.
        pending: stages to train, in order; the others were finished when the run was opened.
        resources: what is closed when the run ends.
        evaluation_due: whether the last stage that answers is to be evaluated; set in the first process only.
        places_due: likewise of the last stage that finds boxes.
        parameters: parameters that the stages add to the tracker's before it is opened.
    """

    cfg: DictConfig
    experiment: Experiment
    procs: DistributedContext
    compute: Compute
    number_format: str
    backbones: Backbones
    data: RunData
    pending: list[str]
    resources: ExitStack
    evaluation_due: bool = False
    places_due: bool = False
    parameters: dict[str, object] = field(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        """The config as plain Python."""
        return plain(self.cfg)

    @cached_property
    def stages(self) -> dict[str, StageRecord]:
        """All stages by name, also those that this run does not train."""
        return stages_of(plain(self.cfg.stage))

    def stage_options(self, name: str) -> StageOptions:
        """``stage.<name>``, without the options that this stage alone has."""
        return StageOptions(**part_of(plain(self.cfg.stage[name]), StageOptions))

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

    @property
    def store(self) -> StoreOptions:
        """``store.*``; a dry run keeps nothing."""
        options = StoreOptions(**plain(self.cfg.store))
        return replace(options, enabled=False) if self.cfg.dry_run else options

    @property
    def tools(self) -> Tools:
        """What its evaluations use; opens the tracker."""
        return Tools(self.compute, self.store, self.known, self.tracker, self.trainer.num_workers)

    @property
    def is_sharded(self) -> bool:
        """Whether each process has only a shard of the weights."""
        return self.trainer.parallel == "fsdp" and self.procs.world_size > 1

    def seed(self, name: str) -> int:
        """Seed of a stage: a function of (seed, stage)."""
        return int.from_bytes(hashlib.sha256(f"{self.cfg.seed}/{name}".encode()).digest()[:4], "big")

    def agreed_path(self, path: Path | None) -> Path | None:
        """The first process's path in every process: two may look at a folder at different times."""
        first = self.procs.texts(str(path or ""))[0]
        return Path(first) if first else None

    @cached_property
    def tracker(self) -> Tracker:
        """Where metrics go; opened on first use, so that a start that is refused leaves no record."""
        swept = {f"sweep.{key}": value for key, value in swept_values().items()}
        tracker = self._open_tracker(swept)
        settings = {key: value for key, value in flatten(self.plain).items() if value is not None}
        tracker.params({**settings, **swept, **self.parameters})
        tracker.text(OmegaConf.to_yaml(self.cfg), CONFIG)
        if not isinstance(tracker, NullTracker):
            section = plain(self.cfg.data)
            tracker.inputs([describe_split(section, name, source) for name, source in self.data.splits.items()])
        self.experiment.begin()
        return tracker

    def _open_tracker(self, swept: Mapping[str, str]) -> Tracker:
        cfg, root = self.cfg, self.experiment.root
        if cfg.dry_run or not self.procs.is_main or not self.has_work:
            return NullTracker()
        # A run that was stopped, in a stage, between two or before its evaluation, continues in the same record.
        states = [self.experiment.state(name) for name in self.experiment.kept(cfg.stage.run)]
        known = [state["tracking_run"] for state in states if state.get("tracking_run")]
        sweep = read_start(Path(HydraConfig.get().sweep.dir)) if in_sweep() else None
        precision = {"panollava.precision": self.compute.precision}  # a tag, as it may change when a run is resumed
        tracker = open_tracker(
            plain(cfg.tracking),
            run_name=root.name,
            outbox=root,
            run_id=known[-1] if known else None,
            parent_run_id=sweep.run_id if sweep is not None and cfg.tracking.type == "mlflow" else None,
            tags={FOLDER_TAG: str(root.resolve()), STAGES_TAG: ",".join(cfg.stage.run), **swept, **precision},
            continues=any(states),
        )
        return self.resources.enter_context(tracker)

    @property
    def has_work(self) -> bool:
        """Whether there is a stage to train, an evaluation to make, or a model to hand to the tracker."""
        return bool(self.pending or self.evaluation_due or self.places_due or awaits_model(self))

    def batches(
        self, name: str, options: StageOptions, *, share: bool = True, places: PlaceEncoder | None = None
    ) -> StageLoader:
        """Training windows and validation batches of a stage; ``share`` and ``places``: see ``RunData.batches``."""
        return self.data.batches(
            self.stages[name].targets,
            options,
            seed=self.seed(name),
            procs=self.procs,
            num_workers=self.trainer.num_workers,
            pin_memory=self.compute.device.type == "cuda",
            validation_batches=1 if self.cfg.dry_run else None,
            features=self._features(name),
            share=share,
            places=places,
        )

    def _features(self, name: str) -> FeatureMaker | None:
        """Makes and stores the features of the encoder with its present weights; None where it trains."""
        tower = self.backbones.tower
        if any(weight.requires_grad for weight in tower.parameters()):
            LOG.info("Stage %s trains the encoder, so its features are not kept.", name)
            return None
        if self.store.enabled and self.data.augment.is_on:
            LOG.info("Training pictures are changed at random, so only features of the other splits are kept.")
        return open_features(self.store, tower, self.backbones.crop)

    @cached_property
    def measure(self) -> Measure:
        """The measure of the test split, which there is."""
        assert self.data.test is not None
        return split_measure(self.data.test, EvaluationOptions(**self.plain["evaluation"]))

    @cached_property
    def known(self) -> FileIdentity:
        """Identifies pictures and other files by their content."""
        return self.store.file_identity()

    def inputs(self, name: str) -> dict[str, Any]:
        """The content of what a stage learns from: its backbones and the data; empty in a dry run, which ends soon."""
        if self.cfg.dry_run:
            return {}
        stage, found = self.stages[name], {part: self._inputs[part] for part in self.stages[name].backbones}
        for split in ("train", "val"):
            read = {key: one for key, one in self._inputs[split].items() if stage.answers or key != "texts"}
            found[split] = read | ({"places": self._places[split]} if stage.finds else {})
        if not stage.answers and self.data.augment.turns:
            found["train"] = found["train"] | {"directions": conditions.directions_digest(self.data.train)}
        return found

    @cached_property
    def _places(self) -> dict[str, str]:
        return {key: conditions.places_digest(one) for key, one in (("train", self.data.train), ("val", self.data.val))}

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        splits = {"train": self.data.train, "val": self.data.val}
        found = {part: self.backbones.record(part, self.known.identify) for part in BACKBONES}
        return found | {split: conditions.training_record(source, self.known) for split, source in splits.items()}

    def resume_point(self, name: str) -> Path | None:
        """Checkpoint to resume a stage from: ``resume=<path>``, else where an unfinished run stopped."""
        if name in self.experiment.replaced:
            return None
        if resume_path(self.cfg) is not None:
            checkpoint = named_checkpoint(self.cfg)
            # Of several stages only the one the checkpoint belongs to resumes; alone, a misfit is the loop's error.
            alone = len(self.cfg.stage.run) == 1
            return checkpoint if alone or read_state(checkpoint).get("stage") == name else None
        return conditions.begun(self.experiment.stage_folder(name)) if self.cfg.resume == "auto" else None


@contextmanager
def open_run(cfg: DictConfig, procs: DistributedContext, data: RunData | None = None) -> Iterator[Run]:
    """Opens a run of a checked config; raises the errors of its folder, its data and its backbones' names.

    Args:
        data: open splits and backbones, in place of those that the config names.
    """
    configure_console(logging.INFO if procs.is_main else logging.ERROR)
    with ExitStack() as resources:
        place = procs.local_rank if procs.world_size > 1 else gpu_beside_others(resources)
        if plans_only(cfg) and cfg.gpu:  # nothing is computed on this machine, which may have no GPU
            compute = planned_compute(cfg.trainer.precision)
        else:
            compute = choose_compute(cfg.trainer.device, cfg.trainer.precision, place)
        root = Path(procs.texts(str(_root(cfg, resources) if procs.is_main else ""))[0])
        experiment = resources.enter_context(Experiment(root, setting(cfg), name=job_name(root), owner=procs.is_main))
        if procs.is_main:
            resources.enter_context(log_file(root / "logs", "full_pipeline"))
        LOG.info("Experiment %s in %s", root.name, root)
        _go_on(cfg, experiment)
        _keep_recorded_defaults(cfg, experiment)
        # Before anything is opened: this refuses a folder of another config.
        known = StoreOptions(**plain(cfg.store)).file_identity()
        pending = conditions.pending_stages(plain(cfg), experiment, known)
        pending = json.loads(procs.texts(json.dumps(pending))[0])
        # All processes compute in the format of the first: their devices may differ.
        number_format = procs.texts(_begun_format(cfg, experiment, pending) or compute.precision)[0]
        here = procs.texts(continued(compute, number_format).precision)[0]
        compute = replace(compute, dtype=FORMATS[here])
        if not plans_only(cfg):
            LOG.info("Computing on %s with precision %s.", compute.device, here)
        records = _begun_metadata(cfg, experiment)
        today = next(filter(None, map(prompt_date, records)), None) or date.today()
        today = date.fromisoformat(procs.texts(today.isoformat())[0])
        if data is None:
            model = _with_recorded_commits(cfg, experiment)
            options: dict[str, Any] = {"dtype": compute.dtype, "seed": cfg.seed, "today": today}
            options["recorded_size"] = next(filter(None, map(recorded_size, records)), None)
            backbones = Backbones(model, plain(cfg.crop), **options, weights=not plans_only(cfg))
            data = open_data(plain(cfg.data), backbones, evaluate=cfg.evaluation.enabled)
        run = Run(cfg, experiment, procs, compute, number_format, data.backbones, data, pending, resources)
        _read_pictures(run)
        if problem := procs.texts(_changed_stage(run) if procs.is_main else "")[0]:
            raise ValueError(problem)
        run.evaluation_due = procs.is_main and evaluation_due(run)
        run.places_due = procs.is_main and place_evaluation_due(run)
        if procs.is_main and not run.has_work and (root / OUTBOX).is_dir():  # left there by earlier starts
            waiting, left = deliver(root)
            LOG.info("%d of %d records that waited in %s are sent.", waiting - left, waiting, root / OUTBOX)
        try:
            yield run
        except Exception:
            LOG.debug("The run stopped.", exc_info=True)  # for the log file; the terminal gets the message alone
            if cfg.overwrite and experiment.is_begun and not cfg.dry_run:
                LOG.warning("To resume, leave overwrite=true out: with it the same command trains everything anew.")
            raise


def plans_only(cfg: DictConfig) -> bool:
    """Whether a start only plans, and opens no weights."""
    return bool(cfg.dry_run == PLAN)


def _root(cfg: DictConfig, resources: ExitStack) -> Path:
    if cfg.dry_run:
        folder = Path(tempfile.mkdtemp(prefix="panollava-dry-run-"))
        resources.callback(shutil.rmtree, folder, ignore_errors=True)
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


def setting(cfg: DictConfig) -> str:
    """Name of each stage's folder: ``<crop-with-hyphens>_<resampler>``."""
    return f"{label(cfg.crop.type).replace('_', '-')}_{label(cfg.model.resampler.type)}"


def _go_on(cfg: DictConfig, experiment: Experiment) -> None:
    """Decides which stages this start replaces, and lets it resume what it has begun.

    ``overwrite`` and ``resume`` are for the beginning of a start. A job that SLURM or submitit has started again has
    the same arguments, and so has the command that resumes a run which was begun from ``resume=<checkpoint>``.
    """
    (start, again), listed, given = this_start(), list(cfg.stage.run), resume_path(cfg)
    states = {} if cfg.overwrite and not again else {name: experiment.state(name) for name in listed}
    begun = [name for name, state in states.items() if again and state.get("start") == start]
    experiment.replaced = [name for name in listed if cfg.overwrite and name not in begun]
    kept = experiment.kept(states)
    if begun or (given is not None and any(states[name].get("resumed") == given for name in kept)):
        LOG.info("What this %s has begun is resumed.", "start" if begun else "command")
        with read_write(cfg):
            cfg.resume = "auto"


def resume_path(cfg: DictConfig) -> str | None:
    """The whole path that ``resume`` names; None where it names none."""
    return None if cfg.resume in ("auto", "none") else str(Path(cfg.resume).expanduser().absolute())


def _keep_recorded_defaults(cfg: DictConfig, experiment: Experiment) -> None:
    """Sets keys whose default has changed since the run was begun to the default that it was begun with.

    The command that began a run then resumes it, or reports that it is finished. A command that names the key differs
    from the run, which is refused as for any other key. A job that its sweep has not begun follows the others.
    """
    if cfg.overwrite:
        return
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    named = {one.split("=")[0].lstrip("+") for one in overrides}
    names = stages_of(plain(cfg.stage))
    folders = [experiment.stage_folder(name) for name in names]
    if in_sweep() and not any((folder / CONFIG).is_file() for folder in folders):
        others = (
            path.parent for name in names for path in sorted(experiment.root.parent.glob(f"*/{name}/*/{METADATA}"))
        )
        # Metadata are read much faster than configs, and a job that follows the others has the present form.
        folders = list(islice((folder for folder in others if (read_metadata(folder).get("form") or 1) < FORM), 1))
    for recorded in filter(None, map(conditions.recorded_config, folders)):
        for key, before in earlier_defaults(recorded, plain(cfg), named).items():
            LOG.info("%s=%s, as in the version that began this run.", key, str(before).lower())
            with read_write(cfg):
                OmegaConf.update(cfg, key, before)


def _with_recorded_commits(cfg: DictConfig, experiment: Experiment) -> dict[str, Any]:
    """The model section, with the commits of the hub that stages which were trained here have opened."""
    model = plain(cfg.model)
    for name in experiment.kept(cfg.stage.run):
        inputs = conditions.recorded_inputs(experiment.stage_folder(name))
        for part in BACKBONES:
            if model[part].get("revision") is None:
                model[part]["revision"] = (inputs.get(part) or {}).get("commit")
    return model


def _begun_format(cfg: DictConfig, experiment: Experiment, pending: Sequence[str]) -> str | None:
    """The precision of the checkpoint that the run continues from, for ``trainer.precision=auto``; None if unknown."""
    kept = experiment.kept(reversed(cfg.stage.run))
    if not kept or cfg.trainer.precision != "auto":
        return None
    begun = filter(None, (conditions.begun(experiment.stage_folder(name)) for name in kept))
    checkpoint = named_checkpoint(cfg) if pending and resume_path(cfg) is not None else next(begun, None)
    found = None if checkpoint is None else read_state(checkpoint).get("number_format")
    return found if found in FORMATS else None


def named_checkpoint(cfg: DictConfig) -> Path:
    """The checkpoint of ``resume=<path>``."""
    path = Path(cfg.resume).expanduser()
    return follow(path / LAST) or find_checkpoint(path)


def _begun_metadata(cfg: DictConfig, experiment: Experiment) -> list[dict[str, Any]]:
    """Metadata of the stages that this run continues from."""
    begun = [experiment.stage_folder(name) for name in experiment.kept(stages_of(plain(cfg.stage)))]
    if resume_path(cfg) is not None and not cfg.overwrite:
        path = Path(cfg.resume).expanduser()
        begun.insert(0, path.parent if path.suffix == ".ckpt" else path)
    return [read_metadata(folder) for folder in begun if (folder / METADATA).is_file()]


def wanted_model(run: Run) -> dict[str, Any] | None:
    """What the ``tracking`` section requests for the trained model, None for nothing."""
    tracking = run.cfg.tracking
    if tracking.type == "none" or (tracking.log_model == "none" and tracking.register is None):
        return None
    return {key: tracking[key] for key in ("log_model", "register", "alias")}


def awaits_model(run: Run) -> bool:
    """Whether the tracker is to get the last stage's model and did not get it yet as it is now."""
    wanted, state = wanted_model(run), run.experiment.state(run.cfg.stage.run[-1])
    return wanted is not None and state.get("kept_model") != {**wanted, "finished": state.get("finished")}


def changed_inputs(run: Run, name: str, folder: Path, way_out: str) -> str:
    """Why a stage cannot continue: its data or backbones are not what it was trained on. Empty where they are.

    Args:
        folder: where the stage was trained.
        way_out: what to do about it, beside putting things back.
    """
    recorded = conditions.recorded_inputs(folder)
    if not recorded:
        LOG.info("%s: the content of its data and backbones is not recorded, so changes go unnoticed.", folder)
    old, now = (_by_digest(inputs) for inputs in (recorded, run.inputs(name)))
    keys = conditions.differences(old, now)
    if processed := [key for key in keys if key.endswith(".processing")]:
        LOG.warning(
            "%s: the code or options with which another package makes the panoramas of %s have changed since.",
            folder, " and ".join(key.partition(".")[0] for key in processed),
        )  # fmt: skip
    changed = dict.fromkeys(_named(run, key) for key in keys if key not in processed)
    if not changed:
        return ""
    return (
        f"{folder} was trained on other content than there is now: {'; '.join(changed)}. Restore the earlier content, "
        f"{way_out}."
    )


def _by_digest(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a stage with each digest of a split by itself: other versions record more or fewer of them."""
    backbones = {part: record for part, record in inputs.items() if part in BACKBONES}
    return backbones | flatten({key: record for key, record in inputs.items() if key not in BACKBONES})


def _read_pictures(run: Run) -> None:
    """Reads new pictures in all processes: the first one alone may take longer than the others wait for it."""
    if run.procs.world_size == 1 or run.cfg.dry_run:
        return
    pictures = (one.picture(place) for one in run.data.splits.values() for place in range(len(one)))
    LOG.info("Each process identifies its share of the pictures; new ones are read whole.")
    files, procs = (one for one in pictures if isinstance(one, Path)), run.procs
    run.known.identify_together(files, procs.rank, procs.world_size, procs.texts)


def _changed_stage(run: Run) -> str:
    """The message of the first stage that has begun or ended here on other data or backbones; empty for none."""
    if run.cfg.dry_run:
        return ""
    way_out = "give this run a name of its own (experiment_name=<name>), or train anew (overwrite=true)"
    kept = run.experiment.kept(run.cfg.stage.run)
    begun = [(name, folder) for name in kept if conditions.begun(folder := run.experiment.stage_folder(name))]
    return next((found for name, folder in begun if (found := changed_inputs(run, name, folder, way_out))), "")


def _named(run: Run, key: str) -> str:
    """Which file or folder of a run a key of its inputs is about, in words."""
    part, _, what = key.partition(".")
    model, data = run.plain["model"], run.plain["data"]
    if part in model:
        return f"{part}.name={model[part]['name']} ({what.removeprefix('files.')})"
    files = [name for kind in FILE_KINDS if (name := f"{part}_{kind}") in data]
    where = f"data.{files[0]}={data[files[0]]}" if files else f"the {part} split of {data['name']}"
    return f"{where} ({what})"


def evaluation_due(run: Run) -> bool:
    """Whether the last stage can answer questions, and has no evaluation of the test split under today's conditions."""
    last, test = answering_stage(run.cfg.stage.run, run.stages), run.data.test
    if last is None or test is None or run.cfg.dry_run:
        return False
    evaluated = run.experiment.evaluated(last)
    if any(not run.stages[name].finds for name in run.pending) or not evaluated:
        return True
    path = evaluated / METRICS
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
        "inputs": conditions.recorded_inputs(folder),
        "generation": run.plain["generation"],
        "prompt": {"date": None if run.backbones.today is None else run.backbones.today.isoformat()},
    }
    now = conditions.answer_conditions(find_checkpoint(folder), sections, test, run.known)
    found = conditions.mismatch(settings, now, options.max_samples)
    if found is None:
        # An older record has only the weights that gave the answers, and the number of questions.
        older = {**settings, "conditions": {"weights": settings.get("fingerprint")}}
        found = conditions.mismatch(older, now, options.max_samples) or {}
        if not found:
            LOG.info("%s does not record the conditions of its answers; it is used unchecked.", path.parent)
            return False
    scores = conditions.scoring(options, run.plain["data"])
    found |= conditions.differences({"scores": settings.get("scores")}, {"scores": scores})
    if found:
        LOG.info(
            "The evaluation in %s has other conditions (%s): a new one is made.",
            path.parent,
            conditions.describe(found),
        )
    else:
        LOG.info("The evaluation in %s has the same conditions and is kept.", path.parent)
    return bool(found)


def place_evaluation_due(run: Run) -> bool:
    """Whether the run has a detection stage with no evaluation of the test split under today's conditions."""
    name, test = finding_stage(run.cfg.stage.run, run.stages), run.data.test
    if name is None or test is None or run.cfg.dry_run:
        return False
    evaluated = run.experiment.evaluated(name)
    if name in run.pending or not evaluated or not (evaluated / METRICS).is_file():
        return True
    document, folder = read_document(evaluated / METRICS), run.experiment.stage_folder(name)
    sections = {"model": run.backbones.model, "crop": run.plain["crop"], "inputs": conditions.recorded_inputs(folder)}
    now = conditions.place_conditions(find_checkpoint(folder), sections, test, run.known)
    found = conditions.unusable_places(document.get("settings", {}), now, run.cfg.evaluation.max_samples)
    if not found and run.cfg.evaluation.blank and document.get("blank") is None:
        found = "they have no scores on blank pictures"
    if found:
        LOG.info("The detections in %s are not used (%s): new ones are made.", evaluated, found)
    return bool(found)
