"""A job of a sweep, read from what the run left on disk: its settings, its numbers, its answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import safe_open

from panollava.assemble.conditions import fingerprint
from panollava.assemble.status import FINISHED
from panollava.checkpoint import BEST, TRAINED, follow
from panollava.evaluation.answers import is_correct
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.read_predictions import read_answers
from panollava.evaluation.results import METRICS
from panollava.evaluation.seeds import Repeat
from panollava.logs import LOG
from panollava.pipeline.results_of import Answers
from panollava.run_folder import CONFIG, STAGES
from panollava.store.pictures import KnownPictures
from panollava.untrusted import read_document

NUMBERS = ("seconds", "samples_per_second", "peak_memory_gb", "validation_loss")
"""What is read of each stage's state."""


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        name: its folder's.
        config: of its last stage.
        stages: state of each finished stage, by stage.
        metrics: of its evaluation; empty without one.
        predictions: likewise.
        parameters: of its resampler.
    """

    name: str
    config: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Any]
    predictions: Sequence[Prediction]
    parameters: int

    @property
    def answers(self) -> Answers:
        """Its answers, with what they depend on as far as that is recorded."""
        return Answers(self.predictions, self.image_tokens, self.metrics["settings"].get("conditions") or {})

    @property
    def image_tokens(self) -> int:
        """Tokens that a panorama takes in the language model, as its evaluation tells."""
        return int(self.metrics["settings"]["image_tokens"])

    def numbers(self) -> dict[str, float]:
        """``<stage>_<number>`` of each stage, and what the evaluation found."""
        found = {
            f"{stage}_{number}": float(state[number])
            for stage, state in self.stages.items()
            for number in NUMBERS
            if state.get(number) is not None
        }
        if self.metrics:
            found |= {"questions": self.metrics["count"], "exact_match": self.metrics["exact_match"]}
            if self.metrics["blank_exact_match"] is not None:
                found["blank"] = self.metrics["blank_exact_match"]
            found |= {"image_tokens": self.image_tokens, "latency_s": self.metrics["latency"]["mean_s"]}
        return found | {"resampler_parameters": self.parameters}

    def repeat(self, setting: Sequence[str]) -> Repeat:
        """Its answers as those of one seed of a setting."""
        return Repeat(
            setting=tuple(setting),
            correct={one.sample_id: float(is_correct(one.prediction, one.references)) for one in self.predictions},
            scene_of={one.sample_id: one.image_id for one in self.predictions},
            facts={"image tokens": str(self.image_tokens), "parameters": f"{self.parameters:,}"},
        )


def read_job(folder: Path, workplace: Path = Path()) -> Job | None:
    """Reads a job, or nothing where no stage of it is finished.

    Args:
        folder: the job's.
        workplace: folder in which the sweep was started; results lie below it.
    """
    path = folder / STAGES
    states = read_document(path)["stages"] if path.is_file() else {}
    done = {key: state for key, state in states.items() if state["status"] == FINISHED}
    if not done:
        return None
    last, state = list(done.items())[-1]
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / last / CONFIG))
    results = workplace / state["evaluated"] if state.get("evaluated") else None
    metrics = read_document(results / METRICS) if results and (results / METRICS).is_file() else {}
    best = follow(folder / last / BEST)
    if (
        metrics
        and best
        and metrics["settings"].get("fingerprint") not in (None, fingerprint(best, KnownPictures(None)))
    ):
        LOG.warning(
            "%s: its answers in %s are of earlier weights, and are left out of the report.", folder.name, results
        )
        metrics = {}
    predictions: Sequence[Prediction] = ()
    if results and metrics:
        try:
            predictions = read_answers(results, metrics)
        except (OSError, ValueError) as error:
            LOG.warning("%s: its evaluation is left out of the report: %s.", folder.name, str(error).rstrip("."))
            metrics = {}
    return Job(
        name=folder.name,
        config=config,
        stages={key.partition("/")[0]: one for key, one in done.items()},
        metrics=metrics,
        predictions=predictions,
        parameters=_resampler_parameters(folder / last),
    )


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _resampler_parameters(stage_folder: Path) -> int:
    """Counted in the best checkpoint, of which only the head is read."""
    best = follow(stage_folder / BEST)
    if best is None:
        return 0
    with safe_open(best / TRAINED, framework="numpy") as tensors:
        names = [name for name in tensors.keys() if name.startswith("vision.resampler.")]  # noqa: SIM118
        shapes = [tensors.get_slice(name).get_shape() for name in names]
    return sum(math.prod(shape) for shape in shapes)
