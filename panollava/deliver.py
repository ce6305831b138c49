"""python -m panollava.deliver <folder>: sends the records that runs could not send to their tracking server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval
from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.logs import LOG
from panollava.tracking.outbox import deliver


@dataclass(frozen=True)
class DeliverOptions:
    """Keys of ``conf/deliver.yaml``; see there."""

    folder: str
    wait_seconds: Annotated[float, Interval(ge=0)]


@entrypoint("deliver", positional=("folder",))
def main(cfg: DictConfig) -> None:
    """Sends the records that wait in or below ``folder``."""
    from panollava.run.sections import read_config  # here, so that --help needs no PyTorch

    options, _ = read_config(cfg, DeliverOptions)
    folder = Path(options.folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"folder={folder} does not exist. Name a run, or a folder of runs.")
    waiting, left = deliver(folder, wait_seconds=options.wait_seconds)
    LOG.info("%s: %d records waited, %d were sent.", folder, waiting, waiting - left)
    if left:
        raise ConnectionError(f"{left} records still wait below {folder}: the lines above say why.")


if __name__ == "__main__":
    main()
