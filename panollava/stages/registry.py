"""The stages of training: their names and order, what each reads and trains, and which stages it starts from.

This is the only module that knows a stage by its name; all others ask its record. A stage of another package is a
section ``stage.<name>`` with ``type: package.module:Class``, whose class states its record.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from panollava.component import outside_class

Targets = Literal["text", "assistant"]
"""Which tokens have labels: all text after the image, or the answers alone."""


@dataclass(frozen=True)
class StageRecord:
    """What the program knows of a stage before it is built.

    Attributes:
        name: in ``stage.run``, in ``stage.<name>``, of its folder, and in metadata; of a stage of another package it
            is the name of its section.
        type: its class, ``package.module:Class``.
        targets: the tokens that it learns; None where it reads pictures alone and opens no language model.
        starts_from: stages whose weights it may start from, the preferred one first.
        trains_language: whether it trains an adapter where ``model.lora`` is enabled, and has the key
            ``language_trainable_blocks``. The encoder's last blocks train in every stage that sets
            ``vision_trainable_blocks``.
        has_objective: whether it has the section ``loss``, which names an objective.
    """

    name: str = ""
    type: str = ""
    targets: Targets | None = None
    starts_from: tuple[str, ...] = ()
    trains_language: bool = False
    has_objective: bool = False

    @property
    def answers(self) -> bool:
        """Whether its model answers questions, so that it can be evaluated and exported."""
        return self.targets is not None

    @property
    def backbones(self) -> tuple[str, ...]:
        """Sections of ``model`` whose backbone is a part of its model."""
        return ("vision", "language") if self.answers else ("vision",)

    @property
    def stage_class(self) -> Any:
        """Its class, a ``Stage``.

        Raises:
            ValueError: see ``outside_class``; none for a stage of ours.
        """
        if self.name not in STAGES:
            return outside_class(self.type, f"stage.{self.name}.type")
        module, _, name = self.type.partition(":")
        return getattr(importlib.import_module(module), name)


STAGES = {
    record.name: record
    for record in (
        StageRecord("vision", "panollava.stages.vision:OverlapStage", has_objective=True),
        StageRecord("resampler", "panollava.stages.language:InstructStage", "text", ("vision",)),
        StageRecord(
            "finetune",
            "panollava.stages.language:InstructStage",
            "assistant",
            ("resampler", "vision"),
            trains_language=True,
        ),
    )
}
"""The stages of this package, by name, in their order."""
FIRST = next(iter(STAGES))

_SHARED = ("epochs", "batch_size", "accumulate", "lr", "max_text_length")
_RECORD = "stage_record"
"""Key of metadata with the record of a stage of another package."""


def stages_of(section: Mapping[str, Any]) -> dict[str, StageRecord]:
    """The stages of a config, ours first.

    Args:
        section: the ``stage`` section; each section in it with a ``type`` is a stage of another package.

    Raises:
        ValueError: a class is missing or not allowed, has no record, or starts from stages that there are not.
    """
    found = dict(STAGES)
    for name, options in section.items():
        if name not in STAGES and isinstance(options, Mapping) and "type" in options:
            found[name] = _outside(name, str(options["type"]))
    for record in found.values():
        if unknown := [name for name in record.starts_from if name not in found]:
            raise ValueError(
                f"stage.{record.name}.type={record.type}: it starts from {', '.join(unknown)}, and there is no such "
                f"stage. Stages: {', '.join(found)}. Give the missing one a section of its own (stage.<name>.type)."
            )
    return found


def _outside(name: str, type: str) -> StageRecord:
    record = getattr(outside_class(type, f"stage.{name}.type"), "record", None)
    if not isinstance(record, StageRecord):
        raise ValueError(
            f"stage.{name}.type={type} is no stage: its class needs an attribute `record`, a "
            "panollava.stages.registry.StageRecord. Derive it from panollava.stages.protocol.Stage."
        )
    return replace(record, name=name, type=type)


def with_defaults(section: Mapping[str, Any]) -> dict[str, Any]:
    """The ``stage`` section, where stages of other packages have the options that every stage has.

    One that is not given is that of our stage with the same targets: ``stage.finetune`` for a stage that learns
    answers, ``stage.resampler`` for one that learns all text, ``stage.vision`` for one that reads pictures alone.

    Raises:
        ValueError: see ``stages_of``.
    """
    result = dict(section)
    for name, record in stages_of(section).items():
        if name not in STAGES:
            alike = next(one.name for one in STAGES.values() if one.targets == record.targets)
            shared = {key: section[alike][key] for key in _SHARED if key in (section.get(alike) or {})}
            result[name] = {**shared, **section[name]}
    return result


def in_order(stages: Mapping[str, StageRecord]) -> list[str]:
    """Names of stages, each after those that it may start from; else in the given order."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in stages and name not in order:
            for earlier in reversed(stages[name].starts_from):
                add(earlier)
            order.append(name)

    for name in stages:
        add(name)
    return order


def recorded_stage(metadata: Mapping[str, Any]) -> StageRecord:
    """The record of the stage that a checkpoint is of; nothing is imported.

    Args:
        metadata: as in ``checkpoint_metadata.json``.

    Raises:
        ValueError: the stage is not one of ours, and its record is not there.
    """
    name, record = metadata["stage"], metadata.get(_RECORD) or {}
    if name in STAGES:
        return STAGES[name]
    try:
        return StageRecord(**{**record, "starts_from": tuple(record["starts_from"])})
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"There is no stage {name!r}, and the metadata do not describe it ({_RECORD} is {record!r}). Stages: "
            f"{', '.join(STAGES)}."
        ) from error


def for_metadata(record: StageRecord) -> dict[str, Any]:
    """What metadata hold of a stage beside its name: the record of one of another package."""
    return {} if record.name in STAGES else {_RECORD: asdict(record)}


def last_first(outside: Iterable[StageRecord] = ()) -> list[str]:
    """The order in which an experiment's stages are looked for: ours and some of other packages, the last first."""
    return in_order({**STAGES, **{record.name: record for record in outside}})[::-1]
