"""The arguments of a sweep: what cannot be swept, its folder, and the resolvers of config files."""

import hashlib
import os
import re
import sys
import unicodedata
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from panollava.config.command_line import CONF, CommandLine, quoted
from panollava.config.outside import GROUPS

ONE_A_SWEEP = (
    "dry_run",
    "experiment_name",
    "output_dir",
    "tracking.also",
    "tracking.experiment",
    "tracking.type",
    "tracking.uri",
    "tracking.wandb_project",
)
"""Keys of the place of a sweep and its record, which all of its jobs have in common."""

RECORD = "multirun.yaml"
"""File of Hydra in a sweep's folder: the config without swept values."""

_JOBLIB, _SUBMITIT = ("hydra_joblib_launcher", "joblib"), ("hydra_submitit_launcher", "slurm")
_LAUNCHERS = dict.fromkeys(("joblib", "parallel"), _JOBLIB)
_LAUNCHERS |= dict.fromkeys(("slurm", "submitit_local", "submitit_slurm"), _SUBMITIT)
PLUGINS = {"hydra/launcher": _LAUNCHERS, "hydra/sweeper": {"optuna": ("hydra_optuna_sweeper", "optuna")}}
"""Group of Hydra -> option -> its plugin, and the extra that installs it."""

OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
"""Class of ``hydra/sweeper=optuna``."""


def as_sweep(line: CommandLine, of_options: Collection[str], scratch: Path) -> list[str]:
    """The overrides of a sweep as Hydra should see them, with its folder.

    The folder is named by ``experiment_name``, or after the overlay and the varied keys, so that the same command
    finds it again; if another sweep with other constant values has that name, the constant values are added. Names of
    jobs have varied keys only.

    Args:
        of_options: keys that only the options of a swept group have.
        scratch: temporary folder for that of a dry run.

    Raises:
        ValueError: the sweep cannot run here.
        HydraException: a job's config cannot be composed.
    """
    _refuse(line)
    varied = list(dict.fromkeys(o.key_or_group for o in line.swept if o.is_sweep_override()))
    words = [str(override.input_line) for override in line.parsed]
    for index, override in enumerate(line.parsed):
        if override.key_or_group in of_options and not override.is_sweep_override():
            # A sweep of one value: Hydra looks up the keys of all others in the config without swept values.
            words[index] = f"{override.key_or_group}=choice({override.get_value_element_as_str() or repr('')})"
    config = line.compose(words)
    folder = _folder(line, config, varied, of_options, scratch)
    constant = [o.key_or_group for o in line.parsed if not (o.is_hydra_override() or o.key_or_group in varied)]
    extra = [f"hydra.sweep.dir={quoted(str(folder))}"]
    if line.base.hydra.sweeper._target_ == OPTUNA:
        extra += _study(line.base.hydra.sweeper)
    if constant:
        names = ",".join(repr(key) for key in dict.fromkeys(constant))
        extra.append(f"hydra.job.config.override_dirname.exclude_keys=[{names}]")
    return [*words, *extra]


_OBJECTIVE = f"{GROUPS['objective'][0]}.type"


def slug(text: str, limit: int = 96) -> str:
    """A folder name from Hydra's ``key=value,…`` that no shell needs quoted, unique to the text.

    Names of more than ``limit`` bytes are cut and end in a short hash, as do those that lost characters or in which a
    value has a ``=`` or looks like another key. An objective has the name of its key, as before there was the group:
    a sweep that was started then finds its jobs.
    """
    items = [re.sub("^objective=", f"{_OBJECTIVE}=", item) for item in re.split(r",(?=[\w./+~]+=)", text)]
    if ",".join(items) != text:
        text = ",".join(sorted(items, key=lambda item: ("=" in item, item)))  # Hydra sorts them
    whole = re.sub(r"(^|,)([+~]*)(?:model[/.]|experiment/)", r"\1\2", text)
    short = whole.replace("=", "-").replace(",", "_")
    plain = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", short)).strip("-.") or "default"
    pairs = [item.split("=") for item in whole.split(",")]
    # A part without a name is of a value with a comma at an end, which a value with a _ would look like.
    is_clear = all(pair[0] and len(pair) <= 2 and f"_{short}".count(f"_{pair[0]}-") <= 1 for pair in pairs)
    if plain == short and is_clear and len(plain.encode()) <= limit:
        return plain
    cut = plain.encode()[: limit - 9].decode(errors="ignore").rstrip("-.")
    return f"{cut}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def check_plugins(overrides: Sequence[Override]) -> None:
    """Checks that the launcher and the sweeper are installed.

    Raises:
        ValueError: one is not, or a search space is given where Hydra cannot compose it.
    """
    for override in overrides:
        if re.match(r"hydra\.sweeper\.(custom_)?search_space", override.key_or_group):
            raise ValueError(
                f"{override.key_or_group}: the space is what keys vary, such as 'crop.overlap=interval(0.0,0.5)'. "
                "Leave it out."
            )
        options = PLUGINS.get(override.key_or_group, {})
        if (option := str(override.value())) in options:
            plugin, extra = options[option]
            if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{plugin}") is None:
                raise ValueError(
                    f'{override.input_line} needs a package that is not installed: pip install ".[{extra}]" in the '
                    f"repository, or pip install {plugin.replace('_', '-')}."
                )


def _refuse(line: CommandLine) -> None:
    """Raises ValueError if the sweep cannot run here."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(
            "a sweep (-m) under torchrun would run all of its jobs in every process. Start it without torchrun, where "
            "hydra/launcher=parallel runs several jobs at once, each on a GPU of its own, and hydra/launcher=slurm "
            "hydra.launcher.tasks_per_node=2 gives every job two processes. Or start torchrun once per value, such as "
            "torchrun --nproc-per-node=2 -m panollava.train crop.overlap=0.0 experiment_name=overlap0."
        )
    for option, config in line.variants.items():
        if config.hydra.sweeper.get("params") != line.base.hydra.sweeper.get("params"):
            raise ValueError(f"{option} is a sweep itself and cannot be a job of another. Start it alone.")
    is_basic = line.base.hydra.sweeper._target_.endswith(".BasicSweeper")
    if line.base.hydra.sweeper._target_ == OPTUNA:
        _refuse_study(line)
    for override in line.swept:
        if not override.is_sweep_override():
            continue
        if override.key_or_group in ONE_A_SWEEP or override.key_or_group == "tracking":
            raise ValueError(
                f"{override.input_line}: a sweep has one {override.key_or_group}, and its jobs have folders of their "
                "own. Start the command once per value."
            )
        if is_basic and not override.is_discrete_sweep():
            raise ValueError(
                f"{override.input_line}: hydra/sweeper=basic takes values one by one. List them, such as "
                f"{override.key_or_group}=0.1,0.2, or with range(start,stop,step)."
            )
    if is_basic:
        jobs = [tuple(job) for batch in BasicSweeper.split_arguments(line.swept, None) for job in batch]
        if not jobs:
            raise ValueError("the sweep has no job: what it varies has no value.")
        if len(set(jobs)) < len(jobs):
            twice = next(job for job in jobs if jobs.count(job) > 1)
            raise ValueError(f"the sweep has a job twice: {' '.join(twice)}. Give each value once.")
        line.compose(jobs[0])


def _study(sweeper: DictConfig) -> list[str]:
    """Overrides of a study of Optuna, in place of the plugin's own defaults."""
    found = ["hydra.sweeper.direction=maximize"]
    if sweeper.max_failure_rate == 0:  # a sweep goes on after a job that failed
        found.append("hydra.sweeper.max_failure_rate=1.0")
    if "seed" in sweeper.sampler and sweeper.sampler.seed is None:
        # The same command then chooses the same trials again, and finds those that are finished in their folders.
        found.append("hydra.sweeper.sampler.seed=0")
    return found


def _refuse_study(line: CommandLine) -> None:
    """Raises ValueError if a study of Optuna cannot be made here."""
    sweeper = line.base.hydra.sweeper
    if sweeper.get("storage") is not None:
        raise ValueError(
            f"hydra.sweeper.storage={sweeper.storage}: a study is kept in the sweep's folder, where the same command "
            "finds the trials that are finished. Leave it out."
        )
    if sweeper.sampler._target_.endswith(".GridSampler"):
        raise ValueError("hydra/sweeper/sampler=grid: without hydra/sweeper=optuna, -m runs every combination.")
    if (
        any(o.key_or_group == "hydra.sweeper.direction" for o in line.parsed)
        and getattr(sweeper.direction, "name", sweeper.direction) != "maximize"
    ):
        raise ValueError(
            f"hydra.sweeper.direction={sweeper.direction}: training returns its measure, and higher is better. Leave "
            "it out."
        )
    for key, lowest in (("n_trials", 1), ("n_jobs", 1), ("max_failure_rate", 0)):
        if sweeper[key] < lowest:
            raise ValueError(f"hydra.sweeper.{key}={sweeper[key]}: allowed is {lowest} or more.")
    if not any(override.is_sweep_override() for override in line.swept):
        raise ValueError(
            "hydra/sweeper=optuna: no key varies. Give one a range, such as 'crop.overlap=interval(0.0,0.5)' or "
            "resampler=choice(mlp,bimamba)."
        )
    from panollava.stages.registry import stages_of  # imports torch, which the command line must not

    config = line.compose([str(override.input_line) for override in line.parsed])
    section: Any = OmegaConf.to_container(config.stage, resolve=False)
    last = stages_of(section).get(str((section.get("run") or [""])[-1]))
    is_measured = last is None or last.answers or last.finds
    if not config.evaluation.enabled or not is_measured:
        why = "evaluation.enabled=false" if last is None or is_measured else f"stage.run ends with {last.name}, which"
        raise ValueError(
            f"hydra/sweeper=optuna: trials are chosen by the measure of the evaluation, and {why} has none. Train a "
            "stage that answers questions, such as finetune, and evaluate it."
        )


def _folder(
    line: CommandLine, config: DictConfig, varied: Sequence[str], of_options: Collection[str], scratch: Path
) -> Path:
    """The sweep's folder, which has no sweep with other constant values."""
    params = [str(key).lstrip("+") for key in line.base.hydra.sweeper.get("params") or {}]
    overlays = [name for name in _overlays(line) if line.compose([f"+experiment={name}"]).hydra.sweeper.get("params")]
    own = [
        {"objective": _OBJECTIVE}.get(key, key.removeprefix("model/"))
        for key in varied
        if not (overlays and key in params)
    ]
    name = "_".join([*(overlays or ["sweep"]), *own]) if config.experiment_name is None else str(config.experiment_name)
    if config.dry_run in (True, "plan"):
        return scratch / slug(name, 80)
    given = any(override.key_or_group == "hydra.sweep.dir" for override in line.parsed)
    first = Path(config.hydra.sweep.dir) if given else Path(config.output_dir).expanduser() / slug(name, 80)
    places = [first]
    if not given and config.experiment_name is None:
        second = first.with_name(slug(",".join([name, *(_constants(line, varied, overlays) or ["defaults"])]), 80))
        places = [second, first] if second.is_dir() else [first, second]
    for folder in places:
        others = {} if config.overwrite is True else _other_constants(line, config, of_options, folder)
        if not others:
            if folder != first:
                sys.stderr.write(f"\n{first} is a sweep with other constant values; this one is in {folder}.\n")
            return folder
    shown = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in others.items())
    way = "hydra.sweep.dir=<folder>" if given else "experiment_name=<name>"
    raise ValueError(
        f"{folder} holds a sweep with other constant values ({shown}). Give this one a place of its own ({way}), or "
        "replace it (overwrite=true)."
    )


def _overlays(line: CommandLine) -> list[str]:
    """Options of the ``experiment`` group on a command line."""
    values = [o.value() for o in line.parsed if o.key_or_group == "experiment" and not o.is_sweep_override()]
    return [str(name) for value in values for name in (value if isinstance(value, list) else [value])]


def _constants(line: CommandLine, varied: Sequence[str], overlays: Sequence[str]) -> list[str]:
    """The overrides that all jobs have in common and that change results."""
    from panollava.run_folder import is_free  # imports torch, which the command line must not

    found = [o for o in line.parsed if not (o.is_hydra_override() or o.key_or_group in varied)]
    if overlays:
        found = [o for o in found if o.key_or_group != "experiment"]
    return sorted(str(o.input_line).lstrip("+") for o in found if not is_free(o.key_or_group))


def _other_constants(
    line: CommandLine, config: DictConfig, of_options: Collection[str], folder: Path
) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ in the sweep of a folder: key -> (there, now); empty if it has no sweep."""
    from panollava.run_folder import differing_keys, earlier_defaults, flatten

    if not (folder / RECORD).is_file():
        return {}
    recorded = OmegaConf.load(folder / RECORD)
    old, new = (_without_hydra(each) for each in (recorded, config))
    shared = flatten(old).keys() & flatten(new).keys()  # a key that is new since then has no value there to differ
    found: dict[str, tuple[Any, Any]] = {}
    for stage in config.stage.run:
        found |= {key: pair for key, pair in differing_keys(stage, new, old).items() if key in shared}
    kept = earlier_defaults(old, new, [o.key_or_group for o in line.parsed])
    found = {key: pair for key, pair in found.items() if key not in kept}
    before = {o.key_or_group: o for o in line.parse(OmegaConf.select(recorded, "hydra.overrides.task") or [])}
    now = {o.key_or_group: o for o in line.parsed}
    one_value = {key for key, o in before.items() if re.fullmatch(r"choice\([^,]*\)", o.get_value_string())}
    for key in one_value | set(of_options):
        there = [re.sub(r"^choice\((.*)\)$", r"\1", o.get_value_string()) for o in (before.get(key), now.get(key)) if o]
        if key not in before or key not in now or there[0] != there[1]:
            found[key] = (there[0] if key in before else None, there[-1] if key in now else None)
    return found


def _without_hydra(config: Any) -> dict[str, Any]:
    # Resolved, since a default may have become an interpolation, or have been one.
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    values: Any = OmegaConf.to_container(own, resolve=True)
    return {str(key): value for key, value in values.items()}


def register_resolvers() -> None:
    """Registers ``${for_size:…}``, ``${slug:…}`` and ``${options:…}`` of the config files; may be called again."""
    resolvers: dict[str, Any] = {"for_size": _for_size, "slug": slug, "options": _options}
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _for_size(values: DictConfig, *, _root_: DictConfig) -> object:
    size = _root_.model.size
    if size not in values:
        raise ValueError(f"model.size={size!r} has no default here; known: {', '.join(map(str, values))}.")
    found = values[size]
    return OmegaConf.create(found) if isinstance(found, list) else found  # a bare list cannot be resolved


def _options(group: str, kind: str = "") -> str:
    """The options of a config group, or those of a type, for help texts of commands that know few of the groups."""
    files = sorted((Path(CONF) / group).glob("*.yaml"))
    return ", ".join(path.stem for path in files if kind in ("", _type(path)))


def _type(path: Path) -> str | None:
    """The ``type`` that the file of an option states, or the option from which it starts."""
    config: Any = OmegaConf.load(path)
    bases = [base for base in config.get("defaults", []) if isinstance(base, str) and base != "_self_"]
    below = (_type(path.with_name(f"{base}.yaml")) for base in bases if "/" not in base)
    found: str | None = config.get("type") or next(below, None)
    return found
