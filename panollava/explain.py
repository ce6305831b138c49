"""python -m panollava.explain checkpoint=<run folder>: draws what a model sees and reads over a panorama."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval
from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.logs import LOG

if TYPE_CHECKING:
    import numpy as np

    from panollava.model.api import PanoLlava


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
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    out: str
    allow: str | list[str]


@entrypoint("explain", positional=("checkpoint", "image", "question"))
def main(cfg: DictConfig) -> None:
    """Draws one picture."""
    from panollava.run.sections import RUN_EXAMPLE, read_config  # here, so that --help needs no PyTorch

    options, sections = read_config(cfg, ExplainOptions, required=["checkpoint"], example=RUN_EXAMPLE)

    from panollava.data.fetch import FetchOptions
    from panollava.data.scenes.questions import CAPTION_REQUEST
    from panollava.data.world import WorldSource
    from panollava.evaluation.drawing import encode_png
    from panollava.evaluation.explain import explain_picture
    from panollava.model.api import VisionPart
    from panollava.run.image_commands import (
        PANORAMA_SIZE,
        checked_out,
        command_compute,
        named_panorama,
        read_twice,
        write_out,
    )
    from panollava.run.tracker import open_tracker
    from panollava.run_folder import find_trained, is_run

    image = None if options.image is None else named_panorama(options.image, FetchOptions(**sections["fetch"]))
    out = checked_out(Path(options.out).expanduser(), [] if image is None else [image], "explain.png")
    compute = command_compute(options.checkpoint, options.device, options.precision)
    part = VisionPart.from_pretrained(
        options.checkpoint, device=compute.device, dtype=compute.dtype, allow=options.allow
    )
    if part.pano is not None:
        part.pano.generation = part.pano.generation.changed(sections["generation"])
    if image is not None:
        question = CAPTION_REQUEST
        panorama, seen = read_twice(image, part.crop)
    else:
        scene = WorldSource(split="test", scenes=1, height=PANORAMA_SIZE[0])
        question = next(one.question for one in scene.questions() if not one.history)
        panorama = seen = scene.panorama(0)
    with compute.autocast():
        asked = _answered(part.pano, seen, options.question or question, options.answer)
        picture, notes = explain_picture(
            panorama,
            part.crop.cut(seen),
            **vars(part),
            asked=asked,
            layers=options.layers,
            yaw_deg=options.yaw,
            pitch_deg=options.pitch,
        )
    write_out(out, encode_png(picture))
    for note in notes:
        LOG.info("%s", note)
    tags = {"panollava.folder": options.checkpoint}
    opened, name = Path(options.checkpoint).expanduser(), f"explain {part.name}"
    about = [find_trained(opened)[1]] if is_run(opened) else []
    with open_tracker(
        sections["tracking"], run_name=name, outbox=out.parent, tags=tags, job="explain", about=about
    ) as tracker:
        tracker.image(picture, "explain.png")
    LOG.info("Picture: %s", out)


def _answered(
    pano: PanoLlava | None, panorama: np.ndarray, question: str, answer: str | None
) -> tuple[str, str] | None:
    """The question and its answer; None where there is no language model to answer."""
    if pano is None:
        return None
    answer = pano.generate(panorama, question) if answer is None else answer
    LOG.info("Question: %s", question)
    LOG.info("Answer: %s", answer)
    return question, answer


if __name__ == "__main__":
    main()
