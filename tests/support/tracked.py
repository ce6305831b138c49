"""What each tracker has recorded of a run, read back from its own files in one form."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

WAIT_S = 30  # W&B's own process writes the end of a run that failed or was killed after that of ours
BLOCK, HEADER = 32768, 7  # of W&B's file, a log in LevelDB's form


@dataclass
class Seen:
    """A run as its tracker shows it."""

    id: str = ""
    name: str = ""
    group: str = ""
    job: str = ""
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    status: str = ""
    start: float = 0.0
    data: str = ""
    record: str = ""  # all that is in the log as text


def events(folder: Path) -> Seen:
    """A folder of TensorBoard's event files, read with TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    seen = Seen(id=folder.name)
    for name in found.Tags()["scalars"]:
        seen.metrics[name] = [(one.step, one.value) for one in found.Scalars(name)]
    for name in found.Tags()["tensors"]:
        text = found.Tensors(name)[-1].tensor_proto.string_val[0].decode()
        seen.texts[name.removesuffix("/text_summary")] = text
    seen.tags = {key.removeprefix("tags/"): text for key, text in seen.texts.items() if key.startswith("tags/")}
    for line in seen.texts.get("params", "").splitlines()[2:]:
        key, value = line.strip("| ").split(" | ")
        seen.params[key] = value
    for name in found.Tags()["images"]:
        picture = cv2.imdecode(np.frombuffer(found.Images(name)[-1].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        seen.pictures[name] = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    seen.tables = {name: text for name, text in seen.texts.items() if "| --- |" in text}
    seen.status, seen.data = seen.texts.get("status", ""), seen.texts.get("datasets", "")
    return seen


def offline_runs(folder: Path, *, killed: int = 0) -> list[Seen]:
    """The runs that W&B recorded offline below a folder, in the order of their starts; it is waited for their ends.

    Those that were killed, the first ones, have none.
    """
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    for file in files[killed:]:
        deadline = time.monotonic() + WAIT_S
        while not any(record.HasField("exit") for record in _records(file)) and time.monotonic() < deadline:
            time.sleep(0.1)
    return sorted((_offline(file) for file in files), key=lambda seen: seen.start)


def _offline(file: Path) -> Seen:
    seen, files = Seen(), file.parent / "files"
    for record in _records(file):
        seen.record += str(record)
        if record.HasField("run"):
            run = record.run
            seen.start = run.start_time.seconds + run.start_time.nanos * 1e-9
            seen.id, seen.name, seen.group, seen.job = run.run_id, run.display_name, run.run_group, run.job_type
        for item in record.config.update:
            key, value = item.key, json.loads(item.value_json)
            if key.startswith("tag."):
                seen.tags[key.removeprefix("tag.")] = value
            elif key.startswith("data."):
                seen.data += item.value_json
            else:
                seen.params[key] = value
        if record.HasField("history"):
            _add(seen, files, record.history)
        if record.HasField("exit"):
            seen.status = {0: "FINISHED", 1: "FAILED", 255: "KILLED"}.get(record.exit.exit_code, "")
        for one in record.files.files:
            path = files / one.path
            if one.path.startswith("panollava/") and path.suffix in (".md", ".yaml", ".json", ".txt"):
                seen.texts[one.path.removeprefix("panollava/")] = path.read_text(encoding="utf-8")
    return seen


def _add(seen: Seen, files: Path, history: Any) -> None:
    values: dict[str, Any] = {}
    for item in history.item:
        *outer, last = item.nested_key or [item.key]
        place = values
        for one in outer:
            place = place.setdefault(one, {})
        place[last] = json.loads(item.value_json)
    step = values.pop("step", -1)
    for key, value in values.items():
        if isinstance(value, dict):
            path = files / value["path"]
            if value["_type"] == "image-file":
                seen.pictures[key] = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            else:
                seen.tables[key] = path.read_text(encoding="utf-8")
        elif not key.startswith("_"):
            seen.metrics.setdefault(key, []).append((step, float(value)))


def _records(file: Path) -> Iterator[Any]:
    """The records of W&B's file; the last may be incomplete."""
    from wandb.proto import wandb_internal_pb2

    data, place, part = file.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        if (left := BLOCK - place % BLOCK) < HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4) and place <= len(data):  # whole, or the last of several
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def mlflow_run(client: Any, run_id: str, folder: Path) -> Seen:
    """A run in MLflow; its artifacts are copied into a folder."""
    run = client.get_run(run_id)
    seen = Seen(run_id, run.info.run_name, params=run.data.params, tags=run.data.tags, status=run.info.status)
    for key in run.data.metrics:
        seen.metrics[key] = [(one.step, one.value) for one in client.get_metric_history(run_id, key)]
    folder.mkdir(parents=True, exist_ok=True)
    kept = Path(client.download_artifacts(run_id, "", str(folder)))
    for path in (one for one in kept.rglob("*") if one.is_file()):
        name = path.relative_to(kept).as_posix()
        if path.suffix == ".png":
            seen.pictures[name] = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        else:
            seen.texts[name] = path.read_text(encoding="utf-8")
    seen.tables = {
        one["path"]: seen.texts[one["path"]] for one in json.loads(run.data.tags.get("mlflow.loggedArtifacts", "[]"))
    }
    seen.data = str(run.inputs.dataset_inputs)
    return seen
