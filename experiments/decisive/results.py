"""The study's contrasts, and one JSON file for each finished job: ``raw/<arm>_seed-<seed>.json``.

Everything in the report comes from these files, so they are committed, and a job that has one never runs again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from panollava.disk import write_file
from panollava.evaluation.metrics import EXACT, AnswerSet, find_metric
from panollava.evaluation.predictions import as_scored
from panollava.run.settings import settings_of
from panollava.run.sweep_report import Job, read_job
from panollava.run_folder import flatten, is_free

HERE = Path(__file__).parent
CONTRASTS, RAW, CONFIGS = "contrasts.yaml", "raw", "configs"
MOST_CONTRASTS = 15
LIBRARIES = ("torch", "transformers", "numpy")
UNEQUAL = 0.03
"""Share of the middle of the smallest and the largest number of image tokens by which an arm's may differ from it."""


@dataclass(frozen=True)
class Contrast:
    """Two arms of which the second one's mean score less the first one's is tested."""

    about: str
    first: str
    second: str


@dataclass(frozen=True)
class Study:
    """What was written before the first job."""

    seeds: tuple[int, ...]
    contrasts: tuple[Contrast, ...]
    digest: str  # of the file
    folder: Path

    @property
    def arms(self) -> list[str]:
        """All arms of the contrasts, in their order."""
        return list(dict.fromkeys(arm for one in self.contrasts for arm in (one.first, one.second)))

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """Arm and seed of every job, all arms of a seed before the next one: each contrast has a pair of jobs early."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]


def read_study(folder: Path = HERE) -> Study:
    """Reads ``contrasts.yaml``. Raises ValueError if it is not what a study needs."""
    path = folder / CONTRASTS
    content = path.read_bytes()
    try:
        document = yaml.safe_load(content)
        contrasts = tuple(Contrast(**one) for one in document["contrasts"])
        seeds = tuple(document["seeds"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{path} needs seeds, and contrasts with about, first and second: {error}.") from error
    pairs = {frozenset((one.first, one.second)) for one in contrasts}
    if not 1 <= len(contrasts) <= MOST_CONTRASTS or len(pairs) < len(contrasts) or any(len(one) < 2 for one in pairs):
        raise ValueError(f"{path}: allowed are 1 to {MOST_CONTRASTS} contrasts of two arms, each once.")
    if len(set(seeds)) < len(seeds) or not all(type(seed) is int for seed in seeds) or not seeds:
        raise ValueError(f"{path}: seeds={list(seeds)} are not whole numbers, each once.")
    return Study(seeds, contrasts, hashlib.sha256(content).hexdigest()[:16], folder)


@dataclass(frozen=True)
class Result:
    """A finished job; the report needs nothing else of it."""

    arm: str
    seed: int
    contrasts: str  # digest of the contrasts that it was run for
    exact_match: float
    kinds: Mapping[str, tuple[int, int]]  # right answers and questions of each question type
    right: Sequence[int]  # right answers about each picture, in the order of the test set
    asked: Sequence[int]  # questions about each picture
    test_set: str  # digest of the questions and their references
    setting: str  # digest of the config without the seed and what may change on resuming, epochs excepted
    image_tokens: int
    resampler_parameters: int
    seconds: Mapping[str, float]  # of each stage
    losses: Mapping[str, float]  # validation loss of each stage
    learning: str  # still learning when its training ended: yes, no or unknown
    learning_why: str
    latency_s: float
    libraries: Mapping[str, str]  # some also name a panollava, the installed one, which need not be the one that ran
    commit: str  # of the code that ran
    processor: str

    @property
    def name(self) -> str:
        """Of its file, without the suffix, and of its run."""
        return job_name(self.arm, self.seed)

    @property
    def made_with(self) -> dict[str, str]:
        """The commit, libraries and processor, which should be those of all jobs."""
        libraries = {name: self.libraries.get(name, "") for name in LIBRARIES}
        return {"commit": self.commit, **libraries, "processor": self.processor}


def job_name(arm: str, seed: int) -> str:
    """``<arm>_seed-<seed>``, the name of a job's run and of its file."""
    return f"{arm}_seed-{seed}"


def read_results(study: Study) -> list[Result]:
    """All results, in the order of the jobs.

    Raises:
        ValueError: the contrasts have changed since one was made, or they do not belong together.
    """
    found = {}
    for path in sorted((study.folder / RAW).glob("*.json")):
        try:
            one = Result(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no result ({error}). Remove it, and its job runs again.") from error
        if one.contrasts != study.digest:
            raise ValueError(
                f"{study.folder / CONTRASTS} has changed since {path.name} was made (digest {one.contrasts} there, "
                f"{study.digest} now). Contrasts are written before the first job: restore the file, or remove all of "
                f"{path.parent} and start again."
            )
        if (one.arm, one.seed) not in study.jobs or one.name != path.stem:
            raise ValueError(f"{path} is of arm {one.arm} and seed {one.seed}, which is no job of this study here.")
        found[one.arm, one.seed] = one
    _check_alike(list(found.values()))
    return [found[job] for job in study.jobs if job in found]


def _check_alike(results: Sequence[Result]) -> None:
    """Raises ValueError unless all have one test set, an arm has one setting, and image tokens are equal."""
    if not results:
        return
    for one in results:
        if (one.test_set, list(one.asked)) != (results[0].test_set, list(results[0].asked)):
            raise ValueError(
                f"{one.name} and {results[0].name} answered other questions: remove one, and run it again."
            )
        first = next(other for other in results if other.arm == one.arm)
        if one.setting != first.setting:
            raise ValueError(f"{one.name} has another config than {first.name}: remove one, and run it again.")
    ordered = sorted(results, key=lambda one: one.image_tokens)
    fewest, most = ordered[0], ordered[-1]
    middle = (fewest.image_tokens + most.image_tokens) / 2
    if most.image_tokens - middle > UNEQUAL * middle:
        raise ValueError(
            f"{fewest.name} has {fewest.image_tokens} image tokens and {most.name} {most.image_tokens}: arms are equal "
            f"where they are within {UNEQUAL:.0%} of the middle."
        )


def write_result(study: Study, arm: str, seed: int, run: Path, workplace: Path) -> Result:
    """Writes the file of a finished job, and of a first one its arm's config.

    Args:
        study: whose folder it goes into.
        arm, seed: of the job.
        run: its folder.
        workplace: the folder in which it was started.

    Raises:
        ValueError: it is not finished or not evaluated, or it is of another arm or seed by its config.
    """
    job = read_job(run, workplace)
    if job is None or not job.predictions:
        raise ValueError(f"{run} is not finished, or not evaluated.")
    if job.config["seed"] != seed:
        raise ValueError(f"{run} has seed {job.config['seed']}, and not {seed}.")
    for path in sorted((study.folder / CONFIGS).glob("*.yaml")):
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
        _, differing = settings_of([known, job.config], [job.stage] * 2)
        if path.stem == arm and differing:
            raise ValueError(f"{run} is not of arm {arm}: its config differs from {path} in {', '.join(differing)}.")
        if path.stem != arm and not differing:
            raise ValueError(f"{run} is of arm {path.stem}, and not of {arm}: its config is that of {path}.")
    one = _result(job, arm, seed, study.digest)
    write_file(study.folder / RAW / f"{one.name}.json", _json(one))
    path = study.folder / CONFIGS / f"{arm}.yaml"
    if not path.exists():
        write_file(path, yaml.safe_dump(job.config, sort_keys=False))
    return one


def _result(job: Job, arm: str, seed: int, digest: str) -> Result:
    right = find_metric(EXACT, "").per_answer(AnswerSet(as_scored(job.predictions)))
    kinds, pictures = (
        {
            name: (sum(int(r) for r, mine in zip(right, names, strict=True) if mine == name), count)
            for name, count in Counter(names).items()
        }
        for names in ([one.kind for one in job.predictions], [one.image_id for one in job.predictions])
    )
    questions = [(one.sample_id, one.question, one.references) for one in job.predictions]
    plain = {
        key: value
        for key, value in flatten(job.config).items()
        if key.endswith(".epochs") or not (is_free(key) or key == "seed")
    }
    return Result(
        arm=arm,
        seed=seed,
        contrasts=digest,
        exact_match=round(float(right.mean()), 6),
        kinds=dict(sorted(kinds.items())),
        right=[one for one, _ in pictures.values()],
        asked=[count for _, count in pictures.values()],
        test_set=_digest(questions),
        setting=_digest(sorted(plain.items())),
        image_tokens=job.image_tokens,
        resampler_parameters=job.parameters,
        seconds={stage: state["seconds"] for stage, state in job.stages.items()},
        losses={stage: round(state["validation_loss"], 6) for stage, state in job.stages.items()},
        learning="unknown" if job.learning is None else job.learning.verdict,
        learning_why="" if job.learning is None else job.learning.why,
        latency_s=round(job.metrics["latency"]["mean_s"], 5),
        libraries={name: version(name) for name in LIBRARIES},
        commit=_commit(),
        processor=processor(),
    )


def _json(one: Result) -> str:
    """A line a key, lists in one line."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in asdict(one).items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def _commit() -> str:
    """Of the code, with a plus where it was changed; empty outside a repository."""
    shown = ["git", "-C", str(HERE), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor() -> str:
    """Model of the processor and its number of cores."""
    model = platform.processor() or platform.machine()
    known = Path("/proc/cpuinfo")
    if known.is_file() and (match := re.search(r"^model name\s*: (.+)$", known.read_text(), re.MULTILINE)):
        model = match[1]
    return f"{model}, {os.cpu_count()} cores"
