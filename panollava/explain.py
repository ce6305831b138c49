"""python -m panollava.explain checkpoint=<run folder>: draws what a model sees and reads over a panorama."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from omegaconf import DictConfig, OmegaConf

from panollava.config.check import check_section, refuse
from panollava.config.entrypoint import entrypoint
from panollava.crop.crop import Crop
from panollava.data.fetch import FetchOptions
from panollava.data.scenes.questions import CAPTION_REQUEST
from panollava.evaluation.explain import explain_picture
from panollava.logs import LOG, configure_console
from panollava.model.api import PanoLlava, VisionPart
from panollava.run.config_check import check_tracking
from panollava.run.image_commands import (
    check_fetch,
    checked_out,
    named_panorama,
    read_twice,
    world_scene,
    write_picture,
)
from panollava.run.run import open_tracker
from panollava.run.sections import check_generation
from panollava.training.precision import choose_compute


@dataclass(frozen=True)
class ExplainOptions:
    """Plain keys of ``conf/explain.yaml``; see there."""

    checkpoint: str
    image: str | None
    question: str | None
    answer: str | None
    yaw: float
    pitch: Annotated[float, Interval(ge=-90.0, le=90.0)]
    layers: list[Annotated[int, Interval(ge=1)]] | None
    device: str
    out: str
    allow: str | list[str]


@entrypoint("explain")
def main(cfg: DictConfig) -> None:
    """Draws one picture.

    Args:
        cfg: composed from ``conf/explain.yaml`` and the command line.
    """
    configure_console()
    options, fetch, tracking, generation = _checked(cfg)
    image = None if options.image is None else named_panorama(options.image, fetch)
    out = checked_out(Path(options.out).expanduser(), image, "explain.png")
    compute = choose_compute(options.device, "auto", section="")
    part = VisionPart.from_pretrained(
        options.checkpoint, device=compute.device, dtype=compute.dtype, allow=options.allow
    )
    if part.pano is not None:
        part.pano.generation = part.pano.generation.changed(generation)
    panorama, seen, question = _subject(image, part.crop)
    with compute.autocast():
        asked = _asked(part.pano, seen, options.question or question, options)
        picture, notes = explain_picture(
            panorama,
            part.crop.views(seen),
            **vars(part),
            asked=asked,
            layers=options.layers,
            yaw_deg=options.yaw,
            pitch_deg=options.pitch,
        )
    write_picture(out, picture)
    for note in notes:
        LOG.info("%s", note)
    tags = {"panollava.folder": options.checkpoint}
    with open_tracker(tracking, run_name=f"explain {part.name}", outbox=out.parent, tags=tags) as tracker:
        tracker.image(picture, "explain.png")
    LOG.info("Picture: %s", out)


def _subject(image: Path | None, crop: Crop) -> tuple[np.ndarray, np.ndarray, str]:
    """The panorama at the resolution of the picture, as the crop reads it, and the default question."""
    if image is not None:
        return *read_twice(image, crop), CAPTION_REQUEST
    scene = world_scene("test")
    panorama = scene.panorama(0)
    return panorama, panorama, next(one.question for one in scene.questions() if not one.history)


def _asked(
    pano: PanoLlava | None, panorama: np.ndarray, question: str, options: ExplainOptions
) -> tuple[str, str] | None:
    """The question and its answer; None where there is no language model to answer."""
    if pano is None:
        return None
    answer = options.answer
    if answer is None:
        answer = pano.generate(panorama, question)
    LOG.info("Question: %s", question)
    LOG.info("Answer: %s", answer)
    return question, answer


def _checked(cfg: DictConfig) -> tuple[ExplainOptions, FetchOptions, dict[str, Any], dict[str, Any]]:
    if OmegaConf.is_missing(cfg, "checkpoint"):
        raise ValueError("checkpoint is missing: name a run, such as checkpoint=runs/demo.")
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    tracking, fetch, generation = (values.pop(key) for key in ("tracking", "fetch", "generation"))
    problems = check_section(values, ExplainOptions, "") + check_fetch(fetch) + check_tracking(tracking)
    refuse(problems + check_generation(generation, recorded=True))
    return ExplainOptions(**values), FetchOptions(**fetch), tracking, generation


if __name__ == "__main__":
    main()
