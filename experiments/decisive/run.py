"""Runs the jobs of the study that have no result yet: ``python -m experiments.decisive.run --minutes 60 --jobs 2``.

Jobs run seed by seed, each as ``python -m panollava.train +experiment=decisive +experiment/decisive=<arm> seed=<n>``.
Started again, it never repeats a job with a file in ``raw/``, and resumes one that was stopped. ``--collect
runs/decisive`` runs nothing, and reads the jobs of the sweep ``python -m panollava.train -m +experiment=decisive``.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.decisive.results import RAW, Result, Study, job_name, read_results, read_study, write_result
from panollava.sweep_folder import read_jobs

logger = logging.getLogger(__name__)

RUNS = Path("runs/decisive_jobs")
GROUP = "experiment/decisive"
FIRST_GUESS_MINUTES = 20.0
"""Of a job, as long as none is finished."""


class Runner:
    """Starts jobs one after another in several threads, none that would not end before the deadline.

    Args:
        study: whose results are written.
        end: ``time.monotonic`` after which no job should run; None for no limit.
        threads: of PyTorch in each job; 0 leaves it to PyTorch.
        overrides: further arguments of every job.
    """

    def __init__(self, study: Study, *, end: float | None, threads: int, overrides: Sequence[str]) -> None:
        self.study, self._end, self._threads, self._overrides = study, end, threads, overrides
        self._results = read_results(study)
        done = {(one.arm, one.seed) for one in self._results}
        self._left = [job for job in study.jobs if job not in done]
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self.failed: list[str] = []
        logger.info("%d of %d jobs have results.", len(done), len(study.jobs))

    def run(self, jobs: int) -> None:
        """Runs ``jobs`` at once until none is left that fits. What is running when this is interrupted is stopped."""
        with ThreadPoolExecutor(jobs) as pool:
            try:
                for worker in [pool.submit(self._work) for _ in range(jobs)]:
                    worker.result()
            except BaseException:
                with self._lock:
                    self._left.clear()
                    for child in self._children:
                        child.terminate()  # it keeps a checkpoint, from which the next start resumes
                raise
        if self._left:
            logger.info("%d jobs are left: run the same command again.", len(self._left))

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._run(*job)

    def _next(self) -> tuple[str, int] | None:
        """The next job that would end in time."""
        with self._lock:
            for job in self._left:
                if self._end is None or time.monotonic() + 60 * self._expected_minutes(job[0]) < self._end:
                    self._left.remove(job)
                    return job
        return None

    def _expected_minutes(self, arm: str) -> float:
        """Longest time of an arm's jobs; of one without any, of all jobs."""
        times = {True: [0.0], False: [0.0]}
        for one in self._results:
            times[one.arm == arm].append(sum(one.seconds.values()) / 60 * 1.1)  # the rest starts and evaluates
        return max(times[True]) or max(times[False]) or FIRST_GUESS_MINUTES

    def _run(self, arm: str, seed: int) -> None:
        name, begun = job_name(arm, seed), time.monotonic()
        log = RUNS / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if self._threads:
            environment |= {"OMP_NUM_THREADS": str(self._threads), "MKL_NUM_THREADS": str(self._threads)}
        with log.open("ab") as stream:
            with self._lock:
                child = subprocess.Popen(
                    command(arm, seed, self._overrides), stdout=stream, stderr=stream, env=environment
                )
                self._children.add(child)
            status = child.wait()
        with self._lock:
            self._children.discard(child)
        if status:
            logger.error("%s ended with status %d; see %s.", name, status, log)
            self.failed.append(name)
            return
        try:
            result = write_result(self.study, arm, seed, RUNS / name, Path())
        except ValueError as error:
            logger.error("%s has no result: %s", name, error)
            self.failed.append(name)
            return
        with self._lock:
            self._results.append(result)
        logger.info("%s in %.1f min", described(result), (time.monotonic() - begun) / 60)


def command(arm: str, seed: int, overrides: Sequence[str] = ()) -> list[str]:
    """The command of a job."""
    own = [f"+{GROUP}={arm}", f"seed={seed}", f"experiment_name={job_name(arm, seed)}", f"output_dir={RUNS}"]
    fixed = [sys.executable, "-m", "panollava.train", "+experiment=decisive", "hydra.mode=RUN"]
    return [*fixed, *own, "tracking=none", *overrides]


def described(one: Result) -> str:
    """A result in a line."""
    still = {"no": "", "yes": ", still learning"}.get(one.learning, ", not known whether it was still learning")
    return f"{one.name}: {100 * one.exact_match:.1f} %, {one.image_tokens} image tokens{still}"


def collect(study: Study, sweep: Path) -> int:
    """Writes the results of the finished jobs of a sweep that have none yet; returns how many."""
    done = {(one.arm, one.seed) for one in read_results(study)}
    count = 0
    for record in read_jobs(sweep):
        swept = {key.lstrip("+"): value for key, value in record.swept.items()}
        arm, seed = swept.get(GROUP), swept.get("seed", "")
        if arm is None or not seed.isdecimal() or (job := (arm, int(seed))) not in study.jobs or job in done:
            continue
        try:
            logger.info("%s", described(write_result(study, *job, sweep / record.name, Path())))
            count += 1
        except ValueError as error:
            logger.warning("%s is left out: %s", record.name, error)
    return count


def main() -> None:
    """Runs or collects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="start no job that would not end within so many")
    parser.add_argument("--jobs", type=int, default=1, help="jobs at once")
    parser.add_argument("--threads", type=int, default=0, help="threads of each; 0 leaves it to PyTorch")
    parser.add_argument("--collect", type=Path, metavar="SWEEP", help="run nothing: read the jobs of this sweep")
    parser.add_argument("overrides", nargs="*", help="further arguments of every job, such as trainer.device=cuda")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.jobs < 1 or options.threads < 0 or (options.minutes is not None and options.minutes <= 0):
        parser.error("--jobs is 1 or more, --threads 0 or more, and --minutes more than 0.")
    try:
        study = read_study()
        if options.collect is not None:
            logger.info("%d new results in %s.", collect(study, options.collect), study.folder / RAW)
            return
        end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
        runner = Runner(study, end=end, threads=options.threads, overrides=options.overrides)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the jobs would go on without their runner
    try:
        runner.run(options.jobs)
    except KeyboardInterrupt:
        sys.exit("Interrupted: the same command resumes.")
    if runner.failed:
        sys.exit(f"Failed: {', '.join(runner.failed)}. The same command tries them again.")


if __name__ == "__main__":
    main()
