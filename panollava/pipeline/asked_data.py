"""The test set that a command line asks for, out of the one that a run recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Asked(Protocol):
    """The keys that commands which evaluate have in common."""

    @property
    def split(self) -> str: ...

    @property
    def csv_input(self) -> str | None: ...

    @property
    def world_seed(self) -> int | None: ...

    @property
    def world_scenes(self) -> int | None: ...


def asked_name(options: Asked, data: Mapping[str, Any]) -> str:
    """What was asked, as reports call it: the file that was named, else the data set and its split."""
    return Path(options.csv_input).name if options.csv_input is not None else f"{data['name']}-{options.split}"


def asked_data(options: Asked, recorded: Mapping[str, Any], *, turn_deg: float | None = None) -> dict[str, Any]:
    """The run's own ``data`` section with what the command line changes.

    Args:
        options: of the command.
        recorded: the run's section.
        turn_deg: how far every panorama of the built-in world is turned.

    Raises:
        ValueError: keys of the built-in world are given and the data are others.
    """
    data = dict(recorded)
    world = {f"{options.split}_scenes": options.world_scenes, "seed": options.world_seed, "turn_deg": turn_deg}
    changes = {key: value for key, value in world.items() if value is not None}
    if options.csv_input is not None:
        read_as = (
            "dir",
            "image_dir",
            "query_template",
            "on_error",
            "image_column",
            "query_column",
            "annotation_column",
        )
        template = {key: value for key, value in data.items() if key in read_as or key.startswith("remote")}
        data = {"type": "files", "name": "csv", f"{options.split}_csv": options.csv_input, **template}
    if changes and data["type"] != "world":
        raise ValueError(f"{', '.join(changes)}: only the built-in world has these, and the data are {data['type']}.")
    return {**data, **changes}
