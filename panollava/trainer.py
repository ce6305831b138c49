"""``Trainer``: trains a stage of an open model on data sets that are objects, as ``panollava.train`` does."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from panollava.checkpoint import find_checkpoint, read_state
from panollava.component import allow, lacking, snake
from panollava.config.command_line import CONF
from panollava.config.sweep_arguments import register_resolvers
from panollava.data.source import DataSource, PlacesSource
from panollava.model.api import PanoLlava
from panollava.model.backbones import Backbones, load_checkpoint
from panollava.model.lora import has_lora
from panollava.run.config_check import checked
from panollava.run.data import RunData
from panollava.run.preflight import preflight
from panollava.run.run import open_run, plain
from panollava.run.stage import run_stage
from panollava.run_folder import CONFIG, read_metadata
from panollava.stages.protocol import Stage
from panollava.stages.registry import STAGES, StageRecord
from panollava.training.distributed import init_distributed

_GIVEN = re.compile(
    r"(model|crop|data|experiment_name|output_dir|init_from|dry_run|stage\.run|trainer\.parallel)(\.|$)"
)
"""Keys of the config that the arguments of a trainer give; the model is always whole in each process."""


class Trainer:
    """Trains one stage of a model and writes a run folder, which the commands open.

    The same arguments again resume a stopped training, or load the finished one. Processes that torchrun starts train
    together.

    Args:
        pano: the model, of ``PanoLlava.from_pretrained`` or ``from_backbones``. It has the trained weights afterwards.
        train, val: the splits, of classes with the methods of ``panollava.data.source.DataSource``; for ``detect`` also
            with those of ``PlacesSource``.
        stage: ``vision``, ``resampler``, ``finetune`` or ``detect``, after which ``pano.detect`` finds boxes; or a
            class that is derived from ``Stage`` and states its record.
        folder: of the run, made if missing.
        epochs, batch_size, lr: see ``StageOptions``; None is the default of ``conf/stage``.
        seed: of the order of the samples, of dropout and of a new adapter.
        settings: further keys of ``conf/train.yaml``, such as ``{"optim.warmup_ratio": 0.0, "trainer.device": "cpu"}``.

    Raises:
        TypeError: the model is none, or a data set lacks methods.
        ValueError: a key or value is not allowed, or the model is an export, whose backbones no checkpoint can name.
    """

    def __init__(
        self,
        pano: PanoLlava,
        train: DataSource,
        val: DataSource,
        *,
        stage: str | type[Stage] = "finetune",
        folder: str | Path = "runs/trainer",
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        for name, source in (("train", train), ("val", val)):
            if missing := lacking(source, DataSource):
                raise TypeError(f"{name}={source!r} has no {', '.join(missing)}. Derive its class from DataSource.")
        if not isinstance(pano, PanoLlava):
            raise TypeError(f"pano={pano!r} is no PanoLlava. Open a run with PanoLlava.from_pretrained.")
        if "model" not in pano.metadata:
            raise ValueError("pano is an export, which names no backbones. Open the run that it was exported from.")
        self.pano, self.train, self.val, self.folder = pano, train, val, Path(folder).expanduser().absolute()
        self.stage, section, record = _section(stage)
        for name, source in (("train", train), ("val", val)):
            if record.finds and (missing := lacking(source, PlacesSource)):
                raise TypeError(
                    f"{name}={source!r} has no {', '.join(missing)}, which stage={self.stage} learns from. See "
                    "panollava.data.source.PlacesSource."
                )
        options = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
        given = {f"stage.{self.stage}.{key}": value for key, value in options.items() if value is not None}
        self._config = self._composed(section, {**given, "seed": seed, **(settings or {})})

    def __repr__(self) -> str:
        """Stage, model, data sets and folder."""
        names = f"train={self.train.name} ({len(self.train)}), val={self.val.name} ({len(self.val)})"
        return f"Trainer({self.pano!r}, {names}, stage={self.stage}, folder={self.folder})"

    def fit(self) -> dict[str, Any]:
        """Trains to the last epoch and puts the weights with the lowest validation loss into the model.

        Returns:
            The record of the stage, as in ``stage_state.json``: ``validation_loss``, ``checkpoint``, ``seconds``, …

        Raises:
            KeyboardInterrupt: Ctrl-C; the state of training is saved.
            ValueError: the folder has a run of other settings or data, or a loss is not finite. Errors name keys of the
                config: ``experiment_name`` is the name of ``folder``, and ``overwrite=true`` is
                ``settings={"overwrite": True}``.
        """
        cfg, pano = self._config, self.pano
        backbones = Backbones.of(pano.model, pano.prompt, pano.crop, plain(cfg.model))
        data = RunData(self.train, self.val, None, backbones)
        group = init_distributed(device=cfg.trainer.device, timeout_s=cfg.trainer.process_timeout_s)
        with group as procs, open_run(cfg, procs, data) as run:
            preflight(run)
            folder = run.experiment.stage_folder(self.stage)
            if run.pending:
                run_stage(run, self.stage)
            else:
                model = backbones.composite() if run.stages[self.stage].answers else backbones.vision()
                load_checkpoint(model, find_checkpoint(folder), plain(cfg.model))
            procs.barrier()  # the first process has written all that is read here
            pano.source, pano.metadata = find_checkpoint(folder), read_metadata(folder)
            pano.model.eval()
            return run.experiment.state(self.stage)

    def _composed(self, section: Mapping[str, Any], settings: Mapping[str, Any]) -> DictConfig:
        """The config that ``panollava.train`` would compose."""
        if wrong := [key for key in settings if _GIVEN.match(key)]:
            raise ValueError(f"settings: {', '.join(wrong)} cannot be set: model, data sets and folder determine them.")
        register_resolvers()
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("train", overrides=["data=csv", "tracking=none", "evaluation.enabled=false"])
        OmegaConf.set_struct(cfg, False)
        cfg.model, cfg.crop, cfg.stage.run = self.pano.metadata["model"], self.pano.metadata["crop"], [self.stage]
        cfg.output_dir, cfg.experiment_name, cfg.init_from = str(self.folder.parent), self.folder.name, self._start()
        cfg.generation = asdict(self.pano.generation)
        if section:
            cfg.stage[self.stage] = section
        for key, value in settings.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        values: Any = OmegaConf.to_container(checked(cfg))
        name, kind = re.sub(r"[^\w.-]+", "-", self.train.name), type(self.train)
        values["data"] = {"type": f"{kind.__module__}:{kind.__qualname__}", "name": name}
        return OmegaConf.create(values)

    def _start(self) -> str:
        """The checkpoint that the weights of the model are of, or ``none``."""
        source = self.pano.source
        if source is None:
            return "none"
        if read_state(source)["has_lora"] and not has_lora(self.pano.model):
            raise ValueError(f"pano: the adapter of {source} was merged. Open it again to train it.")
        if source.resolve().is_relative_to((self.folder / self.stage).resolve()):  # this very training is resumed
            return str(OmegaConf.load(source.parent / CONFIG).init_from)
        return str(source.resolve())


def _section(stage: str | type[Stage]) -> tuple[str, dict[str, Any], StageRecord]:
    """The name of a stage, its section in the config where it is not one of ours, and its record."""
    if isinstance(stage, str):
        if stage not in STAGES:
            raise ValueError(f"stage={stage!r}: allowed are {', '.join(STAGES)}, and classes derived from Stage.")
        return stage, {}, STAGES[stage]
    if not isinstance(getattr(stage, "record", None), StageRecord):
        raise ValueError(f"stage={stage!r} states no record. See panollava.stages.protocol.Stage.")
    allow(stage.__module__.partition(".")[0])
    name = stage.record.name or snake(stage.__name__.removesuffix("Stage"))
    return name, {"type": f"{stage.__module__}:{stage.__qualname__}"}, stage.record
