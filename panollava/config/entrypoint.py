"""Makes a function a command: a Hydra application whose failures are one clear message."""

import functools
import gc
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

from panollava.config import command_line
from panollava.config.help import show_help
from panollava.config.job import INTERRUPTED, MENDABLE, Function, Load, in_sweep, run_job
from panollava.config.outside import add_options
from panollava.config.sweep import Announce, Report, SweepParent
from panollava.config.sweep_arguments import as_sweep, check_plugins, register_resolvers
from panollava.logs import configure_console
from panollava.tracking.location import refuse_secret

_log = logging.getLogger("panollava")

SWEPT = "train"
"""The application that sweeps (``-m``): its jobs have folders of their own."""
GARBAGE = 100_000, 20, 50
"""Thresholds of the garbage collector: importing the libraries makes many objects that stay, and collections over them
take 1.5 s with Python's own (700, 10, 10)."""


def entrypoint(
    config_name: str,
    *,
    positional: Sequence[str] = (),
    loose: Sequence[str] = (),
    announce: Announce | None = None,
    report: Report | None = None,
    load: Load | None = None,
) -> Callable[[Function], Callable[[], None]]:
    """Decorates ``function(cfg)`` as the application of ``conf/<config_name>.yaml``; a sweeper may use what it returns.

    Args:
        config_name: root config in ``conf/``.
        positional: keys of arguments that have none, in their order (see ``command_line.canonical``).
        loose: sections whose keys only the application checks.
        announce: what to say of a sweep before its first job.
        report: makes the report of a sweep after its last job.
        load: imports what every job of a sweep needs.
    """

    def decorate(function: Function) -> Callable[[], None]:
        @functools.wraps(function)
        def run() -> None:
            gc.set_threshold(*GARBAGE)
            register_resolvers()
            with tempfile.TemporaryDirectory(prefix="panollava-dry-run-") as scratch:
                sys.argv[1:] = _hydra_arguments(config_name, sys.argv[1:], Path(scratch), positional, loose)
                application = hydra.main(
                    version_base=command_line.VERSION_BASE, config_path=command_line.CONF, config_name=config_name
                )
                is_whole = False
                SweepParent.announce = announce
                try:
                    application(_guarded(function, load))()
                    is_whole = True
                except KeyboardInterrupt:  # between jobs, or while a launcher waits for them
                    sys.exit(INTERRUPTED)
                finally:
                    sweep, SweepParent.current = SweepParent.current, None
                    is_done = sweep is None or sweep.end(report, is_whole=is_whole)
                if not is_done:
                    sys.exit(1)

        return run

    return decorate


def _hydra_arguments(
    config_name: str, typed: Sequence[str], scratch: Path, positional: Sequence[str], loose: Sequence[str]
) -> list[str]:
    """The command line for Hydra. A wrong one ends the process with a message, before anything is made."""
    try:
        for key, _, value in (argument.partition("=") for argument in typed):
            if re.search("track|mlflow|uri", key):  # a misspelt key is shown with its value further on
                refuse_secret(key.lstrip("+"), value.strip("'\""))
        flags, overrides = command_line.split(
            command_line.canonical(typed, positional=positional, loose=loose, command=config_name)
        )
        if flags.hydra_help or flags.shell_completion or flags.info:
            return [*command_line.words(flags), *overrides]
        add_options(overrides, trusted=config_name == SWEPT)
        try:
            line = command_line.CommandLine(config_name, flags, overrides)
            check_plugins(line.parsed)
            command_line.check_groups(line)
            if flags.help:
                command_line.check_keys(line)
                show_help(line)
                sys.exit()
            is_sweep = line.is_sweep
            if is_sweep and not flags.multirun and not flags.cfg:  # of an overlay: texts may be swept too
                return _hydra_arguments(config_name, ["--multirun", *typed], scratch, positional, loose)
        except HydraException as error:  # wrong grammar or an unknown option: Hydra reports it when it starts
            if said := command_line.without_group(str(error), overrides, config_name):
                raise ValueError(said) from error
            return [*command_line.words(flags), *overrides]
        _check_folder(line)
        if is_sweep and config_name != SWEPT:
            raise ValueError(f"-m: only panollava.{SWEPT} sweeps. Start this command once per value.")
        try:
            of_options = command_line.check_keys(line)
            return [
                *command_line.words(flags),
                *(as_sweep(line, of_options, scratch) if is_sweep and not flags.cfg else overrides),
            ]
        except HydraException as error:
            raise ValueError("\n".join(filter(None, (str(error), str(error.__cause__ or ""))))) from error
    except ValueError as error:
        sys.exit(f"\nValueError: {error}")


def _check_folder(line: command_line.CommandLine) -> None:
    """Raises ValueError if the command would leave the folder where it is started; all paths are relative to it."""
    if line.base.hydra.job.chdir:
        raise ValueError(
            "hydra.job.chdir=true: paths, such as data.dir and tracking.uri, are relative to the folder in which "
            "the command is started. Leave it out; output_dir= says where runs go."
        )
    if line.base.hydra.run.dir != ".":
        raise ValueError(
            f"hydra.run.dir={line.base.hydra.run.dir}: output_dir= and experiment_name= say where a run goes, and "
            "hydra.sweep.dir= where a sweep goes. Leave it out."
        )


def _guarded(function: Function, load: Load | None) -> Function:
    @functools.wraps(function)
    def guarded(cfg: DictConfig) -> float | None:
        configure_console()  # not earlier: Hydra's configuration of logging closes handlers
        try:
            return run_job(function, cfg, load) if in_sweep() else function(cfg)
        except MENDABLE as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            sys.stderr.write(f"\n{type(error).__name__}: {error}\n(HYDRA_FULL_ERROR=1 shows where it came from.)\n")
            sys.exit(1)
        except KeyboardInterrupt:
            _log.warning("Interrupted.")
            sys.exit(INTERRUPTED)

    return guarded
