"""How operations reach the store: at once where it is a file, by way of an outbox where it is a server."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from panollava.tracking.delivery import Delivery
from panollava.tracking.location import StoreBusyError
from panollava.tracking.operations import Operation, perform
from panollava.tracking.outbox import Outbox
from panollava.tracking.store import written

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)


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
