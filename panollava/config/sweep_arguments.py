"""What ``${for_size:…}``, ``${slug:…}`` and ``${options:…}`` in the config files mean."""

from __future__ import annotations

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

ONE_A_SWEEP = ("dry_run", "experiment_name", "output_dir", "tracking.experiment", "tracking.type", "tracking.uri")
"""Keys that say where a sweep and its record are, which is one place for all of its jobs."""

RECORD = "multirun.yaml"
"""What Hydra keeps in a sweep's folder: the config without what is swept."""

LAUNCHERS = {
    "joblib": ("hydra_joblib_launcher", "joblib"),
    "parallel": ("hydra_joblib_launcher", "joblib"),
    "slurm": ("hydra_submitit_launcher", "slurm"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
}
"""Option of ``hydra/launcher`` -> the plugin it is in, and the extra that brings it."""


def as_sweep(line: CommandLine, of_options: Collection[str], scratch: Path) -> list[str]:
    """The overrides of a sweep as Hydra should see them: with a folder for it.

    The folder is named by ``experiment_name``, or after the overlay and what is varied, so that starting it again
    finds it; where another sweep of this name has other constant values, after those too. Only varied keys go into
    the names of its jobs; the constant ones would only make them long.

    Args:
        line: the command line.
        of_options: keys that only the options of a swept group have.
        scratch: where a dry run may have its folder, which goes with it.

    Raises:
        ValueError: it cannot run here, with the way out.
        HydraException: a job's config cannot be composed.
    """
    _refuse(line)
    varied = list(dict.fromkeys(o.key_or_group for o in line.swept if o.is_sweep_override()))
    words = []
    for override in line.parsed:
        word = str(override.input_line)
        if override.key_or_group in of_options and not override.is_sweep_override():
            # A sweep of one value: Hydra looks for the key of any other in the config without what is swept.
            word = f"{override.key_or_group}=choice({override.get_value_element_as_str() or repr('')})"
        words.append(word)
    config = line.compose(words)
    folder = _folder(line, config, varied, of_options, scratch)
    constant = [o.key_or_group for o in line.parsed if not (o.is_hydra_override() or o.key_or_group in varied)]
    extra = [f"hydra.sweep.dir={quoted(str(folder))}"]
    if constant:
        names = ",".join(repr(key) for key in dict.fromkeys(constant))
        extra.append(f"hydra.job.config.override_dirname.exclude_keys=[{names}]")
    return [*words, *extra]


def slug(text: str, limit: int = 96) -> str:
    """A folder name from ``key=value,…`` that no shell needs quoted. Two texts never have the same.

    Args:
        text: Hydra's override string.
        limit: longest result in bytes; longer ones are cut and end in a short hash, as do those that lost characters
            or where a value looks like another key.
    """
    whole = re.sub(r"(^|,)([+~]*)model[/.]", r"\1\2", text)
    short = whole.replace("=", "-").replace(",", "_")
    plain = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", short)).strip("-.") or "default"
    keys = [item.partition("=")[0] for item in whole.split(",")]
    is_clear = all(f"_{short}".count(f"_{key}-") <= 1 for key in keys if key)
    if plain == short and is_clear and len(plain.encode()) <= limit:
        return plain
    cut = plain.encode()[: limit - 9].decode(errors="ignore").rstrip("-.")
    return f"{cut}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def check_launcher(overrides: Sequence[Override]) -> None:
    """Whether the launcher that is named is installed.

    Raises:
        ValueError: it is not, with the way out.
    """
    for override in overrides:
        if override.key_or_group == "hydra/launcher" and override.value() in LAUNCHERS:
            plugin, extra = LAUNCHERS[str(override.value())]
            if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{plugin}") is None:
                raise ValueError(
                    f'{override.input_line} needs a package that is not installed: pip install ".[{extra}]" in the '
                    f"repository, or pip install {plugin.replace('_', '-')}."
                )


def _refuse(line: CommandLine) -> None:
    """Says what keeps a sweep from running here."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(
            "a sweep (-m) under torchrun would run whole in every process. Either start it without torchrun, where "
            "hydra/launcher=parallel runs several jobs at once, each on a GPU of its own, and hydra/launcher=slurm "
            "hydra.launcher.tasks_per_node=2 gives every job two processes; or start torchrun once a value, such as "
            "torchrun --nproc-per-node=2 -m panollava.train crop.overlap=0.0 experiment_name=overlap0."
        )
    for option, config in line.variants.items():
        if config.hydra.sweeper.get("params") != line.base.hydra.sweeper.get("params"):
            raise ValueError(f"{option} is a sweep itself and cannot be a job of another. Start it alone.")
    is_basic = line.base.hydra.sweeper._target_.endswith(".BasicSweeper")
    for override in line.swept:
        if not override.is_sweep_override():
            continue
        if override.key_or_group in ONE_A_SWEEP or override.key_or_group == "tracking":
            raise ValueError(
                f"{override.input_line}: a sweep has one {override.key_or_group}, and its jobs have folders of their "
                "own. Start the command once a value."
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


def _folder(
    line: CommandLine, config: DictConfig, varied: Sequence[str], of_options: Collection[str], scratch: Path
) -> Path:
    """The sweep's folder, in which no sweep of other constant values is."""
    params = list(line.base.hydra.sweeper.get("params") or {})
    overlays = [name for name in _overlays(line) if line.compose([f"+experiment={name}"]).hydra.sweeper.get("params")]
    own = [key.removeprefix("model/") for key in varied if not (overlays and key in params)]
    name = "_".join([*(overlays or ["sweep"]), *own]) if config.experiment_name is None else str(config.experiment_name)
    if config.dry_run is True:
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
    """The overrides that are the same for all jobs and would make them other runs."""
    from panollava.run_folder import is_free  # with torch, which no command needs before it knows its config

    found = [o for o in line.parsed if not (o.is_hydra_override() or o.key_or_group in varied)]
    if overlays:
        found = [o for o in found if o.key_or_group != "experiment"]
    return sorted(str(o.input_line).lstrip("+") for o in found if not is_free(o.key_or_group))


def _other_constants(
    line: CommandLine, config: DictConfig, of_options: Collection[str], folder: Path
) -> dict[str, tuple[Any, Any]]:
    """Keys of other values in the sweep that a folder holds: key -> (there, now); empty where it holds none."""
    from panollava.run_folder import differing_keys, flatten

    if not (folder / RECORD).is_file():
        return {}
    recorded = OmegaConf.load(folder / RECORD)
    old, new = (_plain(each) for each in (recorded, config))
    shared = flatten(old).keys() & flatten(new).keys()  # a key that is new since then has no value there to differ
    found: dict[str, tuple[Any, Any]] = {}
    for stage in config.stage.run:
        found |= {key: pair for key, pair in differing_keys(stage, new, old).items() if key in shared}
    before = {o.key_or_group: o for o in line.parse(OmegaConf.select(recorded, "hydra.overrides.task") or [])}
    now = {o.key_or_group: o for o in line.parsed}
    one_value = {key for key, o in before.items() if re.fullmatch(r"choice\([^,]*\)", o.get_value_string())}
    for key in one_value | set(of_options):
        there = [re.sub(r"^choice\((.*)\)$", r"\1", o.get_value_string()) for o in (before.get(key), now.get(key)) if o]
        if key not in before or key not in now or there[0] != there[1]:
            found[key] = (there[0] if key in before else None, there[-1] if key in now else None)
    return found


def _plain(config: Any) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(config)
    return {str(key): value for key, value in values.items() if key != "hydra"}


def register_resolvers() -> None:
    """Makes them known to OmegaConf; safe to call again."""
    OmegaConf.register_new_resolver("for_size", _for_size, replace=True)
    OmegaConf.register_new_resolver("slug", slug, replace=True)
    OmegaConf.register_new_resolver("options", _options, replace=True)


def _for_size(values: DictConfig, *, _root_: DictConfig) -> object:
    size = _root_.model.size
    if size not in values:
        raise ValueError(f"model.size={size!r} has no default here; known: {', '.join(map(str, values))}.")
    return values[size]


def _options(group: str) -> str:
    """The options of a config group, for help texts of commands that know few of the groups."""
    return ", ".join(sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml")))
