"""python -m panollava.features [list | warm | clear]: what is kept of frozen encoders."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Len, MinLen
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from panollava.config.check import check_section, refuse
from panollava.config.entrypoint import entrypoint
from panollava.logs import LOG, configure_console, in_words, say
from panollava.model.backbones import Backbones
from panollava.run.config_check import check_sight
from panollava.run.features import forecast, open_features, warm
from panollava.run.sources import open_source
from panollava.store.catalogue import FEATURES, Kept, StoreOptions, clear_stores, kept_stores
from panollava.training.precision import choose_compute

_DAY_S = 86400.0
_GROUPS = ("model", "crop", "data", "trainer", "store")


@dataclass(frozen=True)
class FeaturesOptions:
    """Plain keys of ``conf/features.yaml``; see there."""

    action: Literal["list", "warm", "clear"]
    splits: Annotated[list[Literal["train", "val", "test"]], Len(1)]
    name: Annotated[str, MinLen(1)] | None
    unused_days: Annotated[float, Ge(0)] | None
    allow: str | list[str]


@entrypoint("features", bare="action")
def main(cfg: DictConfig) -> None:
    """Lists, fills or clears.

    Args:
        cfg: composed from ``conf/features.yaml`` and the command line.
    """
    configure_console()
    options, store, sections = _checked(cfg)
    if options.action == "list":
        say("\n".join(_lines(store, _meant(store, options))))
    elif options.action == "clear":
        chosen = _meant(store, options)
        clear_stores(store, chosen)
        say("\n".join([*(f"Removed {kept.line()}" for kept in chosen), f"{len(chosen)} stores removed."]))
    else:
        _warm(options, store, sections)


def _lines(store: StoreOptions, found: list[Kept]) -> list[str]:
    used = in_words(sum(kept.bytes for kept in found))
    head = f"{store.dir}/{FEATURES}: {len(found)} stores, {used} of at most {store.max_gib:g} GiB."
    return [head, *(f"  {kept.line()}" for kept in found)]


def _meant(store: StoreOptions, options: FeaturesOptions) -> list[Kept]:
    """The stores that ``name`` and ``unused_days`` choose."""
    before = time.time() - (options.unused_days or 0.0) * _DAY_S
    named = [kept for kept in kept_stores(store.dir) if options.name is None or options.name in kept.folder.name]
    return [kept for kept in named if options.unused_days is None or kept.used <= before]


def _warm(options: FeaturesOptions, store: StoreOptions, sections: dict[str, Any]) -> None:
    if not store.enabled:
        raise ValueError("store.enabled=false keeps nothing, so there is nothing to fill. Leave it at true.")
    trainer = sections["trainer"]
    compute = choose_compute(trainer["device"], trainer["precision"])
    backbones = Backbones(sections["model"], sections["crop"], dtype=compute.dtype)
    sources = [open_source(sections["data"], split, backbones.crop) for split in options.splits]
    tower = backbones.tower.to(compute.device)
    LOG.info("%s", forecast(store, tower, backbones.crop, sources))
    features = open_features(store, tower, backbones.crop)
    if features is None:
        raise ValueError(f"store.dir={store.dir} cannot be used, as told above. Name another folder.")
    warm(sources, backbones.crop, features, num_workers=trainer["num_workers"])


def _checked(cfg: DictConfig) -> tuple[FeaturesOptions, StoreOptions, dict[str, Any]]:
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    sections = {name: values.pop(name) for name in _GROUPS}
    refuse(check_section(values, FeaturesOptions, "") + check_sight(sections) + _not_meant(values["action"]))
    return FeaturesOptions(**values), StoreOptions(**sections["store"]), sections


def _not_meant(action: str) -> list[str]:
    """Problems of a command line that seems to choose stores by what is for warm alone: it would mean all of them."""
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
