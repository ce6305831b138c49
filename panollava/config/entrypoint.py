"""Wraps a function as a Hydra application whose failures are one clear message."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from panollava.config.canonical import canonical
from panollava.config.hint import misspelt_key
from panollava.config.job import MENDABLE, Load, in_sweep, run_job
from panollava.config.locate import CONF
from panollava.config.resolvers import register_resolvers
from panollava.config.sweep import Report, SweepParent
from panollava.config.sweep_arguments import FLAGS, as_sweep
from panollava.tracking.location import refuse_secret

_log = logging.getLogger("panollava")

SWEPT = "train"
"""The application that ``-m`` is for: its jobs have folders of their own."""


def entrypoint(
    config_name: str,
    *,
    bare: str | None = None,
    loose: Sequence[str] = (),
    report: Report | None = None,
    load: Load | None = None,
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorates ``function(cfg)`` as the application of ``conf/<config_name>.yaml``.

    Args:
        config_name: root config in ``conf/``.
        bare: key of arguments that have none (see ``canonical``).
        loose: sections whose keys are checked by the application alone.
        report: makes the report of a sweep when its last job is over.
        load: imports what every job of a sweep needs.
    """

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def run() -> None:
            if config_name != SWEPT and FLAGS & set(sys.argv[1:]):
                sys.exit(f"\nValueError: -m: only panollava.{SWEPT} sweeps. Start this command once a value.")
            register_resolvers()
            with tempfile.TemporaryDirectory(prefix="panollava-dry-run-") as scratch:
                sys.argv[1:] = _understood(config_name, sys.argv[1:], Path(scratch), bare, loose)
                try:
                    hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(
                        _guarded(function, load)
                    )()
                except BaseException:
                    _end_sweep(report, is_whole=False)
                    raise
                if not _end_sweep(report, is_whole=True):
                    sys.exit(1)

        return run

    return decorate


def _understood(
    config_name: str, typed: Sequence[str], scratch: Path, bare: str | None, loose: Sequence[str]
) -> list[str]:
    """The command line for Hydra; one that cannot be meant ends here, with a message."""
    try:
        for key, _, value in (argument.partition("=") for argument in typed):
            if re.search("track|mlflow|uri", key):  # a misspelt key is shown with its value further on
                refuse_secret(key.lstrip("+"), value.strip("'\""))
        arguments = canonical(typed, bare=bare, loose=loose)
        arguments = as_sweep(arguments, scratch) if config_name == SWEPT else arguments
    except ValueError as error:
        sys.exit(f"\nValueError: {error}")
    if (message := misspelt_key(config_name, arguments)) is not None:
        sys.exit(f"\nValueError: {message}")
    return arguments


def _guarded(function: Callable[[DictConfig], None], load: Load | None) -> Callable[[DictConfig], None]:
    @functools.wraps(function)
    def guarded(cfg: DictConfig) -> None:
        try:
            if in_sweep():
                run_job(function, cfg, load)
            else:
                function(cfg)
        except MENDABLE as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            sys.stderr.write(f"\n{type(error).__name__}: {error}\n(HYDRA_FULL_ERROR=1 shows where it came from.)\n")
            sys.exit(1)
        except KeyboardInterrupt:
            _log.warning("Interrupted.")
            sys.exit(130)

    return guarded


def _end_sweep(report: Report | None, *, is_whole: bool) -> bool:
    """Whether there is no sweep, or all of it is finished."""
    sweep, SweepParent.current = SweepParent.current, None
    return sweep is None or sweep.end(report, is_whole=is_whole)
