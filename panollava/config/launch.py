"""Failures of a launcher itself, which are no job's: one clear message instead of the launcher's traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException

_BROKEN = (
    "A process of the launcher was ended from outside, and with it the jobs of the others. The system ends processes "
    "where memory runs out: lower hydra.launcher.n_jobs or the batch size."
)


def tell_failures(target: str) -> None:
    """Makes the failures of a launcher such as Hydra tells in a line.

    Args:
        target: the launcher's class, as ``hydra.launcher._target_`` has it.
    """
    launcher: Any = Plugins.instance().class_name_to_class.get(target)
    if launcher is not None and not hasattr(launcher.launch, "__wrapped__"):
        launcher.launch = _told(launcher.launch)


def _told(launch: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(launch)
    def told(*arguments: Any, **options: Any) -> Any:
        try:
            return launch(*arguments, **options)
        except BrokenProcessPool as error:
            raise CompactHydraException(f"\n{_BROKEN}") from error
        except RuntimeError as error:  # submitit's: no cluster is there, or a job left no result
            raise CompactHydraException(f"\n{type(error).__name__}: {error}") from error

    return told
