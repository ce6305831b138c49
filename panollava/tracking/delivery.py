"""How operations reach the store: at once where it is a file, by way of an outbox where it is a server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from panollava.tracking.location import StoreBusyError
from panollava.tracking.outbox import Operation, Outbox, beyond, perform
from panollava.tracking.store import (
    answers,
    end_killed,
    experiment_id,
    is_out_of_reach,
    local_run,
    open_client,
    reached_steps,
    reason_of,
    written,
)

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0, 1.0
"""Between attempts while the server is away: the first and the longest pause, and the one when the run has ended."""

ATTEMPTS = 5
"""How often an operation may fail while the server answers otherwise, until it is put aside."""


class _OutOfReachError(Exception):
    """The server may answer later; the message is why it does not."""


class Delivery:
    """A thread that empties outboxes, the oldest first, and waits for more in the last one.

    A server that is away is warned of once. What it refuses is put aside in its outbox, with a warning.

    Args:
        uri: the server.
        boxes: outboxes to empty; the last one is still filled by this process. All belong to this object from now on.
        is_away: whether the server did not answer just now, and that was said.
    """

    def __init__(self, uri: str, boxes: Sequence[Outbox], *, is_away: bool = False) -> None:
        self.uri = uri
        self._boxes = list(boxes)
        self._news, self._finishing = threading.Event(), threading.Event()
        self._deadline = 0.0
        self._is_away = self._has_warned = is_away
        self._has_refused = False
        self._failures, self._seconds = 0, FIRST_PAUSE_S
        self._thread = threading.Thread(target=self._run, name="tracking delivery", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def notice(self) -> None:
        """Says that there is something new in the last outbox."""
        self._news.set()

    def finish(self, wait_seconds: float) -> int:
        """Ends when everything has arrived, or when the server has been away for a while.

        Args:
            wait_seconds: how long to wait for a server that does not answer.

        Returns:
            How many operations wait on.
        """
        self._deadline = time.monotonic() + wait_seconds
        self._finishing.set()
        self._news.set()
        self._thread.join()
        left = sum(box.waiting() for box in self._boxes)
        for box in self._boxes:
            box.release()
        return left

    def _run(self) -> None:
        try:
            client: MlflowClient | None = None
            while not self._all_sent():
                try:
                    client = client or open_client(self.uri)
                    self._send_all(client)
                except (_OutOfReachError, StoreBusyError) as error:
                    if self._finishing.is_set() and time.monotonic() > self._deadline:
                        return
                    self._pause(reason_of(error))
        except Exception as error:
            logger.error("Sending to MLflow at %s has stopped (%s); the rest stays on disk.", self.uri, error)
            logger.debug("The reason:", exc_info=True)

    def _all_sent(self) -> bool:
        """Waits for something to send; True when nothing more will come."""
        while all(box.next() is None for box in self._boxes):
            if self._finishing.is_set():
                return True
            self._news.wait()
            self._news.clear()
        return False

    def _send_all(self, client: MlflowClient) -> None:
        for box in self._boxes:
            while (waiting := box.next()) is not None:
                operation, end = waiting
                try:
                    with written(self.uri):
                        self._send(client, box, operation)
                except Exception as error:
                    box.in_doubt = True
                    reason = reason_of(error)
                    if is_out_of_reach(error) and self._may_pass():
                        raise _OutOfReachError(reason) from error
                    self._refuse(box, operation, end, reason)
                else:
                    box.arrived(operation, end)
                    box.in_doubt = False
                self._came_back()

    def _send(self, client: MlflowClient, box: Outbox, operation: Operation) -> None:
        run_id = run_of(client, box)
        if operation["do"] == "metrics":
            if box.header["reached"] is None:
                box.learn(reached=reached_steps(client, run_id))
            operation = {**operation, "rows": beyond(operation["rows"], box.header["reached"])}
        perform(client, self.uri, run_id, operation, folder=box.folder, again=box.in_doubt)

    def _may_pass(self) -> bool:
        """Whether to try again: the server is away, or has not failed often enough to be believed."""
        if answers(self.uri):
            self._failures += 1
        return self._failures < ATTEMPTS

    def _refuse(self, box: Outbox, operation: Operation, end: int, reason: str) -> None:
        box.refuse(operation, end, reason)
        logger.log(
            logging.DEBUG if self._has_refused else logging.WARNING,
            "MLflow at %s does not take %s (%s). It is kept in %s; the rest goes on.",
            self.uri, operation["do"], reason, box.folder,
        )  # fmt: skip
        self._has_refused = True

    def _pause(self, reason: str) -> None:
        if not self._is_away:
            logger.log(
                logging.INFO if self._has_warned else logging.WARNING,
                "MLflow at %s is out of reach (%s). The run goes on; its record is kept in %s until it can be sent.",
                self.uri, reason, self._boxes[-1].folder,
            )  # fmt: skip
            self._seconds = FIRST_PAUSE_S
        self._is_away = self._has_warned = True
        if self._finishing.is_set():
            time.sleep(LAST_PAUSE_S)
        else:
            self._finishing.wait(self._seconds)
        self._seconds = min(2 * self._seconds, LONGEST_PAUSE_S)

    def _came_back(self) -> None:
        if self._is_away:
            logger.info("MLflow at %s answers again.", self.uri)
        self._is_away, self._failures = False, 0


def run_of(client: MlflowClient, box: Outbox) -> str:
    """The run of an outbox; one that was begun while the server was away is made now, once."""
    header = box.header
    if header["run_id"] is None:
        experiment = experiment_id(client, header["uri"], header["experiment"])
        found = local_run(client, experiment, header["local_id"])
        if found is None:
            run = client.create_run(experiment, header["start_time"], header["tags"], header["run_name"])
            found = run.info.run_id
        box.learn(run_id=found)
    return str(header["run_id"])


def post(
    folder: Path, uri: str, run_id: str, operations: Iterable[tuple[Operation, Path | None]], *, wait_seconds: float
) -> int:
    """Sends something to a run by way of an outbox, where it stays if the server is away.

    Args:
        folder: holds the outbox.
        uri, run_id: of the run.
        operations: what to do, and the file that goes along.
        wait_seconds: how long to wait for a server that does not answer.

    Returns:
        How many operations wait.
    """
    box = Outbox.create(folder, {"uri": uri, "run_id": run_id, "local_id": None, "reached": {}})
    for operation, source in operations:
        box.put(operation, source)
    return _emptied(uri, [box], wait_seconds, is_away=not answers(uri))


def deliver(folder: Path, *, wait_seconds: float = 0.0) -> tuple[int, int]:
    """Sends everything that runs below a folder left behind, each to its own server.

    Args:
        folder: a run, or a folder of runs.
        wait_seconds: how long to wait for a server that does not answer.

    Returns:
        How many operations were waiting, and how many still are.
    """
    boxes = Outbox.left_behind(folder, below=True)
    for box in boxes:
        box.retry_refused()
    before, after = sum(box.waiting() for box in boxes), 0
    for uri in dict.fromkeys(box.header["uri"] for box in boxes):
        after += _emptied(uri, [box for box in boxes if box.header["uri"] == uri], wait_seconds)
    return before, after


def _emptied(uri: str, boxes: Sequence[Outbox], wait_seconds: float, *, is_away: bool = False) -> int:
    """Sends what is in outboxes and returns how many operations wait on; ends the runs that a kill left without one."""
    delivery = Delivery(uri, boxes, is_away=is_away)
    delivery.start()
    left = delivery.finish(wait_seconds)
    if not left:
        try:
            with written(uri):
                end_killed(open_client(uri), [box.header["run_id"] for box in boxes])
        except Exception as error:
            if not is_out_of_reach(error):
                raise
            logger.debug("Runs of processes that are gone stay open: %s", reason_of(error))
    return left


class Direct:
    """Does each operation as it comes; an error is the caller's.

    Args:
        client, uri: of the store.
        run_id: the run.
        spare: opens the way that the rest takes from when another process keeps the store locked; None makes that the
            caller's error too.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        uri: str,
        spare: Callable[[StoreBusyError], Posted] | None = None,
    ) -> None:
        self._client, self._run_id, self._uri = client, run_id, uri
        self._spare = spare
        self._posted: Posted | None = None

    def put(self, operation: Operation, source: Path | None = None) -> None:
        """Does an operation.

        Args:
            operation: what to do.
            source: file or folder that goes along.
        """
        path = {} if source is None else {"path": str(source)}
        if self._posted is None:
            try:
                with written(self._uri):
                    perform(self._client, self._uri, self._run_id, {**operation, **path}, folder=Path())
                return
            except StoreBusyError as error:
                if self._spare is None:
                    raise
                self._posted = self._spare(error)
        self._posted.put(operation, source)

    def close(self) -> None:
        """Nothing waits, unless the store was locked."""
        if self._posted is not None:
            self._posted.close()


class Posted:
    """Writes each operation to disk, from where a thread sends it.

    Args:
        uri: the server.
        left: outboxes that earlier processes left behind, which are sent first.
        box: takes the operations.
        wait_seconds: how long to wait at the end for a server that does not answer.
        is_away: whether the server did not answer just now, and that was said.
    """

    def __init__(self, uri: str, left: list[Outbox], box: Outbox, wait_seconds: float, *, is_away: bool) -> None:
        self._box, self._wait_seconds = box, wait_seconds
        self._delivery = Delivery(uri, [*left, box], is_away=is_away)
        self._delivery.start()

    def put(self, operation: Operation, source: Path | None = None) -> None:
        """Keeps an operation until it is sent (see ``Direct.put``)."""
        self._box.put(operation, source)
        self._delivery.notice()

    def close(self) -> None:
        """Sends what is left; what the server does not take stays on disk."""
        if waiting := self._delivery.finish(self._wait_seconds):
            folder = self._box.folder.parents[1]
            logger.warning(
                "%d records wait in %s for MLflow at %s; send them with: python -m panollava.deliver %s",
                waiting, self._box.folder.parent, self._delivery.uri, folder,
            )  # fmt: skip
