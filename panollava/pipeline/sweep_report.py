"""What a sweep's folder shows when its last job is over: a table, a picture, and which differences are real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from panollava.assemble.conditions import ASKED, differences, unequal
from panollava.checkpoint import write_file
from panollava.evaluation.comparison import Contender, verdicts
from panollava.evaluation.comparison_report import TESTS
from panollava.evaluation.seeds import settings_table
from panollava.evaluation.statistics import Interval
from panollava.evaluation.sweep_table import Row, markdown, picture, rows_csv
from panollava.pipeline.results_of import first_difference
from panollava.pipeline.sweep_jobs import Job, read_job
from panollava.sweep_folder import JobRecord, read_jobs

TABLE, NUMBERS, PICTURE = "sweep.md", "sweep.csv", "sweep.png"
MOST_COMPARED = 12
"""Jobs up to which every two are compared; the pairs of more would be many and, corrected for, say little."""


def sweep_report(folder: Path) -> list[Path]:
    """Writes ``sweep.md``, ``sweep.csv`` and ``sweep.png`` into a sweep's folder and returns them.

    Args:
        folder: the sweep's; every job in it counts, of whichever start.
    """
    records = read_jobs(folder)
    found = {record.name: read_job(folder / record.name) for record in records}
    rows = [_row(record, found[record.name]) for record in records]
    answered = [(record, job) for record in records if (job := found[record.name]) is not None and job.predictions]
    parts = [markdown(rows, f"Sweep {folder.name}"), *_compared(answered)]
    files: dict[str, str | bytes] = {TABLE: "\n".join(parts), NUMBERS: rows_csv(rows)}
    if any(row.numbers for row in rows):
        files[PICTURE] = picture(rows)
    for name, content in files.items():
        write_file(folder / name, content)
    return [folder / name for name in files]


def _row(record: JobRecord, job: Job | None) -> Row:
    if job is None:
        return Row(record.name, record.swept, record.status, record.error)
    exact = None
    if job.metrics:
        exact = Interval(job.metrics["exact_match"], *(job.metrics["interval"] or (None, None)))
    return Row(record.name, record.swept, record.status, record.error, job.numbers(), exact)


def _compared(answered: Sequence[tuple[JobRecord, Job]]) -> list[str]:
    """Markdown: every two settings on the same questions."""
    if len(answered) < 2:
        return []
    (first, one), *others = answered
    for record, job in others:
        asked = differences(one.answers.conditions, {key: job.answers.conditions.get(key) for key in ASKED})
        if difference := first_difference(one.predictions, job.predictions) or ", ".join(asked):
            reason = f"{first.name} and {record.name} were not asked the same ({difference})"
            return [f"{reason}, so the jobs are not compared with each other.\n"]
    known = {record.name: conditions for record, job in answered if (conditions := job.answers.conditions)}
    notes = [f"{line}.\n" for line in unequal(known)]
    keys = [key for key in answered[0][0].swept if key != "seed"]
    if any("seed" in record.swept for record, _ in answered):
        return [
            *notes,
            settings_table([job.repeat([record.swept[key] for key in keys]) for record, job in answered], keys),
        ]
    if len(answered) > MOST_COMPARED:
        return [
            *notes,
            f"More than {MOST_COMPARED} jobs: python -m panollava.compare tests the differences of those it is "
            "given.\n",
        ]
    contenders = [Contender(record.name, tuple(job.predictions), job.image_tokens) for record, job in answered]
    found = verdicts(contenders, "unicode")
    return [*notes, "\n".join([f"By exact match: {TESTS}", "", *(f"- {verdict}" for verdict in found)]) + "\n"]
