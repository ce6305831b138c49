"""The stages of training: their names and order, what each reads and trains, and which stages it starts from.

Only this module compares stage names; all others read the record of a stage. A stage of another package is a section
``stage.<name>`` with ``type: package.module:Class``, whose class has a record.
"""

import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from panollava.component import outside_class

Targets = Literal["text", "assistant"]
"""Which tokens have labels: all text after the image, or the answers alone."""


@dataclass(frozen=True)
class StageRecord:
    """The properties of a stage that are known before it is built.

    Attributes:
        name: in ``stage.run``, ``stage.<name>``, its folder, and metadata.
        type: its class, ``package.module:Class``.
        targets: the tokens that it learns; None if it reads images alone and opens no language model.
        starts_from: stages whose weights it may start from, the preferred one first.
        trains_language: whether it trains an adapter if ``model.lora`` is enabled, and has the key
            ``language_trainable_blocks``. Every stage has ``vision_trainable_blocks``.
        has_objective: whether it has the section ``loss``, which names an objective.
        finds: whether its model finds boxes and masks.
    """

    name: str = ""
    type: str = ""
    targets: Targets | None = None
    starts_from: tuple[str, ...] = ()
    trains_language: bool = False
    has_objective: bool = False
    finds: bool = False

    @property
    def answers(self) -> bool:
        """Whether its model generates text, so that it can be evaluated and exported."""
        return self.targets is not None

    @property
    def backbones(self) -> tuple[str, ...]:
        """Sections of ``model`` whose backbones it uses."""
        return ("vision", "language") if self.answers else ("vision",)

    @property
    def stage_class(self) -> Any:
        """Its class, a ``Stage``.

        Raises:
            ValueError: see ``outside_class``; none for a stage of ours.
        """
        if self.name not in STAGES:
            return outside_class(self.type, f"stage.{self.name}.type")
        return pkgutil.resolve_name(self.type)


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
        StageRecord(
            "detect", "panollava.stages.detect:DetectStage", None, ("finetune", "resampler", "vision"), finds=True
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
        ValueError: a class is missing or not allowed, has no record or a wrong one, or has the name of a stage of ours.
    """
    found = dict(STAGES)
    for name, options in section.items():
        if isinstance(options, Mapping) and "type" in options:
            if name in STAGES:
                raise ValueError(
                    f"stage.{name}.type={options['type']}: {name} is a stage of panollava. Give yours another name."
                )
            found[name] = _outside(name, str(options["type"]))
    for record in found.values():
        if unknown := [name for name in record.starts_from if name not in found]:
            raise ValueError(
                f"stage.{record.name}.type={record.type}: it starts from {', '.join(unknown)}, and there is no such "
                f"stage. Stages: {', '.join(found)}. Give the missing one a section of its own (stage.<name>.type)."
            )
        if record.name in _earlier(record, found):
            raise ValueError(f"stage.{record.name}.type={record.type}: it starts from itself (record.starts_from).")
    return found


def _earlier(record: StageRecord, stages: Mapping[str, StageRecord]) -> set[str]:
    """Names of all stages that come before one."""
    names = list(record.starts_from)
    for name in names:  # grows
        names += [one for one in stages[name].starts_from if one not in names] if name in stages else []
    return set(names)


def _outside(name: str, type: str) -> StageRecord:
    found = outside_class(type, f"stage.{name}.type")
    record = getattr(found, "record", None)
    if not isinstance(record, StageRecord) or not hasattr(found, "own_options"):
        raise ValueError(
            f"stage.{name}.type={type} is no stage: its class needs an attribute `record`, a "
            "panollava.stages.registry.StageRecord. Derive it from panollava.stages.protocol.Stage."
        )
    if record.targets not in (None, *get_args(Targets)):
        raise ValueError(
            f"stage.{name}.type={type}: record.targets={record.targets!r}: allowed is text, assistant or None."
        )
    if isinstance(record.starts_from, str):
        raise ValueError(f"stage.{name}.type={type}: record.starts_from={record.starts_from!r}: give a tuple of names.")
    return replace(record, name=name, type=type)


def with_defaults(section: Mapping[str, Any]) -> dict[str, Any]:
    """The ``stage`` section, in which stages of other packages get defaults for the options that every stage has.

    The defaults are the values of our stage with the same targets: ``stage.finetune`` for answers,
    ``stage.resampler`` for all text, ``stage.vision`` for images alone.

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
    """Names of stages in the given order, but each after those that it may start from."""
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
    """The record of a checkpoint's stage, from its ``checkpoint_metadata.json``; nothing is imported.

    Raises:
        ValueError: the stage is not one of ours, and the metadata do not have its record.
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
    """Entries of metadata beside the name: the record, for a stage of another package."""
    return {} if record.name in STAGES else {_RECORD: asdict(record)}


def last_first(outside: Iterable[StageRecord] = ()) -> list[str]:
    """Names of our stages and some of other packages, the last one first; a stage that finds after those that answer.

    An experiment's folder then is opened at its last stage that answers, whether or not it has one that finds as well.
    """
    stages = {**STAGES, **{record.name: record for record in outside}}
    order = in_order(stages)[::-1]
    last = max((at for at, name in enumerate(order) if stages[name].answers), default=-1)
    finding = [name for name in order[: last + 1] if stages[name].finds]
    return [*(name for name in order[: last + 1] if name not in finding), *finding, *order[last + 1 :]]
