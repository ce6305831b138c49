"""The folder of an experiment: names, lock, stage states and metadata.

::

    runs/<experiment>/<stage>/<crop-with-hyphens>_<resampler>/   checkpoints, config and logs of a stage
    runs/<experiment>/stage_state.json                           state of each stage
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from panollava.checkpoint import BEST, FORMAT_VERSION, LAST, find_checkpoint, follow, read_state, tidy
from panollava.component import check_packages
from panollava.disk import DiskError, missing_folders, read_versioned, take_away, write_file, write_json, writing
from panollava.stages.registry import STAGES as STAGE_NAMES
from panollava.stages.registry import StageRecord, last_first, recorded_stage

CONFIG, METADATA, STAGES = "config.yaml", "checkpoint_metadata.json", "stage_state.json"
CURVE = "learning_curve.csv"

MAY_DIFFER = (
    "data.score_by",
    "dry_run",
    "evaluation",
    "experiment_name",
    "form",
    "generation",
    "gpu",
    "mfu",
    "output_dir",
    "overwrite",
    "resume",
    "stage.run",
    "store",
    "tracking",
    "trainer.auto_batch",
    "trainer.checkpoint_activations",
    "trainer.keep_best",
    "trainer.log_every_steps",
    "trainer.max_steps",
    "trainer.num_workers",
    "trainer.parallel",
    "trainer.patience",
    "trainer.process_timeout_s",
    "trainer.save_every_steps",
)
"""Config keys that may change between the starts of a run without making it another run."""

FORM = 4  # form of the model section in configs and metadata; older records have none and go through `upgraded`

WITH_SHORTCUT = ("c_abstractor", "mlp", "perceiver", "qformer")
"""Resamplers that had no shortcut up to version 0.2."""

WITH_LAYER_SCALE = ("perceiver", "qformer")
"""Resamplers that had no layer scale up to form 3."""


class ChangedDefault(NamedTuple):
    """A default that is not what it was."""

    form: int  # since which it has changed
    before: Any
    now: Any
    size: str | None = None  # the ``model.size`` whose default it is; None: of all


CHANGED_DEFAULTS = {
    "model.resampler.shortcut": ChangedDefault(3, False, True),
    "model.resampler.layer_scale": ChangedDefault(4, False, True),
    "model.language.attn_implementation": ChangedDefault(4, "eager", "sdpa", "tiny"),
    "stage.resampler.batch_size": ChangedDefault(4, 16, 8, "tiny"),
    "stage.finetune.batch_size": ChangedDefault(4, 16, 8, "tiny"),
}

NULL_OBJECTIVE = {
    "stage.vision.loss.pairing": "columns",
    "stage.vision.loss.invariance": 25.0,
    "stage.vision.loss.variance": 25.0,
    "stage.vision.loss.covariance": 1.0,
    "stage.vision.loss.temperature": 0.07,
    "stage.vision.loss.negatives": "pair",
}
"""What null stood for in configs of up to version 0.2, which had the keys of all objectives; not with type auto."""

_OF_SPLIT = ("csv", "json", "boxes")
"""Ends of the keys of ``data`` that name the file of a split."""
_PATHS = {
    "model.vision": ("name",),
    "model.language": ("name",),
    "data": (
        "dir",
        "image_dir",
        "masks",
        *(f"{part}_{kind}" for part in ("train", "val", "test") for kind in _OF_SPLIT),
    ),
    "evaluation": ("clip",),
}
"""Settings of a run, by section, that may be paths."""
_NEEDED = {"stage": str, "experiment_name": str, "model": dict, "crop": dict}  # required entries of METADATA


class Experiment:
    """An experiment's folder, which one process locks at a time.

    As a context manager it holds the lock. If an error ends the block before `begin`, the new files are removed.

    Args:
        setting: ``<crop-with-hyphens>_<resampler>``, the name of each stage's folder.
        name: of its results; by default the folder's own, for a job of a sweep ``<sweep>/<job>``.
        owner: whether this process writes; other ranks of a distributed run only read.

    Attributes:
        replaced: stages that this start trains anew, in place of what the folder has of them.
    """

    replaced: Collection[str] = ()

    def __init__(self, root: Path, setting: str, *, name: str | None = None, owner: bool = True) -> None:
        self.root, self.setting, self.name = root, setting, name or root.name
        self._owner, self._exit, self.is_begun = owner, ExitStack(), False

    def begin(self) -> None:
        """Keeps the run's files from now on, also if it fails."""
        self.is_begun = True

    def __enter__(self) -> Experiment:
        if self._owner:
            self._made = missing_folders(self.root)
            self._before = set(self.root.rglob("*"))
            try:
                with writing(self.root):
                    self.root.mkdir(parents=True, exist_ok=True)
                    try:
                        # A killed process releases the lock as it dies, with its workers.
                        self._exit.enter_context(FileLock(self.root / ".lock").acquire(timeout=0))
                    except Timeout:
                        raise ValueError(
                            f"{self.root} is in use by another process. Wait for it, stop it, or give this run "
                            "a name of its own with experiment_name=<name>."
                        ) from None
            except DiskError as error:
                if not isinstance(error.__cause__, FileExistsError | NotADirectoryError):
                    raise
                raise ValueError(
                    f"output_dir: {self.root} cannot be made, since a file is in its way ({error.__cause__}). Choose "
                    "another output_dir."
                ) from error
            for folder in (self.root, *self.root.glob("*/"), *self.root.glob("*/*/")):
                with writing(folder):
                    tidy(folder)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._owner and not self.is_begun and any(exception):
            take_away(set(self.root.rglob("*")) - self._before, self._made)
        self._exit.close()

    def stage_folder(self, stage: str) -> Path:
        """Folder of a stage's checkpoints."""
        return self.root / stage / self.setting

    def states(self) -> dict[str, dict[str, Any]]:
        """State of each stage that was started, by ``<stage>/<setting>``."""
        path = self.root / STAGES
        if not path.exists():
            return {}
        way_out = "Remove the file to resume from the stages' checkpoints; or start anew with overwrite=true."
        stages = read_versioned(path, FORMAT_VERSION, way_out).get("stages")
        if not isinstance(stages, dict):
            raise ValueError(f"{path} has no stages. {way_out}")
        if wrong := [key for key, entry in stages.items() if not isinstance(entry, dict)]:
            raise ValueError(f"{path} has no valid entry for {wrong[0]}. {way_out}")
        return stages

    def state(self, stage: str) -> dict[str, Any]:
        """State of one stage; empty if it was never started."""
        return self.states().get(f"{stage}/{self.setting}", {})

    def kept(self, stages: Iterable[str]) -> list[str]:
        """Those of some stages that this start does not replace."""
        return [name for name in stages if name not in self.replaced]

    def evaluated(self, stage: str) -> Path | None:
        """Folder of the evaluation on record, which may be gone; None without one. The command may start anywhere."""
        value = self.state(stage).get("evaluated")
        workplace = recorded_metadata(self.stage_folder(stage)).get("workplace") if value else None
        return found_path(value, self.root, workplace) if value else None

    def record(self, stage: str, **values: Any) -> None:
        """``begin`` and update one stage's state on disk."""
        self.begin()
        states = self.states()
        entry = states.setdefault(f"{stage}/{self.setting}", {})
        entry.update(values, updated=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        write_json(self.root / STAGES, {"format_version": FORMAT_VERSION, "stages": states})

    def clear(self, stage: str) -> None:
        """Removes a stage's folder and state (``overwrite=true``)."""
        try:
            states = self.states()
        except ValueError:  # an unreadable file is replaced too
            states = {}
        if states.pop(f"{stage}/{self.setting}", None) is not None or (self.root / STAGES).exists():
            write_json(self.root / STAGES, {"format_version": FORMAT_VERSION, "stages": states})
        folder = self.stage_folder(stage)
        if folder.exists():
            gone = folder.with_name(f".tmp-{folder.name}-cleared")  # in one go: half a folder would be resumed from
            with writing(folder):
                folder.rename(gone)
                shutil.rmtree(gone)

    def check_same_config(self, stage: str, config: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> None:
        """Raises a ValueError with the keys in which a start's config differs from the folder's ``config.yaml``."""
        metadata = recorded_metadata(self.stage_folder(stage))
        if different := {} if recorded is None else differing_keys(stage, config, recorded, metadata):
            shown = "; ".join(described(key, *values) for key, values in different.items())
            # With several stages overwrite=true alone would train those again that are finished.
            which = "" if list(config["stage"]["run"]) == [stage] else f"stage={stage} "
            raise ValueError(
                f"{self.stage_folder(stage)} holds a run with another config ({shown}). Give this one a name of its "
                f"own (experiment_name=<name>), or replace it ({which}overwrite=true)."
            )


def differing_keys(
    stage: str, config: Mapping[str, Any], recorded: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
) -> dict[str, tuple[Any, Any]]:
    """Keys whose values make ``config`` another run of ``stage`` than ``recorded``: key -> (old, new).

    ``metadata`` of the recorded one leave out the paths of what they identify by its content.
    """
    old, new = flatten(upgraded(recorded)), flatten(config)
    by_content = _compared_by_content(stage, old, new, metadata or {})
    precision, number_format = "trainer.precision", (metadata or {}).get("number_format")
    if number_format is not None and "auto" in (old.get(precision), new.get(precision)):  # auto goes on as it was begun
        old[precision] = number_format
        new[precision] = number_format if new.get(precision) == "auto" else new.get(precision)
    if old.get("stage.vision.loss.type") != "auto":  # a key that another objective has stays null on both sides
        old |= {key: value for key, value in NULL_OBJECTIVE.items() if key in new and old.get(key) is None}
    # These two are not in ``is_free``, by which earlier versions have named sweeps.
    free = {key for key in {*old, *new} if is_free(key) or key == "trainer.device" or key.startswith("data.test_")}
    different = [key for key in sorted({*old, *new} - free - by_content) if old.get(key) != new.get(key)]
    ours = [key for key in different if not key.startswith("stage.") or key.startswith(f"stage.{stage}.")]
    return {key: (old.get(key), new.get(key)) for key in ours}


def _compared_by_content(
    stage: str, old: Mapping[str, Any], new: Mapping[str, Any], metadata: Mapping[str, Any]
) -> set[str]:
    """Keys that name files and folders whose content the metadata of a stage record, or that it does not read.

    The run compares the content as soon as the files are open.
    """
    if not isinstance(inputs := metadata.get("inputs"), Mapping) or not inputs:
        return set()
    finds = stage not in STAGE_NAMES or STAGE_NAMES[stage].finds  # a stage of another package may
    splits = [part for part in ("train", "val") if "pictures" in (inputs.get(part) or {})]
    splits = [part for part in splits if not finds or "places" in inputs[part]]
    keys = {f"data.{part}_{kind}" for part in splits for kind in _OF_SPLIT}
    keys = {key for key in keys if old.get(key) and new.get(key)}
    if len(splits) == 2:
        keys |= {"data.dir", "data.image_dir", "data.masks"}
    for part in ("vision", "language"):
        name = new.get(key := f"model.{part}.name")
        is_known = part not in inputs or "files" in (inputs[part] or {})
        if is_known and isinstance(name, str) and Path(name).expanduser().is_dir():
            keys.add(key)
    return keys


def described(key: str, recorded: Any, now: Any) -> str:
    """A key with its recorded and its present value."""
    return f"{key}: {as_written(recorded)} there, {as_written(now)} now"


def as_written(value: Any) -> str:
    """A value for a message, with null, true and false as in YAML."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """A config or metadata of an older form, in the present form.

    Up to form 3 resamplers had no layer scale, up to version 0.2 no shortcut. Up to version 0.1 ``model.join=stitch``
    was what is ``stitch_nearest`` now, the ``c_abstractor`` had ReLU gates and no positions, and stage 1 paired columns
    by itself also where tiles look up or down. Keys of ``data`` with which training fetched pictures are left out; the
    built-in world had level 1 and nine kinds of questions only, and each record its own prefix.
    """
    result, form = dict(record), record.get("form") or 1
    if isinstance(data := result.get("data"), Mapping):
        result["data"] = {k: value for k, value in data.items() if k != "remote" and not k.startswith("remote_")}
        if data.get("type") == "world":
            result["data"].setdefault("level", 1)
            result["data"].setdefault("kinds", None)
        if form < 4:
            result["data"].setdefault("shared_prefix", False)
    if form >= FORM or not isinstance(record.get("model"), Mapping):
        return result
    result = copy.deepcopy(result)
    model = result["model"]
    kind = (model.get("resampler") or {}).get("type")
    if form < 3 and kind in WITH_SHORTCUT:
        model["resampler"] = {"shortcut": False, **model["resampler"]}
    if kind in WITH_LAYER_SCALE:
        model["resampler"] = {"layer_scale": False, **model["resampler"]}
    if form >= 2:
        return result
    if model.get("join") == "stitch":
        model["join"] = "stitch_nearest"
    if (model.get("resampler") or {}).get("type") == "c_abstractor":
        model["resampler"] = {"positions_per_side": 0, "gate": "relu", **model["resampler"]}
    if any((result.get("crop") or {}).get("pitch_rows_deg") or ()):
        # "stage_settings" in metadata, "stage.vision" in configs.
        stages = (result.get("stage_settings"), (result.get("stage") or {}).get("vision"))
        for loss in (stage["loss"] for stage in stages if isinstance(stage, dict) and "loss" in stage):
            if loss.get("type") == "auto" and model["resampler"].get("type") not in ("qformer", "perceiver"):
                loss["pairing"] = loss.get("pairing") or "columns"
    return result


def earlier_defaults(recorded: Mapping[str, Any], now: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """Keys that have the default of then in a run's config and today's in another one: key -> the value of then.

    Args:
        recorded: the run's config.
        now: the config of a command, resolved.
        named: keys of its command line, which may be shortened; what it names is no default.
    """
    old, new = flatten(upgraded(recorded)), flatten(now)
    return {
        key: one.before
        for key, one in CHANGED_DEFAULTS.items()
        if (recorded.get("form") or 1) < one.form
        and (old.get(key), new.get(key)) == (one.before, one.now)
        and one.size in (None, new.get("model.size"))
        and not any(key.endswith(name) for name in named)
    }


def is_free(key: str) -> bool:
    """Whether a config key may change between the starts of a run without making it another run."""
    free = any(key == name or key.startswith(f"{name}.") for name in MAY_DIFFER)
    return free or re.fullmatch(r"stage\.\w+\.epochs", key) is not None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> ``a.b.c`` keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def short_name(name: str) -> str:
    """A backbone's short name for folders: ``google/siglip2-so400m-patch14-224`` -> ``siglip2-so400m``."""
    return name.replace("\\", "/").rstrip("/").split("/")[-1].split("-patch")[0].removesuffix("-hf")


def experiment_name(*, vision: str, language: str, resampler: str, crop: str, position: str, overlap: float) -> str:
    """``{vision}_{language}_{resampler}_{crop}[_PE][_ovNNN]``.

    ``vision`` and ``language`` are names of backbones, the others types of components and the configured overlap,
    which is in the name, in hundredths, unless it is the default 0.5.
    """
    parts = [short_name(vision), short_name(language), resampler, crop.replace("_", "-")]
    parts += [] if position == "none" else ["PE"]
    parts += [f"ov{round(overlap * 100):03d}"] if abs(overlap - 0.5) > 1e-9 else []
    return "_".join(parts)


def write_metadata(folder: Path, metadata: Mapping[str, Any], config_yaml: str) -> None:
    """Writes ``checkpoint_metadata.json``, from which evaluation rebuilds the model, and ``config.yaml``."""
    write_json(folder / METADATA, {"format_version": FORMAT_VERSION, "form": FORM, **metadata})
    write_file(folder / CONFIG, config_yaml)


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a stage's run folder; a ValueError if it is not JSON, or of another format version."""
    path = folder / METADATA
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, so {folder} is not a stage's run folder. "
            f"Expected runs/<experiment>/<stage>/<crop>_<resampler>.{_nearby(folder)}"
        )
    document = read_versioned(path, FORMAT_VERSION, "Choose another run.")
    if lacking := [key for key, kind in _NEEDED.items() if not isinstance(document.get(key), kind)]:
        raise ValueError(f"{path} lacks {', '.join(lacking)}, without which the checkpoints cannot be opened.")
    check_packages(document.get("packages", {}))
    return upgraded(document)


def recorded_metadata(folder: Path) -> dict[str, Any]:
    """As ``read_metadata``; empty where there are none, or wrong ones: training writes them anew."""
    try:
        return read_metadata(folder) if (folder / METADATA).is_file() else {}
    except ValueError:
        return {}


def with_paths_found(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of a run's settings in which relative paths are resolved, for a command started in any folder.

    See ``found_path``; the last place is the folder that the run was started in. A backbone's absolute folder that is
    gone is looked for by its name alone, and one that stands in for a model of the hub has no revision.
    """
    result = copy.deepcopy(settings)
    for section, keys in _PATHS.items():
        values = result
        for part in section.split("."):
            values = values.get(part, {})
        for key in keys:
            value = values.get(key)
            if isinstance(value, str) and not Path(value).expanduser().exists():
                found = found_path(value, folder, settings.get("workplace"))
                values[key] = str(found) if found.exists() else value  # a hub name is no path
    for section in (result.get("model", {}).get(part, {}) for part in ("vision", "language")):
        name = Path(section.get("name") or "").expanduser()
        if name.is_absolute() and not name.exists():
            found = found_path(name.name, folder, settings.get("workplace"))
            section["name"] = str(found) if (found / "config.json").is_file() else section["name"]
        if Path(section.get("name") or "").is_dir() and section.get("revision"):
            section["revision"] = None
    return result


def found_path(value: str, folder: Path, workplace: str | Path | None = None) -> Path:
    """A path that a run in ``folder`` has recorded, as it leads there from any working directory.

    It is tried as it is, then from each parent of ``folder``, the nearest first, then from ``workplace``. A value that
    is found nowhere, such as a hub name, stays as it is.
    """
    roots = [Path(), *folder.resolve().parents, *([Path(workplace)] if workplace else [])]
    return next((path for root in roots if (path := root / value).exists()), Path(value))


def prompt_date(metadata: Mapping[str, Any]) -> date | None:
    """The date in a run's prompts, from its metadata; None if they have none, or it is not recorded."""
    recorded = (metadata.get("prompt") or {}).get("date")
    return None if recorded is None else date.fromisoformat(recorded)


def recorded_size(metadata: Mapping[str, Any]) -> tuple[int, int] | None:
    """``(h, w)`` of a run's views, from its metadata; None if it is not recorded.

    Up to version 0.2 it need not be a whole number of patches.
    """
    size = (metadata.get("model_config") or {}).get("image_size")
    return None if size is None else (int(size[0]), int(size[1]))


def is_run(path: Path) -> bool:
    """Whether what a user names is a run, not an export, which has ``config.json``, or a name of the hub, no folder."""
    return path.exists() and not (path / "config.json").is_file()


def find_run_folder(path: Path, order: Sequence[str] = ()) -> Path:
    """The stage folder of a path: itself, that of a checkpoint, or an experiment's by ``order`` (default: the last)."""
    for folder in (path, path.parent):
        if (folder / METADATA).is_file():
            return folder
    for stage in order or last_first(_outside_stages(path)):
        folders = [p for p in path.glob(f"{stage}/*/{METADATA}") if follow(p.parent / BEST) or follow(p.parent / LAST)]
        if folders:
            return sorted(folders, key=lambda p: p.stat().st_mtime)[-1].parent
    raise FileNotFoundError(no_run(path))


def no_run(path: Path) -> str:
    """Says that a path is no run, and which runs are nearby."""
    return f"{path} is no run: no {METADATA} in it, beside it or below it.{_nearby(path)}"


def find_trained(path: Path, order: Sequence[str] = ()) -> tuple[Path, Path]:
    """The stage folder that a user means (see ``find_run_folder``), and the checkpoint to open in it."""
    if path.suffix == ".ckpt" or any(path.glob("*.ckpt")):
        return (found := find_checkpoint(path)).parent, found
    folder = find_run_folder(path, order)
    return folder, find_checkpoint(folder)


def _outside_stages(path: Path) -> list[StageRecord]:
    """Records of the stages of other packages in an experiment's folder."""
    files = (file for file in path.glob(f"*/*/{METADATA}") if file.parts[-3] not in STAGE_NAMES)
    found = (recorded_stage(read_metadata(file.parent)) for file in files)
    return list({record.name: record for record in found}.values())


def known_checkpoints(output_dir: Path, stage: str) -> list[Path]:
    """Folders of a stage below ``output_dir`` that hold a readable checkpoint, newest first."""
    folders = [metadata.parent for metadata in output_dir.glob(f"**/{stage}/*/{METADATA}")]
    found = [folder for folder in folders if any(_is_readable(link) for link in folder.glob("*.ckpt"))]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _is_readable(checkpoint: Path) -> bool:
    try:
        read_state(checkpoint)
    except (OSError, ValueError):
        return False
    return True


def _nearby(path: Path) -> str:
    root = next((parent for parent in (path, *path.parents) if parent.is_dir()), Path("."))
    if root.resolve() in (Path(root.resolve().anchor), Path.home()):
        return ""  # a mistyped path is no reason to search the whole disk
    depths = ("*", "*/*", "*/*/*", "*/*/*/*")
    runs = sorted({file.parent for depth in depths for file in root.glob(f"{depth}/{METADATA}")})[:5]
    listed = ", ".join(map(str, runs))
    return f" Runs found below {root}: {listed}." if listed else ""
