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
from hydra.errors import HydraException
from omegaconf import DictConfig

from panollava.config.command_line import (
    CONF,
    VERSION_BASE,
    CommandLine,
    canonical,
    check_groups,
    check_keys,
    split,
    words,
)
from panollava.config.job import INTERRUPTED, MENDABLE, Load, in_sweep, run_job
from panollava.config.outside import add_options
from panollava.config.sweep import Report, SweepParent
from panollava.config.sweep_arguments import as_sweep, check_launcher, register_resolvers
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
            register_resolvers()
            with tempfile.TemporaryDirectory(prefix="panollava-dry-run-") as scratch:
                sys.argv[1:] = _understood(config_name, sys.argv[1:], Path(scratch), bare, loose)
                try:
                    hydra.main(version_base=VERSION_BASE, config_path=CONF, config_name=config_name)(
                        _guarded(function, load)
                    )()
                except KeyboardInterrupt:  # between jobs, or while a launcher waits for them
                    _end_sweep(report, is_whole=False)
                    sys.exit(INTERRUPTED)
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
    """The command line for Hydra; one that cannot be meant ends here, with a message, before anything is made."""
    try:
        for key, _, value in (argument.partition("=") for argument in typed):
            if re.search("track|mlflow|uri", key):  # a misspelt key is shown with its value further on
                refuse_secret(key.lstrip("+"), value.strip("'\""))
        flags, overrides = split(canonical(typed, bare=bare, loose=loose))
        if flags.help or flags.hydra_help or flags.shell_completion or flags.info:
            return [*words(flags), *overrides]
        add_options(overrides, trusted=config_name == SWEPT)
        try:
            line = CommandLine(config_name, flags, overrides)
            check_launcher(line.parsed)
            check_groups(line)
            is_sweep = line.is_sweep
            if is_sweep and not flags.multirun and not flags.cfg:  # an overlay's: its texts may be swept too
                return _understood(config_name, ["--multirun", *typed], scratch, bare, loose)
        except HydraException:  # an override of no grammar, an option that there is not: Hydra tells it at its start
            return [*words(flags), *overrides]
        _check_place(line)
        if is_sweep and config_name != SWEPT:
            raise ValueError(f"-m: only panollava.{SWEPT} sweeps. Start this command once a value.")
        try:
            of_options = check_keys(line)
            return [*words(flags), *(as_sweep(line, of_options, scratch) if is_sweep and not flags.cfg else overrides)]
        except HydraException as error:
            raise ValueError("\n".join(filter(None, (str(error), str(error.__cause__ or ""))))) from error
    except ValueError as error:
        sys.exit(f"\nValueError: {error}")


def _check_place(line: CommandLine) -> None:
    """Whether the command stays in the folder where it was started, from which all of its paths are taken.

    Raises:
        ValueError: it would not.
    """
    if line.base.hydra.job.chdir:
        raise ValueError(
            "hydra.job.chdir=true: paths, such as data.dir and tracking.uri, are taken from the folder in which a "
            "command is started. Leave it out; output_dir= says where runs go."
        )
    if line.base.hydra.run.dir != ".":
        raise ValueError(
            f"hydra.run.dir={line.base.hydra.run.dir}: output_dir= and experiment_name= say where a run goes, and "
            "hydra.sweep.dir= where a sweep goes. Leave it out."
        )


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
            sys.exit(INTERRUPTED)

    return guarded


def _end_sweep(report: Report | None, *, is_whole: bool) -> bool:
    """Whether there is no sweep, or all of it is finished."""
    sweep, SweepParent.current = SweepParent.current, None
    return sweep is None or sweep.end(report, is_whole=is_whole)
