"""What the rest of the project expects of a tracker, and the tracker that keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np

Status = Literal["FINISHED", "FAILED", "KILLED"]
ModelForm = Literal["none", "checkpoint", "export"]
"""How a trained model is kept with its run: not at all, as its best checkpoint, or as a Hugging Face folder."""


@dataclass(frozen=True)
class Dataset:
    """A split that a run reads.

    Attributes:
        name: of the data set and the split.
        digest: the same for the same content, wherever it lies; 36 characters at most.
        source_type: ``local`` for files, ``code`` for what is made.
        source: JSON that says where it is from, as MLflow's source of that type has it.
        profile: JSON of its size.
        context: what it is for: ``training``, ``validation``, ``test``.
    """

    name: str
    digest: str
    source_type: str
    source: str
    profile: str
    context: str


@dataclass(frozen=True)
class ModelLoss:
    """How good a model is: its lowest validation loss, and what that was measured on, in words."""

    value: float
    measured_on: str


class Tracker(Protocol):
    """One run's record. As a context manager it starts the run and closes it with the status that fits."""

    @property
    def run_id(self) -> str | None:
        """Id under which the run can be resumed; None before `start` or when nothing is kept."""
        ...

    def start(self) -> None:
        """Open the run: a new one, or the one that is to be resumed."""
        ...

    def params(self, values: Mapping[str, object]) -> None:
        """Settings as flat `key -> value`; kept only when the run is new."""
        ...

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step, such as `vision/loss`; may be held back until `flush`."""
        ...

    def flush(self) -> None:
        """Write what `metrics` holds back; called before a checkpoint is saved and on closing."""
        ...

    def text(self, text: str, name: str) -> None:
        """Keep a text as the file `name`."""
        ...

    def mapping(self, values: Mapping[str, object], name: str) -> None:
        """Keep a nested mapping as the file `name`, YAML or JSON by its ending."""
        ...

    def file(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, under the run's `folder` if one is given."""
        ...

    def folder(self, path: Path, name: str | None = None) -> None:
        """Keep a copy of everything in a folder, under `name` if one is given."""
        ...

    def image(self, picture: np.ndarray | Path, name: str) -> None:
        """Keep a picture, (H, W, 3) uint8 RGB or a file, as the file `name`."""
        ...

    def table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Keep rows with equal keys as a table that the tracker can show; the same name is replaced."""
        ...

    def inputs(self, datasets: Sequence[Dataset]) -> None:
        """Note the data sets that the run reads."""
        ...

    @property
    def model_form(self) -> ModelForm:
        """What ``model`` is to be given."""
        ...

    def model(self, folder: Path, loss: ModelLoss) -> None:
        """Keep the trained model that lies in a folder, and register it where that is asked for."""
        ...

    def close(self, status: Status = "FINISHED") -> None:
        """Write what is held back and end the run; a closed run stays closed."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def closing_status(error_type: type[BaseException] | None) -> Status:
    """Status of a run that ends with this exception: interrupted runs are KILLED, other errors FAILED."""
    if error_type is None:
        return "FINISHED"
    return "KILLED" if issubclass(error_type, KeyboardInterrupt) else "FAILED"


class NullTracker:
    """Keeps nothing: for `tracking=none`, and for every process but the first of a distributed run."""

    run_id: str | None = None
    model_form: ModelForm = "none"

    def start(self) -> None:
        """Nothing to open."""

    def params(self, values: Mapping[str, object]) -> None:
        """Dropped."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Dropped."""

    def flush(self) -> None:
        """Nothing is held back."""

    def text(self, text: str, name: str) -> None:
        """Dropped."""

    def mapping(self, values: Mapping[str, object], name: str) -> None:
        """Dropped."""

    def file(self, path: Path, folder: str | None = None) -> None:
        """Dropped."""

    def folder(self, path: Path, name: str | None = None) -> None:
        """Dropped."""

    def image(self, picture: np.ndarray | Path, name: str) -> None:
        """Dropped."""

    def table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Dropped."""

    def inputs(self, datasets: Sequence[Dataset]) -> None:
        """Dropped."""

    def model(self, folder: Path, loss: ModelLoss) -> None:
        """Dropped."""

    def close(self, status: Status = "FINISHED") -> None:
        """Nothing to end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None
