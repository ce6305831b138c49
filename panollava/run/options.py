"""Plain keys of the commands that evaluate and compare runs, apart from what they do: ``--help`` needs no PyTorch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from panollava.data.scenes.scene import LEVELS

BenchmarkName = Literal["panospace", "bench360", "panoenv", "direction360", "quic360"]
"""As ``evaluation.benchmarks.protocol.Name``."""
OF_CAPTIONS = "quic360"
"""The benchmark whose answers are scored by their words."""


@dataclass(frozen=True)
class AskOptions:
    """Keys of the commands that ask runs about a split: its data, and where and how it is asked."""

    split: Literal["train", "val", "test"]
    csv_input: str | None
    score_by: list[str] | None
    world_seed: Annotated[int, Interval(ge=0, lt=2**32)] | None
    world_level: Annotated[int, Interval(ge=1, le=len(LEVELS))] | None
    world_scenes: Annotated[int, Interval(ge=1)] | None
    batch_size: Annotated[int, Interval(ge=1)] | None
    results_dir: str
    device: str
    num_workers: Annotated[int, Interval(ge=0)]
    allow: str | list[str]


@dataclass(frozen=True)
class EvalOptions(AskOptions):
    """Keys of ``conf/eval.yaml``; see there."""

    checkpoint: str | None
    config: str | None
    turn_deg: float | None
    benchmark: BenchmarkName | None
    benchmark_files: str | None
    images: str | None
    max_samples: Annotated[int, Interval(ge=1)] | None
    blank: bool | None
    loss: bool
    words: Literal["auto", "ptb", "unicode"] | None
    meteor: bool | None
    clip: str | None
    metrics: list[str] | None
    log_samples: bool
    log_interval: Annotated[int, Interval(ge=1)]
    log_max_samples: Annotated[int, Interval(ge=0)]


@dataclass(frozen=True)
class BenchmarkFolder:
    """Key of ``conf/eval.yaml``'s section ``data``."""

    dir: str | None


@dataclass(frozen=True)
class CompareOptions(AskOptions):
    """Keys of ``conf/compare.yaml``; see there."""

    runs: list[str]
    mlflow_experiment: str | None
    max_samples: Annotated[int, Interval(ge=1)] | None
    table: Literal["latex", "markdown", "csv"] | None
    words: Literal["auto", "ptb", "unicode"]
    out: str
