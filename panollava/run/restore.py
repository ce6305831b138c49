"""Opens a checkpoint with its settings, and measures it on a split of a data set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from torch import Tensor

from panollava.checkpoint import read_state
from panollava.config.command_line import CONF
from panollava.config.sweep_arguments import register_resolvers
from panollava.crop.crop import COMMON_KEYS, Crop
from panollava.generation import recorded_generation
from panollava.logs import LOG
from panollava.model.api import PanoLlava
from panollava.model.backbones import Backbones, open_checkpoint
from panollava.model.fusion import crop_misfits
from panollava.model.trainable import load_trained
from panollava.run.conditions import fingerprint
from panollava.run.data import RunData, check_records
from panollava.run.features import open_features
from panollava.run.memory import explained
from panollava.run.run import default_name, setting
from panollava.run.sections import check_crop
from panollava.run.sources import open_source, part_of
from panollava.run.tools import Tools
from panollava.run_folder import (
    CONFIG,
    METADATA,
    as_written,
    find_trained,
    flatten,
    read_metadata,
    upgraded,
    with_paths_found,
)
from panollava.stages.protocol import StageSetup
from panollava.stages.registry import StageRecord, for_metadata, recorded_stage, stages_of
from panollava.store.identity import FileIdentity
from panollava.sweep_folder import job_name
from panollava.training.distributed import DistributedContext
from panollava.training.loop import validate
from panollava.training.options import StageOptions

IDENTITY = ("model.vision.name", "model.resampler.type", "model.language.name")
"""Keys that say which model it is: a config that names another one belongs to another run."""

REVISIONS = ("model.vision.revision", "model.language.revision")
"""Keys that metadata record by the commit that was found, where the config leaves them open."""
_SECTIONS = ("model", "crop", "data", "evaluation", "stage_settings", "precision")


@dataclass(frozen=True)
class Restored:
    """A checkpoint and the settings it is opened with.

    Attributes:
        checkpoint: the ``*.ckpt`` folder.
        settings: as in ``checkpoint_metadata.json``, overrides of crop and generation applied.
    """

    checkpoint: Path
    settings: dict[str, Any]

    @property
    def stage(self) -> str:
        """The stage it was trained in."""
        return str(self.settings["stage"])

    @property
    def record(self) -> StageRecord:
        """What is known of that stage."""
        return recorded_stage(self.settings)

    @property
    def folder(self) -> Path:
        """The stage's run folder."""
        return self.checkpoint.parent

    @property
    def reader(self) -> Crop:
        """Its crop for questions and pictures alone: the encoder, which determines the views' size, is not opened."""
        return Crop.from_spec(self.settings["crop"], view_size=(1, 1))

    def subject(self, known: FileIdentity) -> dict[str, Any]:
        """What an evaluation records of the model."""
        return {
            "stage": self.stage,
            "folder": str(self.folder.resolve()),
            "checkpoint": self.checkpoint.name,
            "fingerprint": fingerprint(self.checkpoint, known),
            "crop": self.settings["crop"],
        }

    def lines(self) -> list[str]:
        """What was restored, for the log."""
        model, crop = self.settings["model"], self.settings["crop"]
        adapter = "with its LoRA adapter" if read_state(self.checkpoint)["has_lora"] else "no adapter"
        keys = ", ".join(f"{key} {value}" for key, value in crop.items() if key != "type" and value is not None)
        return [
            f"Checkpoint: {self.checkpoint} (stage {self.stage}, {adapter})",
            f"Model: {model['vision']['name']}, {model['resampler']['type']}, {model['language']['name']}",
            f"Crop: {crop['type']} ({keys})",
            f"Trained on: {self.settings['data']['name']}",
        ]


def restore(
    checkpoint: str | None,
    *,
    config: str | None = None,
    crop: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Restored:
    """Finds a checkpoint and its settings.

    Settings come from the run's ``checkpoint_metadata.json``. A config file (``config``, else the run's own
    ``config.yaml``) stands in where there is none, and names the run where no checkpoint is given. Crop settings may
    be overridden.

    Args:
        checkpoint: a run folder, an experiment's folder or a checkpoint; None to find it by the config.
        config: a YAML file such as a run's ``config.yaml``.
        crop: keys of the crop section that shall differ from the run's.
        generation: keys of the generation section that shall; None leaves a key as the run's.

    Raises:
        FileNotFoundError: there is no checkpoint, or neither metadata nor config.
        ValueError: neither is given, the config is of another model, or crop or generation are none.
    """
    given = None if config is None else _read_config(Path(config).expanduser())
    if checkpoint is None and given is None:
        raise ValueError("checkpoint is missing: name a run, such as checkpoint=runs/demo, or a config=<yaml>.")
    folder, found = find_trained(Path(checkpoint).expanduser() if checkpoint else _folder_of(given or {}))
    has_metadata = (folder / METADATA).is_file()
    if given is None and (folder / CONFIG).is_file():
        given = _read_config(folder / CONFIG)
    if not has_metadata and given is None:
        raise FileNotFoundError(
            f"{folder} has neither {METADATA} nor {CONFIG}, so nothing says what its checkpoint is. Give a config file "
            "(config=<yaml>) of the run."
        )
    settings = read_metadata(folder) if has_metadata else _from_config(given or {}, folder)
    if has_metadata and given is not None:
        settings = _reconciled(settings, _from_config(given, folder), config or str(folder / CONFIG))
    elif not has_metadata:
        settings |= for_metadata(stages_of((given or {})["stage"])[settings["stage"]])
        LOG.warning("%s has no %s: its settings are those of %s.", folder, METADATA, config or folder / CONFIG)
    settings = with_paths_found(settings, folder)
    decoding = recorded_generation(settings).changed(generation or {})
    settings = {**settings, "generation": asdict(decoding)}
    section = _with_overrides(settings["crop"], dict(crop or {}))
    if problems := crop_misfits(section, settings["model"]):
        raise ValueError("\n  ".join(["the model does not take this crop:", *problems]))
    return Restored(found, {**settings, "crop": section})


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"config={path}: there is no such file. Name a YAML file, such as a run's {CONFIG}.")
    try:
        loaded = OmegaConf.load(path)
        register_resolvers()
        values: Any = OmegaConf.to_container(loaded, resolve=True)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"config={path} is not a run's config ({error}).") from error
    missing = [section for section in ("model", "crop", "data", "stage") if section not in (values or {})]
    if missing:
        raise ValueError(f"config={path} has no section {', '.join(missing)}: give the {CONFIG} of a run.")
    return upgraded(values)


def _folder_of(config: Mapping[str, Any]) -> Path:
    """Where the run of a config keeps its last stage."""
    cfg = OmegaConf.create(dict(config))
    root = Path(cfg.output_dir) / (cfg.experiment_name or default_name(cfg))
    for stage in reversed(cfg.stage.run):
        folder = root / stage / setting(cfg)
        if any(folder.glob("*.ckpt")):
            return folder
    raise FileNotFoundError(f"No checkpoint of this config in {root}. Train it first, or name one with checkpoint=.")


def _from_config(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A config in the form of the metadata of a stage."""
    stage = folder.parent.name
    if stage not in config["stage"]:
        stage = config["stage"]["run"][-1]
    return {
        "experiment_name": job_name(folder.parent.parent) or config.get("experiment_name") or folder.parent.parent.name,
        "stage": stage,
        "model": config["model"],
        "crop": config["crop"],
        "data": config["data"],
        "evaluation": config["evaluation"],
        "generation": config.get("generation"),
        "stage_settings": config["stage"][stage],
        "precision": config["trainer"]["precision"],
    }


def _reconciled(metadata: dict[str, Any], config: dict[str, Any], name: str) -> dict[str, Any]:
    """The metadata, completed from the config; differences are logged or refused.

    Raises:
        ValueError: the config is of another model.
    """
    recorded, other = ({"model": each["model"], "crop": each["crop"]} for each in (metadata, config))
    old, new = flatten(recorded), flatten(other)
    for key in sorted(old.keys() & new.keys()):
        if old[key] == new[key] or (key in REVISIONS and new[key] is None):
            continue
        if key in IDENTITY:
            raise ValueError(
                f"{name} says {key}={new[key]}, the checkpoint's metadata {old[key]}: they are of two runs. Leave "
                "config= out, or give that of the checkpoint's run."
            )
        values = as_written(new[key]), name, as_written(old[key])
        LOG.warning("%s is %s in %s and %s in the metadata, which is used.", key, *values)
    return {**{key: config[key] for key in _SECTIONS}, **metadata}


def _with_overrides(crop: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """As ``changed_crop``, with a warning for each key that differs."""
    result = changed_crop(crop, changes)
    for key in result.keys() | crop.keys():
        if (new := result.get(key)) != (old := crop.get(key)):
            LOG.warning("crop.%s: %s in training, %s in this evaluation.", key, as_written(old), as_written(new))
    return result


def changed_crop(crop: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The crop section with other keys; the keys that another type has for itself are its defaults.

    Raises ValueError where the result is no crop.
    """
    if not changes:
        return dict(crop)
    base = crop
    if changes.get("type", crop["type"]) != crop["type"]:
        path = Path(CONF) / "crop" / f"{changes['type']}.yaml"
        own: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {"type": changes["type"]}
        kept = ("view_size", *COMMON_KEYS)
        base = {key: crop.get(key, value) if key in kept else value for key, value in own.items()}
    result = {**base, **changes}
    if problems := check_crop(result):
        raise ValueError("\n  ".join(["the crop is invalid:", *problems]))
    return result


def measure(run: Restored, pano: PanoLlava | None, data: dict[str, Any], split: str, tools: Tools) -> dict[str, float]:
    """Loss and metrics of a checkpoint on a split, each divided by its own total.

    Args:
        pano: its model where it is open; None for a stage-1 run, which has no language part.

    Raises:
        ValueError: texts that the model cannot be given.
    """
    section, record, compute = run.settings["stage_settings"], run.record, tools.compute
    own: dict[str, Tensor] = {}
    options = StageOptions(**part_of(section, StageOptions))
    if pano is None:
        backbones, model, own = open_checkpoint(
            run.checkpoint, run.settings, device=compute.device, dtype=compute.dtype
        )
    else:
        backbones, model = Backbones.of(pano.model, pano.prompt, pano.crop, run.settings["model"]), pano.model
    setup = StageSetup(run.stage, classes=tuple(run.settings.get("classes", ())), cameras=backbones.crop.camera_rows)
    stage = record.stage_class.build(backbones, model, setup, **record.stage_class.own_options(section))
    load_trained(stage, own, str(run.checkpoint))
    stage.to(compute.device)
    source = open_source(data, split, backbones.crop)
    loaded = RunData(source, source, None, backbones)
    if pano is not None and record.targets is not None:
        check_records(source, loaded.text(record.targets, options), pano.limits)
    features = open_features(tools.store, stage.vision.tower, backbones.crop)
    loader = loaded.batches(
        record.targets, options, num_workers=tools.num_workers, features=features, places=stage.places
    )
    with explained(
        lambda: (
            f"Out of memory while measuring {options.batch_size} samples at once, as the validation did: "
            "device=cpu may have more."
        )
    ):
        return validate(stage, stage, loader, compute, DistributedContext())
