"""What a command line means as a sweep: whether it is one, what it varies, and the folder it has for itself."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from omegaconf import OmegaConf

from panollava.config.locate import CONF

FLAGS = frozenset({"-m", "--multirun"})

LAUNCHERS = {
    "joblib": ("hydra_joblib_launcher", "joblib"),
    "parallel": ("hydra_joblib_launcher", "joblib"),
    "slurm": ("hydra_submitit_launcher", "slurm"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
}
"""Option of ``hydra/launcher`` -> the plugin it is in, and the extra that brings it."""


def as_sweep(arguments: list[str], scratch: Path) -> list[str]:
    """The arguments as Hydra should see them: those of a sweep with a folder for it, others unchanged.

    A sweep is what has ``-m`` or an overlay that varies something by itself. Its folder is named by
    ``experiment_name``, or after the overlay and what is varied, so that starting it again finds it. Only varied
    keys go into the names of its jobs; the constant ones would only make them long.

    Args:
        arguments: canonical command line.
        scratch: where a dry run may have its folder, which goes with it.

    Raises:
        ValueError: it cannot run here, with the way out.
    """
    overlays = {name: keys for name in _overlays(arguments) if (keys := _swept_by(name)) is not None}
    if not overlays and not FLAGS & set(arguments):
        return arguments
    _refuse(arguments, list(overlays))
    is_dry = any(a.lower() == "dry_run=true" for a in arguments)
    if not is_dry and any(a.startswith("hydra.sweep.dir=") for a in arguments):
        return arguments
    varied = [key for keys in overlays.values() for key in keys]
    constant: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key.startswith("hydra"):
            continue
        key = key.lstrip("+~")
        if not _varies(value):
            constant.append(key)
        elif key not in varied:
            varied.append(key)
    of_overlays = [key for keys in overlays.values() for key in keys]
    own = [key.removeprefix("model/") for key in varied if key not in of_overlays]
    named = [a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("experiment_name=")]
    name = slug(named[-1] if named else "_".join([*(overlays or ["sweep"]), *own]), 80)
    extra = [f"hydra.sweep.dir='{scratch / name if is_dry else '${output_dir}/' + name}'"]
    if constant := [key for key in constant if key not in varied]:
        extra.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(repr(k) for k in constant)}]")
    return [*arguments, *extra]


def slug(text: str, limit: int = 96) -> str:
    """A folder name from ``key=value,…`` that no shell needs quoted.

    Args:
        text: Hydra's override string.
        limit: longest result; longer ones are cut and end in a short hash, as do those that lost characters.
    """
    short = re.sub(r"\bmodel[/.]", "", text).replace("=", "-").replace(",", "_")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", short).strip("-.") or "default"
    if plain == short and len(plain) <= limit:
        return plain
    return f"{plain[: limit - 9].rstrip('-.')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _refuse(arguments: Sequence[str], overlays: Sequence[str]) -> None:
    """Says what keeps a sweep from running here."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(
            "a sweep (-m) under torchrun would run whole in every process. Either start it without torchrun, where "
            "hydra/launcher=parallel runs several jobs at once, each on a GPU of its own, and hydra/launcher=slurm "
            "hydra.launcher.tasks_per_node=2 gives every job two processes; or start torchrun once a value, such as "
            "torchrun --nproc-per-node=2 -m panollava.train crop.overlap=0.0 experiment_name=overlap0."
        )
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key.lstrip("+") == "experiment" and _varies(value) and overlays:
            raise ValueError(
                f"{argument}: {overlays[0]} is a sweep itself and cannot be a job of another. Start it alone."
            )
        if key == "hydra/launcher" and value in LAUNCHERS:
            plugin, extra = LAUNCHERS[value]
            if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{plugin}") is None:
                raise ValueError(
                    f"{argument} needs a package that is not installed: pip install '.[{extra}]' in the repository, or "
                    f"pip install {plugin.replace('_', '-')}."
                )


def _overlays(arguments: Sequence[str]) -> list[str]:
    """Options of the ``experiment`` group on a command line."""
    values = [a.partition("=")[2] for a in arguments if a.partition("=")[0].lstrip("+") == "experiment"]
    return [name for value in values for name in re.findall(r"[\w-]+", value)]


def _swept_by(overlay: str) -> list[str] | None:
    """Keys that an overlay varies by itself, None where it is no sweep or none of ours."""
    path = Path(CONF) / "experiment" / f"{overlay}.yaml"
    if not path.is_file():
        return None
    content = OmegaConf.load(path)
    if OmegaConf.select(content, "hydra.mode") != "MULTIRUN":
        return None
    return [str(key) for key in OmegaConf.select(content, "hydra.sweeper.params") or {}]


def _varies(value: str) -> bool:
    """Whether Hydra's basic sweeper takes ``value`` apart: a comma outside brackets and quotes, or a sweep function."""
    if re.match(r"(choice|range|interval|glob)\(", value):
        return True
    depth, quote = 0, ""
    for char in value:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            return True
    return False
