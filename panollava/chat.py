"""python -m panollava.chat: several turns about a panorama, in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from panollava.config.check import check_section, refuse
from panollava.config.entrypoint import entrypoint
from panollava.data.fetch import FetchOptions
from panollava.logs import configure_console
from panollava.model.api import PanoLlava
from panollava.run.chat import Chat
from panollava.run.image_commands import check_fetch
from panollava.run.sections import check_generation
from panollava.training.precision import choose_compute


@dataclass(frozen=True)
class ChatOptions:
    """Plain keys of ``conf/chat.yaml``; see there."""

    checkpoint: str
    image: str | None
    device: str
    allow: str | list[str]


@entrypoint("chat")
def main(cfg: DictConfig) -> None:
    """Opens a model and talks.

    Args:
        cfg: composed from ``conf/chat.yaml`` and the command line.
    """
    configure_console()
    options, fetch, generation = _checked(cfg)
    compute = choose_compute(options.device, "auto", section="")
    pano = PanoLlava.from_pretrained(
        options.checkpoint, device=compute.device, dtype=compute.dtype, allow=options.allow
    )
    pano.generation = pano.generation.changed(generation)
    chat = Chat(pano, fetch=fetch)
    with compute.autocast():
        if options.image is not None:
            chat.open(options.image)
        chat.run()


def _checked(cfg: DictConfig) -> tuple[ChatOptions, FetchOptions, dict[str, Any]]:
    if OmegaConf.is_missing(cfg, "checkpoint"):
        raise ValueError("checkpoint is missing: name a run, such as checkpoint=runs/demo.")
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    fetch, generation = values.pop("fetch"), values.pop("generation")
    problems = check_section(values, ChatOptions, "") + check_fetch(fetch)
    refuse(problems + check_generation(generation, recorded=True))
    return ChatOptions(**values), FetchOptions(**fetch), generation


if __name__ == "__main__":
    main()
