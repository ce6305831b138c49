"""The interface of a tracker, which records a run; its methods keep nothing unless a subclass does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    import numpy as np

Status = Literal["FINISHED", "FAILED", "KILLED"]
ModelForm = Literal["none", "checkpoint", "export"]  # how a trained model is kept; export: as a Hugging Face folder


@dataclass(frozen=True)
class Dataset:
    """A split that a run reads, as MLflow records it."""

    name: str  # of the data set and the split
    digest: str  # of the content, wherever the files are; 36 characters at most
    source_type: str  # local for files, code for generated data
    source: str  # JSON of the origin, in MLflow's form for that type
    profile: str  # JSON of the size
    context: str  # training, validation or test


@dataclass(frozen=True)
class ModelLoss:
    """The lowest validation loss of a model, and the data that it was measured on, as text."""

    value: float
    measured_on: str


class Tracker:
    """Records one run. As a context manager it starts the run and closes it with the status that fits."""

    run_id: str | None = None  # with which the run can be resumed; None before `start` and where nothing is kept
    model_form: ModelForm = "none"  # that ``model`` takes

    def start(self) -> None:
        """Opens the run: a new one, or the one to resume."""

    def params(self, values: Mapping[str, object]) -> None:
        """Logs settings as flat `key -> value`, if the run is new."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags of the run, by which runs are listed and filtered; unlike parameters, they may change."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers of one step, such as `vision/loss`; they may be buffered until `flush`."""

    def flush(self) -> None:
        """Writes buffered metrics; called before a checkpoint is saved and on closing."""

    def text(self, text: str, name: str) -> None:
        """Keeps a text as the file `name`."""

    def file(self, path: Path, folder: str | None = None) -> None:
        """Keeps a copy of a file, in `folder` of the run's artifacts."""

    def folder(self, path: Path, name: str | None = None) -> None:
        """Keeps a copy of everything in a folder, in `name` of the run's artifacts; each by ``file``."""
        for file in sorted(one for one in path.rglob("*") if one.is_file()):
            below = [name, *file.parent.relative_to(path).parts]
            self.file(file, "/".join(filter(None, below)) or None)

    def image(self, picture: np.ndarray | Path, name: str) -> None:
        """Keeps an image, (H, W, 3) uint8 RGB or a file, as the file `name`."""

    def table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Keeps rows of equal keys as a table that the tracker displays; one of the same name is replaced."""

    def inputs(self, datasets: Sequence[Dataset]) -> None:
        """Records the data sets that the run reads."""

    def model(self, folder: Path, loss: ModelLoss) -> None:
        """Keeps the trained model in a folder, and registers it where the options say so; a run's last record."""

    def close(self, status: Status = "FINISHED") -> None:
        """Writes buffered metrics and ends the run; a closed run stays closed."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        return None


class NullTracker(Tracker):
    """Keeps nothing: for `tracking=none`, and for every process but the first of a distributed run."""


def closing_status(error_type: type[BaseException] | None) -> Status:
    """Status of a run that ends with this exception: interrupted runs are KILLED, other errors FAILED."""
    if error_type is None:
        return "FINISHED"
    return "KILLED" if issubclass(error_type, KeyboardInterrupt | SystemExit) else "FAILED"
