"""What an evaluation uses beside its subject and its questions."""

from dataclasses import dataclass

from panollava.store.catalogue import StoreOptions
from panollava.store.identity import FileIdentity
from panollava.tracking.tracker import NullTracker, Tracker
from panollava.training.precision import Compute


@dataclass(frozen=True)
class Tools:
    """Device, store, tracker and processes of an evaluation.

    Attributes:
        compute: device and number format.
        store: of the encoder's features.
        known: identifies files; one for a command, so that each file is read once.
        tracker: records the results.
        num_workers: processes that cut panoramas.
    """

    compute: Compute
    store: StoreOptions
    known: FileIdentity
    tracker: Tracker = NullTracker()  # noqa: RUF009  it keeps nothing
    num_workers: int = 0
