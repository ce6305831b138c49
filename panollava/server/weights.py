"""The weight files of an export, which a model on the CPU has mapped into memory for as long as it serves."""

from __future__ import annotations

import os
from pathlib import Path


class MappedWeights:
    """Notices that weight files were overwritten in place, which changes the weights of the model that is open.

    A file that was deleted, or replaced by another under its name, leaves the mapped one as it was.

    Args:
        folder: of the export, before it is opened; None where no file is mapped.
    """

    def __init__(self, folder: Path | None) -> None:
        files = [] if folder is None else sorted(folder.glob("*.safetensors"))
        self._states = {file: found for file in files if (found := _state(file)) is not None}

    def check(self) -> None:
        """Raises RuntimeError if a file was overwritten."""
        for file, before in self._states.items():
            now = _state(file)
            if now is not None and now[0] == before[0] and now != before:
                raise RuntimeError(
                    f"{file} was overwritten while it is served, and the model's weights with it. Restart the server; "
                    "export into another folder while a model serves."
                )


def _state(file: Path) -> tuple[tuple[int, int], int, int] | None:
    """Device and inode, size, and time of the content in ns; None where there is no such file."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return (found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns
