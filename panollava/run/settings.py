"""Which of several runs are of one setting, so that they differ by the seed of their training alone."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from panollava.checkpoint import BEST, follow, read_state
from panollava.run.conditions import as_json, unlike
from panollava.run_folder import MAY_DIFFER, flatten, recorded_metadata, upgraded

OF_NO_SETTING = {*MAY_DIFFER, "seed", "trainer.compile", "trainer.device"} - {
    "generation",
    "stage.run",
    "trainer.max_steps",
    "trainer.patience",
}
"""Config keys that say where and how a run is made, and nothing of what it learns or answers; and the seed."""
_SPLITS = ("train", "val")


def settings_of(configs: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> tuple[list[dict[str, str]], list[str]]:
    """The setting of each run: its values of the keys in which they differ, without the seed.

    A key that a run's config lacks, since it is older or its parts are others, has no value there, and is equal to what
    the others have in common.

    Args:
        configs: ``config.yaml`` of each run's last stage.
        stages: the stage of each.

    Returns:
        Of each run the values of as few keys as tell the settings apart, those that choose a part first; and all keys
        that differ, in the same order.
    """
    flat = [{"stage": stage} | _relevant(config) for config, stage in zip(configs, stages, strict=True)]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    differing = [key for key in keys if len({as_json(one[key]) for one in flat if key in one}) > 1]
    order = sorted(differing, key=lambda key: (key != "stage", not key.endswith(".type"), key.count("."), key))
    whole = _groups(flat, order)
    chosen: list[str] = []
    for key in order:
        if _groups(flat, chosen) == whole:
            break
        if len(set(_groups(flat, [*chosen, key]))) > len(set(_groups(flat, chosen))):
            chosen.append(key)
    names = {key: _short(key) for key in chosen}
    settings = [{names[key]: _written(one[key]) if key in one else "–" for key in chosen} for one in flat]
    return settings, [_short(key) for key in order]


def trained_with(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run learnt from and how, beside its config, without entries that an older run's record lacks.

    Args:
        folder: of its last stage.
        config: ``config.yaml`` there.

    Returns:
        Digests of the data, by split, and of the files of the backbones; what prompts depend on; and of each stage the
        number format and the samples of an optimiser step.
    """
    metadata = recorded_metadata(folder)
    digests = flatten(metadata.get("inputs") or {})
    found = {key: value and str(value)[:16] for key, value in digests.items()}
    found |= flatten({"prompt": metadata.get("prompt") or {}})
    own = folder.parent.name
    for stage in (*takewhile(lambda one: one != own, upgraded(config)["stage"]["run"]), own):
        with suppress(FileNotFoundError, ValueError):  # a report does not need the checkpoints
            state = read_state(follow(folder.parent.parent / stage / folder.name / BEST) or folder)
            share = state.get("share")
            found[f"the number format of stage {stage}"] = state.get("number_format")
            found[f"the number of samples of a step of stage {stage}"] = share and math.prod(share.values())
    return {key: value for key, value in found.items() if value is not None}


def unlike_training(
    records: Mapping[str, Mapping[str, Any]], configs: Sequence[Mapping[str, Any]], settings: Sequence[object]
) -> list[str]:
    """A sentence on what runs were trained with that is not the same, though by their configs it should be.

    That is all of ``trained_with`` for runs of one setting, and the training data for those with the same ``data``.

    Args:
        records: of ``trained_with``, by the name of the run.
        configs: of each run.
        settings: of each run.
    """
    of_data = [
        as_json({key: own for key, own in _relevant(one).items() if key.startswith("data.") and "test" not in key})
        for one in configs
    ]
    parts: list[str] = []
    for key in dict.fromkeys(key for record in records.values() for key in record):
        groups: dict[str, dict[str, Any]] = {}
        alike = of_data if key.partition(".")[0] in _SPLITS else map(as_json, settings)
        for group, (name, record) in zip(alike, records.items(), strict=True):
            if key in record:
                groups.setdefault(group, {})[name] = record[key]
        parts += [f"{key} is {shown}" for values in groups.values() if (shown := unlike(values))]
    named = "Runs whose configs differ by the seed alone, or not in their data, were not trained alike"
    return [f"{named}: {'; '.join(parts)}"] if parts else []


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's keys that are of its setting, without those of stages that it does not run."""
    values = upgraded(config)
    run = list(values["stage"]["run"])
    stages = {name: value for name, value in values["stage"].items() if name in run}
    flat = flatten({**values, "stage": {"run": run, **stages}})
    return {
        key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{no}.") for no in OF_NO_SETTING)
    }


def _groups(flat: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[int]:
    """Number of each run's group, of those that have the same values of some keys, in the order of the runs."""
    values = [tuple(as_json(one[key]) if key in one else None for key in keys) for one in flat]
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return [numbers[value] for value in values]


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return value if isinstance(value, str) else as_json(value)


def _short(key: str) -> str:
    """A key as it is written on the command line."""
    return key.removeprefix("model.").removesuffix(".type")
