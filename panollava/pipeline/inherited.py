"""Backbones that an earlier stage trained further: which they are, and whether they are this run's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from panollava.assemble.run import Run
from panollava.model.trainable import ENCODER, LANGUAGE_MODEL, is_backbone
from panollava.run_folder import METADATA, read_metadata

BACKBONES = {"vision": ENCODER, "language": LANGUAGE_MODEL}
"""How the names of each backbone's weights begin."""


def trained_backbones(names: Iterable[str]) -> list[str]:
    """Which backbones are no longer the ones that the config names, by the names of a checkpoint's tensors.

    Features kept of the named encoder must not stand in for those of a trained one, ``vision`` here.
    """
    held = list(names)
    return [part for part, prefix in BACKBONES.items() if any(_is_of(name, prefix) for name in held)]


def check_backbones(
    run: Run, name: str, source: Path, tensors: Mapping[str, Tensor], places: Mapping[str, nn.Parameter]
) -> None:
    """Refuses a checkpoint that trained another encoder or language model than this run's.

    Args:
        run: the run.
        name: of its stage.
        source: the checkpoint.
        tensors: its weights.
        places: weights of the stage's model, by name.

    Raises:
        ValueError: a trained backbone has another name or other shapes, or ``lora.save_only`` would lose it.
    """
    path = source.parent / METADATA
    recorded = read_metadata(source.parent)["model"] if path.is_file() else {}
    for part in trained_backbones(tensors):
        if part == "language" and name == "vision":
            continue  # there is none in this stage
        own = [key for key in tensors if _is_of(key, BACKBONES[part])]
        strange = [key for key in own if key not in places or places[key].shape != tensors[key].shape]
        named = run.cfg.model[part].name
        other = recorded.get(part, {}).get("name", named)
        if strange or other != named:
            raise ValueError(
                f"init_from={source} trained its own {part} backbone, from {other}, and this run names {named}"
                f"{' (' + strange[0] + ' has no place in it)' if strange else ''}. Use {part}.name={other}, or a "
                "checkpoint that left it frozen, or init_from=none."
            )
        if part == "language" and run.cfg.model.lora.save_only:
            raise ValueError(
                f"init_from={source} trained weights of the language model, which lora.save_only=true would not save. "
                "Set it to false, or start from another checkpoint."
            )


def _is_of(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and is_backbone(name)
