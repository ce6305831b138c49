"""python -m panollava.features [list | warm | clear]: the stored features of frozen encoders."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Len, MinLen
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from panollava.config.entrypoint import entrypoint
from panollava.logs import LOG, in_words, say

if TYPE_CHECKING:
    from panollava.crop.crop import Crop
    from panollava.data.source import DataSource
    from panollava.store.catalogue import Kept, StoreOptions
    from panollava.store.feature_maker import FeatureMaker

_DAY_S = 86400.0
_BATCH = 4
"""Panoramas of a batch of the loader; each is encoded on its own."""
_GROUPS = ("model", "crop", "data", "trainer", "store")


@dataclass(frozen=True)
class FeaturesOptions:
    """Plain keys of ``conf/features.yaml``; see there."""

    action: Literal["list", "warm", "clear"]
    splits: Annotated[list[Literal["train", "val", "test"]], Len(1)]
    name: Annotated[str, MinLen(1)] | None
    unused_days: Annotated[float, Ge(0)] | None
    allow: str | list[str]


@entrypoint("features", positional=("action",))
def main(cfg: DictConfig) -> None:
    """Lists, fills or clears."""
    from panollava.store.catalogue import clear_stores  # here, so that --help needs no PyTorch

    options, store, sections = _checked(cfg)
    if options.action == "list":
        say("\n".join(_lines(store, _chosen(store, options))))
    elif options.action == "clear":
        chosen = _chosen(store, options)
        clear_stores(store, chosen)
        say("\n".join([*(f"Removed {kept.line()}" for kept in chosen), f"{len(chosen)} stores removed."]))
    else:
        _warm(options, store, sections)


def _lines(store: StoreOptions, found: list[Kept]) -> list[str]:
    from panollava.store.catalogue import FEATURES

    used = in_words(sum(kept.bytes for kept in found))
    head = f"{store.dir}/{FEATURES}: {len(found)} stores, {used} of at most {store.max_gib:g} GiB."
    return [head, *(f"  {kept.line()}" for kept in found)]


def _chosen(store: StoreOptions, options: FeaturesOptions) -> list[Kept]:
    """The stores that ``name`` and ``unused_days`` choose."""
    from panollava.store.catalogue import kept_stores

    before = time.time() - (options.unused_days or 0.0) * _DAY_S
    named = [kept for kept in kept_stores(store.dir) if options.name is None or options.name in kept.folder.name]
    return [kept for kept in named if options.unused_days is None or kept.used <= before]


def _warm(options: FeaturesOptions, store: StoreOptions, sections: dict[str, Any]) -> None:
    if not store.enabled:
        raise ValueError("store.enabled=false stores no features, so warm has nothing to do. Leave it at true.")

    from panollava.model.backbones import Backbones
    from panollava.run.features import forecast, open_features
    from panollava.run.sources import open_source
    from panollava.training.precision import choose_compute

    trainer = sections["trainer"]
    compute = choose_compute(trainer["device"], trainer["precision"])
    backbones = Backbones(sections["model"], sections["crop"], dtype=compute.dtype)
    sources = [open_source(sections["data"], split, backbones.crop) for split in options.splits]
    tower = backbones.tower.to(compute.device)
    LOG.info("%s", forecast(store, tower, backbones.crop, sources))
    features = open_features(store, tower, backbones.crop)
    if features is None:
        raise ValueError(f"store.dir={store.dir} cannot be used (see above). Name another folder.")
    warm(sources, backbones.crop, features, num_workers=trainer["num_workers"])


def warm(sources: Sequence[DataSource], crop: Crop, features: FeatureMaker, *, num_workers: int) -> None:
    """Makes the missing features of all panoramas of some splits; parallel processes share the work.

    Raises:
        ValueError: the store is full.
    """
    from tqdm import tqdm

    from panollava.crop.render import check_workers
    from panollava.data.dataset import PanoDataset
    from panollava.data.loader import picture_batches

    check_workers(crop.device, num_workers)
    started = time.perf_counter()
    for source in sources:
        first = {source.picture(index): index for index in reversed(range(len(source)))}
        places = sorted(first.values())
        dataset = PanoDataset(source, crop, store=features.store)
        made = features.made
        with tqdm(total=len(places), desc=source.name, unit="panorama", disable=None) as bar:
            for batch in picture_batches(dataset, places, _BATCH, num_workers, features.complete):
                bar.update(len(batch))
                if features.store.is_full and features.made > made:
                    raise ValueError(
                        f"{features.store.folder} holds {features.store.count():,} panoramas, and nothing more can be "
                        "kept (see above). Make room or raise store.max_gib, and run the same command to resume."
                    )
    LOG.info(
        "%d panoramas encoded in %.1f s, %d were there; %s holds %d.",
        features.made, time.perf_counter() - started, features.read, features.store.folder, features.store.count(),
    )  # fmt: skip


def _checked(cfg: DictConfig) -> tuple[FeaturesOptions, StoreOptions, dict[str, Any]]:
    from panollava.config.check import check_section, refuse
    from panollava.run.config_check import check_inputs
    from panollava.store.catalogue import StoreOptions

    values: Any = OmegaConf.to_container(cfg, resolve=True)
    sections = {name: values.pop(name) for name in _GROUPS}
    refuse(check_section(values, FeaturesOptions, "") + check_inputs(sections) + _not_meant(values["action"]))
    return FeaturesOptions(**values), StoreOptions(**sections["store"]), sections


def _not_meant(action: str) -> list[str]:
    """Problems of a command line that tries to choose stores by options of warm, which would choose all stores."""
    if action == "warm":
        return []
    typed = [argument.lstrip("+") for argument in HydraConfig.get().overrides.task]
    return [
        f"{argument} is for warm; {action} chooses stores by name=<part of the name> and unused_days=<days>."
        for argument in typed
        if argument.partition("=")[0].partition(".")[0].partition("/")[0] in ("model", "crop", "data", "trainer")
    ]


if __name__ == "__main__":
    main()
