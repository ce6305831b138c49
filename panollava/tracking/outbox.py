"""Operations that wait on disk beside a run until its store takes them, and the thread that sends them.

::

    tracking_outbox/<time>-<number>/run.json            the run, or how to make it, and its store
                                    operations.jsonl    one operation a line, in order
                                    sent                how many bytes of them have arrived
                                    files/              the files of operations: links or copies
                                    refused.jsonl       operations that the server refused, and why
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from panollava.disk import link, write_file
from panollava.tracking import store
from panollava.tracking.location import SQLITE, absolute_uri, database_file
from panollava.tracking.operations import Operation, new_rows, perform

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

OUTBOX = "tracking_outbox"
HEADER, OPERATIONS, SENT, REFUSED = "run.json", "operations.jsonl", "sent", "refused.jsonl"
MAX_ROWS = 1000  # metrics that are sent at once, which is MLflow's limit of one request
FIRST_PAUSE_S, LONGEST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0, 1.0  # between attempts; the last when the run has ended
ATTEMPTS = 5  # how often an operation may fail while the server answers otherwise, until it counts as refused


class Outbox:
    """Operations of one run, owned by one process at a time; one thread may put them in while another takes them out.

    ``header`` has ``uri``, ``experiment``, ``run_id`` (None with what is needed to make the run), and ``reached``, the
    last step of each metric that earlier processes logged (None until it is looked up).
    """

    def __init__(self, folder: Path) -> None:
        """Raises a Timeout if another process owns the folder, a FileNotFoundError if it is no outbox any more."""
        self.folder = folder
        self._lock = FileLock(folder / ".lock", thread_local=False)
        self._lock.acquire(timeout=0)
        try:
            self.header: dict[str, Any] = json.loads((folder / HEADER).read_text(encoding="utf-8"))
            database = folder / self.header.get("database", "")
            if database.is_file():  # both may have been moved
                self.header["uri"] = absolute_uri(f"{SQLITE}{database}")
            self._repair()
            self._stream = (folder / OPERATIONS).open("ab")
        except BaseException:
            self._lock.release()
            raise
        self._writing = threading.Lock()
        self.in_doubt = True  # the next operation may have arrived without a record of it

    @classmethod
    def create(cls, parent: Path, header: dict[str, Any]) -> Self:
        """A new outbox in ``parent/tracking_outbox``; names sort by the time of creation, also within a second."""
        now = time.time_ns()
        stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(now // 10**9))
        folder = parent / OUTBOX / f"{stamp}_{now % 10**9:09d}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        if (file := database_file(header["uri"])) is not None:
            header = {**header, "database": os.path.relpath(file, folder.resolve())}
        (folder / HEADER).write_text(json.dumps(header, indent=2, ensure_ascii=False), encoding="utf-8")
        box = cls(folder)
        box.in_doubt = False
        return box

    @classmethod
    def left_behind(cls, folder: Path, uri: str | None = None, *, below: bool = False) -> list[Self]:
        """Outboxes in a folder, or anywhere ``below`` it, without an owner, the oldest first, for the store ``uri``."""
        boxes = []
        for header in sorted(folder.glob(f"{'**/' if below else ''}{OUTBOX}/*/{HEADER}")):
            try:
                box = cls(header.parent)
            except (Timeout, FileNotFoundError):
                continue
            if uri is None or box.header["uri"] == uri:
                boxes.append(box)
            else:
                box.release()
        return boxes

    def put(self, operation: Operation, source: Path | None = None) -> None:
        """Appends an operation, with the file or folder that it copies."""
        with self._writing:
            if source is not None:
                operation = {**operation, "path": self._keep(source)}
            self._append(operation)

    def next(self) -> tuple[Operation, int] | None:
        """The first operation that has not arrived, and where the one after it begins; metrics are combined."""
        with (self.folder / OPERATIONS).open("rb") as stream:
            stream.seek(self._sent)
            operation = _parsed(stream.readline())
            if operation is None:
                return None
            end = stream.tell()
            while operation["do"] == "metrics" and (more := _parsed(stream.readline())) is not None:
                if more["do"] != "metrics" or len(operation["rows"]) + len(more["rows"]) > MAX_ROWS:
                    break
                operation["rows"] += more["rows"]
                end = stream.tell()
        return operation, end

    def arrived(self, operation: Operation, end: int) -> None:
        """Records that the operation from ``next`` was sent."""
        with self._writing:
            if end == (self.folder / OPERATIONS).stat().st_size:  # nothing waits: keep the file of a long run short
                self._stream.truncate(0)
                end = 0
            self._sent = end
            write_file(self.folder / SENT, str(end), sync=False)
        if "path" in operation:
            shutil.rmtree((self.folder / operation["path"]).parent)

    def refuse(self, operation: Operation, end: int, reason: str) -> None:
        """Sets the operation from ``next`` aside, so that the rest can be sent; its files stay."""
        with (self.folder / REFUSED).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"operation": operation, "reason": reason}, ensure_ascii=False) + "\n")
        self.arrived({"do": operation["do"]}, end)

    def retry_refused(self) -> None:
        """Appends the refused operations again."""
        with self._writing:
            for line in self._refused_lines():
                self._append(json.loads(line)["operation"])
        (self.folder / REFUSED).unlink(missing_ok=True)

    def update_header(self, **values: Any) -> None:
        """Records values about the run."""
        self.header.update(values)
        write_file(self.folder / HEADER, json.dumps(self.header, indent=2, ensure_ascii=False), sync=False)

    @property
    def refused(self) -> int:
        """How many operations the server refused."""
        return len(self._refused_lines())

    def waiting(self) -> int:
        """How many operations have not arrived, including the refused ones."""
        with (self.folder / OPERATIONS).open("rb") as stream:
            stream.seek(self._sent)
            return self.refused + sum(1 for _ in stream)

    def release(self) -> None:
        """Releases the folder; it is removed if nothing waits in it."""
        self._stream.close()
        is_empty = self.waiting() == 0
        if is_empty:
            (self.folder / HEADER).unlink()  # no other process takes it from here on
        self._lock.release()
        if is_empty:
            shutil.rmtree(self.folder, ignore_errors=True)
            if not any(self.folder.parent.iterdir()):
                self.folder.parent.rmdir()

    def _repair(self) -> None:
        """Removes the line that a killed process left half written."""
        path, sent = self.folder / OPERATIONS, self.folder / SENT
        content = path.read_bytes() if path.is_file() else b""
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            logger.warning("%s ended in an incomplete operation, which is lost.", path)
            os.truncate(path, complete)
        position = int(sent.read_text(encoding="utf-8")) if sent.is_file() else 0
        self._sent = position if position <= complete else 0

    def _append(self, operation: Operation) -> None:
        self._stream.write(json.dumps(operation, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()

    def _refused_lines(self) -> list[str]:
        path = self.folder / REFUSED
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

    def _keep(self, source: Path) -> str:
        """A lasting copy of a file or folder: a link where the system allows it, since files are never changed."""
        folder = self.folder / "files" / uuid.uuid4().hex[:12]
        folder.mkdir(parents=True)
        target = folder / source.name
        shutil.copytree(source, target, copy_function=link) if source.is_dir() else link(source, target)
        return target.relative_to(self.folder).as_posix()


def _parsed(line: bytes) -> Operation | None:
    """An operation, or None where the line is incomplete so far."""
    return json.loads(line) if line.endswith(b"\n") else None


class Delivery:
    """A thread that empties outboxes, the oldest first, and waits for more in the last one; releases them at the end.

    A server that is away causes one warning, unless ``is_away`` says that it was given; at the end it is waited for
    ``wait_seconds``. An operation that it refuses is set aside in its outbox, with a warning.
    """

    def __init__(self, uri: str, boxes: Sequence[Outbox], *, wait_seconds: float = 0.0, is_away: bool = False) -> None:
        self._uri, self._boxes, self._wait_seconds = uri, list(boxes), wait_seconds
        self._has_more, self._finishing = threading.Event(), threading.Event()
        self._deadline = 0.0
        self._is_away = self._has_warned = is_away
        self._has_refused = False
        self._failures, self._pause_s = 0, FIRST_PAUSE_S
        self._thread = threading.Thread(target=self._run, name="tracking delivery", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def put(self, operation: Operation, source: Path | None = None) -> None:
        """Appends an operation to the last outbox (see ``Outbox.put``)."""
        self._boxes[-1].put(operation, source)
        self._has_more.set()

    def finish(self) -> int:
        """Ends when all has arrived, or after ``wait_seconds`` if the server is away; returns how many still wait."""
        self._deadline = time.monotonic() + self._wait_seconds
        self._finishing.set()
        self._has_more.set()
        self._thread.join()
        left = sum(box.waiting() for box in self._boxes)
        for box in self._boxes:
            box.release()
        return left

    def close(self) -> None:
        """``finish`` with a warning about operations that still wait."""
        if left := self.finish():
            folder = self._boxes[-1].folder.parent
            logger.warning(
                "%d records wait in %s for MLflow at %s; send them with: python -m panollava.deliver %s",
                left, folder, self._uri, folder.parent,
            )  # fmt: skip

    def _run(self) -> None:
        client: MlflowClient | None = None
        try:
            while not self._all_sent():
                try:
                    client = client or store.open_client(self._uri)
                    self._send_all(client)
                except ConnectionError as error:  # the server may answer later, or the file be free
                    if self._finishing.is_set() and time.monotonic() > self._deadline:
                        return
                    self._pause(store.reason_of(error))
        except Exception as error:
            logger.error("Sending to MLflow at %s has stopped (%s); the rest stays on disk.", self._uri, error)
            logger.debug("The reason:", exc_info=True)

    def _all_sent(self) -> bool:
        """Waits for something to send; True when nothing more will come."""
        while True:
            is_finishing = self._finishing.is_set()  # before the look at the boxes: what is put in before it is seen
            if any(box.next() is not None for box in self._boxes):
                return False
            if is_finishing:
                return True
            self._has_more.wait()
            self._has_more.clear()

    def _send_all(self, client: MlflowClient) -> None:
        for box in self._boxes:
            while (waiting := box.next()) is not None:
                operation, end = waiting
                try:
                    with store.store_errors(self._uri):
                        self._send(client, box, operation)
                except Exception as error:
                    box.in_doubt = True
                    reason = store.reason_of(error)
                    if store.may_pass(error) and self._should_retry():
                        raise ConnectionError(reason) from error
                    box.refuse(operation, end, reason)
                    logger.log(
                        logging.DEBUG if self._has_refused else logging.WARNING,
                        "MLflow at %s rejects %s (%s). It is kept in %s; the rest is sent.",
                        self._uri, operation["do"], reason, box.folder,
                    )  # fmt: skip
                    self._has_refused = True
                else:
                    box.arrived(operation, end)
                    box.in_doubt = False
                if self._is_away:
                    logger.info("MLflow at %s takes records again.", self._uri)
                self._is_away, self._failures = False, 0

    def _send(self, client: MlflowClient, box: Outbox, operation: Operation) -> None:
        header = box.header
        if header["run_id"] is None:  # begun while the server was away: it is made now, once
            experiment = store.experiment_id(client, header["uri"], header["experiment"])
            run_id = store.local_run(client, experiment, header["local_id"])
            if run_id is None:
                run = client.create_run(experiment, header["start_time"], header["tags"], header["run_name"])
                run_id = run.info.run_id
            box.update_header(run_id=run_id)
        if operation["do"] == "metrics":
            if header["reached"] is None:
                box.update_header(reached=store.last_steps(client, header["run_id"]))
            operation = {**operation, "rows": new_rows(operation["rows"], header["reached"])}
        perform(client, self._uri, header["run_id"], operation, folder=box.folder, again=box.in_doubt)

    def _should_retry(self) -> bool:
        """Whether the server is away, or the operation has not failed ``ATTEMPTS`` times while it answers."""
        if store.answers(self._uri):
            self._failures += 1
        return self._failures < ATTEMPTS

    def _pause(self, reason: str) -> None:
        if not self._is_away:
            logger.log(
                logging.INFO if self._has_warned else logging.WARNING,
                "MLflow at %s %s (%s). The run continues; its record is kept in %s until it can be sent.",
                self._uri, "does not take a record" if self._failures else "is unreachable", reason,
                self._boxes[-1].folder,
            )  # fmt: skip
            self._pause_s = FIRST_PAUSE_S
        self._is_away = self._has_warned = True
        time.sleep(LAST_PAUSE_S) if self._finishing.is_set() else self._finishing.wait(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def deliver(folder: Path, *, wait_seconds: float = 0.0) -> tuple[int, int]:
    """Sends all outboxes left behind in or below a folder; returns how many operations were waiting and still are."""
    boxes = Outbox.left_behind(folder, below=True)
    for box in boxes:
        box.retry_refused()
    before, uris = sum(box.waiting() for box in boxes), dict.fromkeys(box.header["uri"] for box in boxes)
    return before, sum(send(uri, [box for box in boxes if box.header["uri"] == uri], wait_seconds) for uri in uris)


def send(uri: str, boxes: Sequence[Outbox], wait_seconds: float, *, is_away: bool = False) -> int:
    """Sends outboxes, and ends the runs whose process was killed; returns how many operations still wait."""
    left = Delivery(uri, boxes, wait_seconds=wait_seconds, is_away=is_away).start().finish()
    if not left:
        try:
            with store.store_errors(uri):
                store.end_killed(store.open_client(uri), [box.header["run_id"] for box in boxes])
        except Exception as error:
            if not store.may_pass(error):
                raise
            logger.debug("Runs of processes that are gone stay open: %s", store.reason_of(error))
    return left
