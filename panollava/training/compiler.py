"""What torch.compile needs of the machine, looked for before the first step, and what it says when it fails."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import nn

from panollava.logs import LOG

_USUAL = {"darwin": "clang++", "win32": "cl"}


def check_compiler(device: str) -> None:
    """Whether there is what ``trainer.compile=true`` makes code with.

    Args:
        device: type of the device that computes, such as ``cpu``.

    Raises:
        ValueError: there is no C++ compiler, or on a GPU no Triton.
    """
    compiler = os.environ.get("CXX") or _USUAL.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"trainer.compile=true needs a C++ compiler, and {compiler} is not found. Install one (g++, Xcode's "
            "command line tools, Visual Studio's build tools), name it in the environment variable CXX, or use "
            "trainer.compile=false."
        )
    if device == "cuda" and find_spec("triton") is None:
        raise ValueError(
            "trainer.compile=true needs Triton on a GPU: pip install triton, or use trainer.compile=false."
        )


def compiled(stage: nn.Module) -> nn.Module:
    """A stage whose forward pass torch.compile makes, without its page on each place where Python has to look."""
    if "TORCH_LOGS" not in os.environ:
        logging.getLogger("torch._dynamo.variables.tensor").setLevel(logging.ERROR)
    return torch.compile(stage)  # type: ignore[return-value]


@contextmanager
def compiling(signals: Sequence[int]) -> Iterator[None]:
    """Turns the failures of torch.compile inside into a message.

    Args:
        signals: received so far. A terminal sends Ctrl-C to the compiler as well, which ends at once, without a word.

    Raises:
        KeyboardInterrupt: a signal ended the compiler.
        ValueError: it failed; the message has its first words.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
            raise
        if signals:
            LOG.warning("The compiler was stopped before the step was whole; what was saved before it is kept.")
            raise KeyboardInterrupt from error
        raise ValueError(f"torch.compile failed: {_first_words(str(error))}. Use trainer.compile=false.") from error


def _first_words(text: str) -> str:
    """The first line of an error, and the first of those that follow in which a compiler tells one."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("backend=")]
    told = [line for line in lines[1:] if re.search(r"\berror:|\berror C\d", line)]
    return "; ".join(line[:300].rstrip(".") for line in [*lines[:1], *told[:1]])
