"""Wraps a function as a Hydra application whose failures are one clear message."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from panollava.config.canonical import canonical
from panollava.config.hint import misspelt_key
from panollava.config.locate import CONF

_log = logging.getLogger("panollava")

SWEPT = "train"
"""The application that ``-m`` is for: its jobs have folders of their own."""


class Stopped(CompactHydraException):
    """A failure the user can mend: Hydra prints the message alone, and the traceback on HYDRA_FULL_ERROR=1."""


def entrypoint(
    config_name: str, *, bare: str | None = None, loose: Sequence[str] = ()
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorates ``function(cfg)`` as the application of ``conf/<config_name>.yaml``.

    Args:
        config_name: root config in ``conf/``.
        bare: key of arguments that have none (see ``canonical``).
        loose: sections whose keys are checked by the application alone.
    """

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def run() -> None:
            if config_name != SWEPT and {"-m", "--multirun"} & set(sys.argv[1:]):
                sys.exit(f"\nValueError: -m: only panollava.{SWEPT} sweeps. Start this command once a value.")
            sys.argv[1:] = with_sweep_folder(canonical(sys.argv[1:], bare=bare, loose=loose))
            register_resolvers()
            if (message := misspelt_key(config_name, sys.argv[1:])) is not None:
                sys.exit(f"\nValueError: {message}")
            hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(_guarded(function))()

        return run

    return decorate


def _guarded(function: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    @functools.wraps(function)
    def guarded(cfg: DictConfig) -> None:
        try:
            function(cfg)
        except (ValueError, OSError) as error:
            message = f"\n{type(error).__name__}: {error}"
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise Stopped(message) from error  # Hydra goes on with the next job and fails at the end
            sys.stderr.write(f"{message}\n(HYDRA_FULL_ERROR=1 shows where it came from.)\n")
            sys.exit(1)
        except KeyboardInterrupt:
            _log.warning("Interrupted.")
            sys.exit(130)

    return guarded


def register_resolvers() -> None:
    """Makes ``${for_size:{tiny: …}}``, ``${slug:…}`` and ``${options:…}`` known to OmegaConf; safe to call again."""
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


def with_sweep_folder(arguments: list[str]) -> list[str]:
    """Gives a sweep a folder named ``experiment_name``, or after what it sweeps, so that running it again finds it.

    Only swept keys go into the names of its jobs; the constant ones would only make them long.
    """
    is_sweep = any(a in ("-m", "--multirun") for a in arguments)
    if not is_sweep or any(a.startswith("hydra.sweep.dir=") for a in arguments):
        return arguments
    swept: list[str] = []
    constant: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and not key.startswith("hydra"):
            key = key.lstrip("+~")
            is_swept = _sweeps(value)
            (swept if is_swept else constant).append(key)
    named = [a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("experiment_name=")]
    name = slug(named[-1] if named else "sweep_" + "_".join(key.removeprefix("model/") for key in swept), 80)
    extra = [f"hydra.sweep.dir='${{output_dir}}/{name}'"]
    if constant:
        extra.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(repr(k) for k in constant)}]")
    return [*arguments, *extra]


def _sweeps(value: str) -> bool:
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
