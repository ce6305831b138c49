"""Records a run in Weights & Biases; its files are in ``<run folder>/wandb``."""

import json
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from panollava.disk import link, write_file
from panollava.tracking.additional import RecordedRun
from panollava.tracking.operations import metric_name, new_rows
from panollava.tracking.tracker import Dataset, ModelLoss, Status, Tracker

logger = logging.getLogger(__name__)

FOLDER, RECORD = "wandb", "panollava.json"  # the record of a training: id of its run, and the last step of each metric
FILES = "panollava"  # folder of our files among a run's, where W&B has a config.yaml of its own
STEP = "step"
FLUSH_ROWS, FLUSH_SECONDS = 200, 10.0  # as in MLflow
# W&B's own process ends with ours when that is killed, and has written what is older than this (15 s by default).
WRITTEN, WRITE_SECONDS = "x_transaction_log_flush_interval", 1.0
PROBE_SECONDS, INIT_SECONDS = 5.0, 30.0
EXIT_CODES: dict[Status, int] = {"FINISHED": 0, "FAILED": 1, "KILLED": 255}


class WandbTracker(Tracker):
    """One run of Weights & Biases; see ``Tracker``.

    Without a key (``wandb login``), a server that answers or the network, the run is recorded offline, and the log
    says how to send it. Numbers are held back until ``flush`` or for some seconds: what a killed process had handed
    on and what it had recorded of that are then the same, so that a resumed run repeats no step.
    """

    def __init__(self, run: RecordedRun, *, project: str, wait_seconds: float, system_metrics: bool) -> None:
        self._recorded, self._project = run, project
        self._wait_seconds, self._system_metrics = wait_seconds, system_metrics
        self._run: Any = None
        self._is_new = True
        self._last_steps: dict[str, int] = {}  # of earlier processes
        self._steps: dict[str, int] = {}  # of this one as well
        self._rows: list[dict[str, float]] = []
        self._flushed_at = 0.0

    def start(self) -> None:
        """Opens a new run, or the last one of the run's folder if it continues."""
        self._recorded.root.mkdir(parents=True, exist_ok=True)
        known = self._read_record()
        self._run = self._open(known.get("id"))
        self._is_new = self._run.id != known.get("id")
        self._last_steps = {} if self._is_new else known["steps"]
        self._steps = dict(self._last_steps)
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)  # W&B's own steps only grow, and stages begin at 0 again
        self._flushed_at = time.monotonic()
        self._write_record()
        if self._run.settings.mode == "offline":
            logger.info("Weights & Biases records offline; send it with: wandb sync %s", self._folder)
        elif self._run.url:
            logger.info("Weights & Biases: %s", self._run.url)

    def params(self, values: Mapping[str, object]) -> None:
        """Logs settings if the run is new."""
        if self._is_new:
            self._run.config.update({key: _plain(value) for key, value in values.items()}, allow_val_change=True)

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags as settings `tag.…`, since W&B's own tags have no values."""
        self._run.config.update({f"tag.{key}": value for key, value in values.items()}, allow_val_change=True)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        rows = [(metric_name(key), float(value), 0, step) for key, value in values.items()]
        if new := new_rows(rows, self._last_steps):
            self._rows.append({**{key: value for key, value, _, _ in new}, STEP: step})
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        rows, self._rows, self._flushed_at = self._rows, [], time.monotonic()
        for row in rows:
            self._run.log(row)
            for key in row.keys() - {STEP}:
                self._steps[key] = max(int(row[STEP]), self._steps.get(key, 0))
        if rows:
            self._write_record()

    def text(self, text: str, name: str) -> None:
        target = self._target(name)
        target.write_text(text, encoding="utf-8", errors="backslashreplace")
        self._save(target)

    def file(self, path: Path, folder: str | None = None) -> None:
        target = self._target("/".join(filter(None, (folder, path.name))))
        link(path, target)
        self._save(target)

    def image(self, picture: np.ndarray | Path, name: str) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(picture) if isinstance(picture, Path) else picture)})

    def table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        import wandb

        columns: list[str | int] = [*rows[0]] if rows else []
        data = [[_plain(row[str(column)]) for column in columns] for row in rows]
        self._run.log({name: wandb.Table(columns=columns, data=data, allow_mixed_types=True)})

    def inputs(self, datasets: Sequence[Dataset]) -> None:
        values = {f"data.{one.context}.{one.name}": asdict(one) for one in datasets}
        self._run.config.update(values, allow_val_change=True)

    def model(self, folder: Path, loss: ModelLoss) -> None:
        """Keeps the model among the files; the registry is MLflow's alone."""
        self.folder(folder, "model")
        self._run.summary.update({"model/loss": loss.value, "model/measured_on": loss.measured_on})

    def close(self, status: Status = "FINISHED") -> None:
        if self._run is None:
            return
        try:
            self.flush()
        finally:
            run, self._run = self._run, None
            try:
                run.finish(exit_code=EXIT_CODES[status])
            except TimeoutError:
                logger.warning(
                    "Weights & Biases did not take everything in %g s; send the rest with: wandb sync %s",
                    self._wait_seconds, self._folder,
                )  # fmt: skip

    def _open(self, run_id: str | None) -> Any:
        import wandb

        entity, _, project = self._project.rpartition("/")
        settings: dict[str, Any] = {
            "root_dir": str(self._recorded.root.resolve()),  # its process has a working directory of its own
            "project": project,
            "run_id": run_id or uuid.uuid4().hex,
            "run_name": self._recorded.name,
            "run_group": self._recorded.group,
            "run_job_type": self._recorded.job,
            "resume": "allow",
            "reinit": "create_new",  # jobs of a sweep may share a process
            "console": "off",  # the log is ours
            "silent": True,
            "save_code": False,
            "disable_code": True,
            "disable_git": True,
            "disable_job_creation": True,
            "x_disable_stats": not self._system_metrics,
            "init_timeout": INIT_SECONDS,
            "finish_timeout": max(self._wait_seconds, 1.0),  # 0 would wait for ever
            "finish_timeout_raises": True,
            **({"entity": entity} if entity else {}),
        }
        if WRITTEN in wandb.Settings.model_fields:
            settings[WRITTEN] = WRITE_SECONDS
        account = wandb.setup().settings
        if account.mode in ("offline", "disabled"):
            return wandb.init(settings=wandb.Settings(**settings, mode=account.mode))
        if not wandb.login(prompt=False, verify=False):
            logger.warning("Weights & Biases has no key here (wandb login), so the run is recorded offline.")
            return wandb.init(settings=wandb.Settings(**settings, mode="offline"))
        try:
            _check_answers(account.base_url)
            return wandb.init(settings=wandb.Settings(**settings))
        except (wandb.Error, ConnectionError) as error:
            reason = " ".join(str(error).split())[:300]
            logger.warning("Weights & Biases cannot be reached (%s), so the run is recorded offline.", reason)
            if not isinstance(error, ConnectionError):  # the id is in use from the attempt on, until this process ends
                settings["run_id"] = uuid.uuid4().hex
            return wandb.init(settings=wandb.Settings(**settings, mode="offline"))

    @property
    def _folder(self) -> Path:
        return self._recorded.root / FOLDER

    def _target(self, name: str) -> Path:
        """Where a file goes; nothing is there, since writing into a link would change what it links to."""
        target = Path(self._run.dir) / FILES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        return target

    def _save(self, target: Path) -> None:
        self._run.save(str(target), base_path=self._run.dir, policy="now", glob=False)

    def _read_record(self) -> dict[str, Any]:
        """The recorded training that continues, empty for a new run."""
        path = self._folder / RECORD
        if not self._recorded.continues or self._recorded.job != "train" or not path.is_file():
            return {}
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if record["project"] == self._project else {}

    def _write_record(self) -> None:
        if self._recorded.job == "train":
            record = {"id": self._run.id, "project": self._project, "steps": self._steps}
            write_file(self._folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False), sync=False)


def _check_answers(url: str) -> None:
    """Raises a ConnectionError if a server does not answer within a few seconds; W&B itself waits longer."""
    import requests

    try:
        requests.get(url, timeout=PROBE_SECONDS, stream=True).close()
    except (requests.exceptions.SSLError, requests.exceptions.ProxyError):
        return  # W&B has settings of its own for these
    except requests.RequestException as error:
        raise ConnectionError(f"{url} does not answer") from error


def _plain(value: object) -> object:
    """A value as JSON has it."""
    return value if value is None or isinstance(value, bool | int | float | str | list | tuple) else str(value)
