"""Records a run for TensorBoard, in ``<run folder>/tensorboard/<job>_<number>``."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from panollava.tracking.additional import RecordedRun
from panollava.tracking.operations import metric_name, new_rows
from panollava.tracking.tracker import Dataset, ModelLoss, Status, Tracker

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"
FLUSH_SECONDS = 10  # after which what was recorded is written, as in MLflow
PICTURES, TEXTS = (".png", ".jpg", ".jpeg"), (".md", ".txt")  # files that it shows


class TensorBoardTracker(Tracker):
    """One folder of event files; see ``Tracker``.

    TensorBoard has numbers, texts and pictures. Tables, parameters and tags are texts there; parameters are in its
    page of hyperparameters too. Other files and models are left out, which the log states.
    """

    def __init__(self, run: RecordedRun) -> None:
        self._run = run
        self._writer: Any = None
        self._is_new, self._has_left_out = True, False
        self._last_steps: dict[str, int] = {}

    def start(self) -> None:
        """Opens a new folder, or the last one of the run if it continues."""
        from torch.utils.tensorboard import SummaryWriter

        folder, self._is_new = _event_folder(self._run)
        self._last_steps = {} if self._is_new else last_steps(folder)
        self._writer = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)
        logger.info("TensorBoard: tensorboard --logdir %s", self._run.root.parent)

    def params(self, values: Mapping[str, object]) -> None:
        """Logs settings if the run is new."""
        if not self._is_new:
            return
        from torch.utils.tensorboard.summary import hparams

        self.table([{"key": key, "value": value} for key, value in values.items()], "params")
        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values.items()
        }
        for summary in hparams(plain, {}):
            self._writer.file_writer.add_summary(summary)

    def tags(self, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            self._writer.add_text(f"tags/{key}", value)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers of one step, but for steps that the run had before it was stopped."""
        rows = [(metric_name(key), float(value), 0, step) for key, value in values.items()]
        for key, value, _, _ in new_rows(rows, self._last_steps):
            self._writer.add_scalar(key, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def text(self, text: str, name: str) -> None:
        is_markdown = name.endswith(TEXTS)
        self._writer.add_text(name, text if is_markdown else re.sub("^", "    ", text, flags=re.MULTILINE))

    def file(self, path: Path, folder: str | None = None) -> None:
        name, suffix = "/".join(filter(None, (folder, path.name))), path.suffix.lower()
        if suffix in PICTURES:
            self.image(path, name)
        elif suffix in TEXTS:
            self.text(path.read_text(encoding="utf-8"), name)
        else:
            self._leave_out(path)

    def image(self, picture: np.ndarray | Path, name: str) -> None:
        self._writer.add_image(name, _read(picture) if isinstance(picture, Path) else picture, dataformats="HWC")

    def table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        columns = list(rows[0]) if rows else []
        cells: list[list[object]] = [[row[column] for column in columns] for row in rows]
        lines: list[list[Any]] = [columns, ["---"] * len(columns), *cells]
        self._writer.add_text(name, "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))

    def inputs(self, datasets: Sequence[Dataset]) -> None:
        rows: list[dict[str, object]] = [
            {"data": one.name, "context": one.context, "digest": one.digest, "source": one.source} for one in datasets
        ]
        self.table(rows, "datasets")

    def model(self, folder: Path, loss: ModelLoss) -> None:
        self._leave_out(folder)

    def close(self, status: Status = "FINISHED") -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.add_text("status", status)
            writer.close()

    def _leave_out(self, path: Path) -> None:
        if not self._has_left_out:
            logger.info("TensorBoard shows numbers, texts and pictures; other files, such as %s, are left out.", path)
        self._has_left_out = True


def last_steps(folder: Path) -> dict[str, int]:
    """The last step of each number in a folder of event files, of which the last may be incomplete."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}, purge_orphaned_data=False).Reload()
    return {name: max(one.step for one in events.Scalars(name)) for name in events.Tags()[SCALARS]}


def _event_folder(run: RecordedRun) -> tuple[Path, bool]:
    """The folder of the run, and whether it is new; two processes never share one."""
    parent = run.root / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(one.name.rpartition("_")[2]) for one in parent.glob(f"{run.job}_*") if one.name[-1:].isdigit()]
    if run.continues and numbers:
        return parent / f"{run.job}_{max(numbers)}", False
    for number in count(max(numbers, default=0) + 1):
        try:
            (folder := parent / f"{run.job}_{number}").mkdir()
        except FileExistsError:
            continue
        return folder, True
    raise AssertionError("the numbers do not end")


def _read(path: Path) -> np.ndarray:
    import cv2

    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{path} is no picture.")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(text.replace("|", "\\|").split())
