"""What a sweep can see: the smallest difference between settings that its numbers of seeds and questions can show."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panollava.config.sweep_arguments import RECORD
from panollava.data.source import Question
from panollava.evaluation.measure import AUTO, KEY, as_asked, choose_measure
from panollava.evaluation.metrics import EXACT, METRICS, AnswerSet, Metric, find_metric
from panollava.evaluation.seeds import POWER, seeds_needed, spread_of, visible
from panollava.evaluation.statistics import LEVEL, least_groups, normal
from panollava.logs import counted
from panollava.run.sources import build_source
from panollava.stages.registry import STAGES

NUMBERS = "sweep.csv"
WANTED = 0.02
"""The difference, of a share, for which the number of seeds is told."""
SPREADS = {EXACT: (0.0057, "experiments/resamplers, a study on level 1 of the built-in world")}
"""Standard deviation between the seeds of a setting and its source, by measure, for a folder without earlier sweeps."""
ALIKE = ("data.name", "data.type", "data.dir", "data.level", "model.vision.name", "model.language.name")
"""Keys beside the epochs that an earlier sweep has as this one, if both have them."""
SPLITS = ("train_", "val_", "test_")
"""Keys of ``data`` that begin with these are among them."""
ALIKE_OR_NULL = ("data.kinds", "trainer.max_steps")
"""More of them, of which null is a value."""


@dataclass(frozen=True)
class Spread:
    """How much the seeds of a setting differ."""

    value: float  # standard deviation
    source: str


@dataclass(frozen=True)
class Design:
    """The numbers that determine what a sweep can see."""

    settings: int
    seeds: int  # of the setting that has fewest
    questions: int | None = None  # None where unknown
    pictures: int | None = None

    def lines(self, spread: Spread | None, measure: str = EXACT, top: float = 1.0) -> list[str]:
        """What it can see, in sentences; `top` is the highest value of the measure."""
        pairs = self.settings * (self.settings - 1) // 2
        seeds = "one seed each" if self.seeds == 1 else f"{self.seeds} seeds each"
        parts = [counted(self.settings, "setting"), seeds]
        if self.questions is not None and self.pictures is not None:
            parts.append(f"{counted(self.questions, 'question')} about {counted(self.pictures, 'picture')}")
        first = [f"What this sweep can see by {measure}: {', '.join(parts)}."]
        if self.settings == 1:
            return [f"{first[0]} There is no other setting to compare it with."]
        if self.seeds == 1:
            first.append("One seed each can show no difference between settings, only between these trained models.")
        if spread is None:
            first.append("How much the seeds of a setting differ is not known yet.")
        else:
            first.append(_seen(3 if self.seeds == 1 else self.seeds, spread, pairs, top))
        lines = [" ".join(first)]
        if measure == EXACT and self.questions and self.pictures:
            lines.append(self._by_picture(self.questions, self.pictures, LEVEL / pairs))
        return lines

    def _by_picture(self, questions: int, pictures: int, level: float) -> str:
        if pictures < (least := least_groups(level)):
            return f"By picture nothing can be shown: there are {pictures}, and it takes {least} at least."
        # Of models that are right half of the time, independently of each other and, which is the best case, of other
        # questions about a picture.
        share = (normal(level) + normal(2 - 2 * POWER)) * math.sqrt(0.5 / questions)
        return f"By picture, two trained models of 50 % are told apart at best from some {_size(share, 1)} on."


def _seen(seeds: int, spread: Spread, pairs: int, top: float) -> str:
    level = LEVEL / pairs
    smallest = visible(seeds, spread.value, level)
    wanted = WANTED if top == 1 else smallest / 2
    of_pairs = f" over all {pairs} pairs" if pairs > 1 else ""
    found = "no difference is large enough to be" if smallest > top else f"a difference of {_size(smallest, top)} is"
    return (
        f"With {seeds} seeds each, {found} found with a probability of 80 %; one of {_size(wanted, top)} needs "
        f"{seeds_needed(spread.value, wanted, level):,} seeds each (seeds of a setting differ by "
        f"{_size(spread.value, top)}, {spread.source}; Welch's test at 5 %{of_pairs})."
    )


def _size(value: float, top: float) -> str:
    return f"{f'{100 * value:.1f}'.removesuffix('.0')} points" if top == 1 else f"{value:.3f}"


def announcement(config: DictConfig) -> list[str]:
    """What a sweep that is about to start can see; nothing where its jobs are not compared, or not known before.

    Args:
        config: of the sweep, without the swept values.
    """
    jobs = _jobs(config)
    last = STAGES.get(config.stage.run[-1])  # of a stage of another package it is not known here
    measure = str(config.evaluation.measure)
    is_known = measure == AUTO or measure in METRICS  # other packages are imported by the jobs
    if not jobs or not is_known or not config.evaluation.enabled or (last is not None and not last.answers):
        return []
    settings: dict[tuple[tuple[str, str], ...], set[str]] = {}
    for job in jobs:
        setting = tuple(sorted((key, value) for key, value in job.items() if key != "seed"))
        settings.setdefault(setting, set()).add(job.get("seed", ""))
    varied = {key for job in jobs for key in job}
    is_common = not any(key.split(".")[0] in ("data", "evaluation") for key in varied)
    questions = _questions(config) if is_common else None
    metric = _measure(measure, questions)
    asked = (None, None) if questions is None else (len(questions), len({one.image_id for one in questions}))
    design = Design(len(settings), min(map(len, settings.values())), *asked)
    spread = known_spread(Path(config.output_dir).expanduser(), config, metric.name, asked[0])
    return design.lines(spread, metric.name, metric.top)


def _jobs(config: DictConfig) -> list[dict[str, str]]:
    """Each job's swept values; empty for a sweeper that chooses them on the way."""
    if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return []
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    hydra = GlobalHydra.instance()
    parser = OverridesParser.create(hydra.config_loader() if hydra.is_initialized() else None)  # which glob(…) needs
    given = parser.parse_overrides([*params, *config.hydra.overrides.task])
    batches = BasicSweeper.split_arguments(given, None)
    jobs = [dict(word.lstrip("+").partition("=")[::2] for word in job) for batch in batches for job in batch]
    constant = [key for key in jobs[0] if len({job.get(key) for job in jobs}) == 1 and key != "seed"]
    return [{key: value for key, value in job.items() if key not in constant} for job in jobs]


class _AnyPicture:
    """Accepts every picture unseen: here, questions are only counted."""

    def read(self, path: Path) -> Any:
        raise NotImplementedError(f"{path} is not needed to count questions.")

    def check(self, path: str) -> None:
        """Accepts it."""


def _questions(config: DictConfig) -> list[Question] | None:
    """Those of the test set, None where the data cannot be read."""
    try:
        questions = build_source(_plain(config.data), "test", _AnyPicture()).questions()
    except (ValueError, OSError):  # each job says what is wrong
        return None
    return questions[: config.evaluation.max_samples]


def _measure(asked: str, questions: Sequence[Question] | None) -> Metric:
    """What will rank the jobs; exact match where that is not known before the first of them."""
    if asked in METRICS:
        return find_metric(asked, KEY)
    return find_metric(EXACT, KEY) if not questions else choose_measure(AUTO, AnswerSet(as_asked(questions))).metric


def known_spread(
    folder: Path, config: Mapping[str, Any], measure: str = EXACT, questions: int | None = None
) -> Spread | None:
    """How much the seeds of a setting differ: in the sweeps of a folder, else in the table ``SPREADS``.

    Args:
        folder: ``output_dir``; of its sweeps, those on other data, with other backbones or of another length are left
            out: a pilot says nothing of the spread of a whole training.
        config: of the sweep, or of one of its jobs.
        questions: of the test set, None where unknown; scores on other numbers of them are left out.
    """
    groups: list[list[float]] = []
    names, now = [], config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    for path in sorted(folder.glob(f"*/{NUMBERS}")):
        own = _seed_scores(path, measure.replace(" ", "_"), questions, now)
        if own and _is_alike(path.with_name(RECORD), now):
            groups += own
            names.append(str(path.parent))
    if (value := spread_of(groups)) is not None:
        return Spread(value, f"as in {names[0]}" if len(names) == 1 else f"as in {len(names)} sweeps in {folder}")
    if measure not in SPREADS:
        return None
    value, source = SPREADS[measure]
    return Spread(value, f"as in {source}")


def _seed_scores(path: Path, column: str, questions: int | None, now: DictConfig) -> list[list[float]]:
    """Scores of the seeds of each setting that has several, in the ``sweep.csv`` of a sweep.

    Jobs are left out whose value of a swept key is not that of ``now``, though it should be.
    """
    asked = None if questions is None else str(questions)
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"seed", "status", column} <= rows[0].keys():
        return []
    header = list(rows[0])
    keys = [key for key in header[1 : header.index("status")] if key != "seed"]
    settings: dict[tuple[str, ...], list[float]] = {}
    fixed = {key: OmegaConf.select(now, key) for key in {*_alike_keys(now)}.intersection(keys)}
    for row in rows:
        if any(yaml.safe_load(row[key]) != value for key, value in fixed.items()):
            continue
        if row["status"] == "finished" and row[column] and (asked is None or row.get("questions", asked) == asked):
            settings.setdefault(tuple(row[key] for key in keys), []).append(float(row[column]))
    return [scores for scores in settings.values() if len(scores) > 1]


def _alike_keys(now: DictConfig) -> list[str]:
    """Keys in which an earlier sweep is as this one: of its data, its backbones, its epochs and its steps."""
    epochs = [f"stage.{stage}.epochs" for stage in OmegaConf.select(now, "stage.run") or ()]
    files = [f"data.{key}" for key in OmegaConf.select(now, "data") or () if key.startswith(SPLITS)]
    return list(dict.fromkeys(["stage.run", *epochs, *files, *ALIKE, *ALIKE_OR_NULL]))


def _is_alike(record: Path, now: DictConfig) -> bool:
    """Whether the sweep of a record has the same data set, backbones, epochs and steps."""
    if not record.is_file():
        return False
    recorded = OmegaConf.load(record)
    try:
        pairs = {key: [OmegaConf.select(each, key) for each in (recorded, now)] for key in _alike_keys(now)}
    except OmegaConfBaseException:  # of a version that had other resolvers
        return False
    return all(old == new or (None in (old, new) and key not in ALIKE_OR_NULL) for key, (old, new) in pairs.items())


def _plain(section: DictConfig) -> Any:
    return OmegaConf.to_container(section, resolve=True)
