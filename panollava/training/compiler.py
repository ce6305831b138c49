"""What torch.compile needs of the machine, looked for before the first step."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec

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
