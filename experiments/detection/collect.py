"""Writes rows.csv: the scores of detection runs, out of the newest evaluation of each. Rows of other runs stay.

``python experiments/detection/collect.py <results folder> <run> …``, in the folder where the runs were trained. A run's
name is ``<crop>_<resampler>_<seed>``.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from panollava.disk import csv_text


def row(folder: Path) -> list[object]:
    """The scores of a recorded evaluation, in the order of the columns."""
    document = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    boxes, masks = document["boxes"], document["masks"]
    given, equal = boxes["with_scores"], boxes["with_equal_scores"]
    found = [given["ap"], given["ap50"], given["ap75"], equal["ap50"], boxes["f1"], boxes["centre_error_deg"]]
    found += [masks["by_solid_angle"], masks["by_pixel"], document["blank"]["with_scores"]["ap"]]
    return [round(one["value"], 4) for one in found]


def main() -> None:
    """Writes the table beside this file."""
    results, *runs = sys.argv[1:]
    path = Path(__file__).with_name("rows.csv")
    with path.open(encoding="utf-8", newline="") as file:
        head, *known = csv.reader(file)
    rows: dict[tuple[str, ...], list[object]] = {tuple(one[:3]): list(one) for one in known}
    for run in runs:
        newest = sorted(Path(results, "eval_results", run).glob("detections_*"))[-1]
        rows[tuple(run.split("_"))] = [*run.split("_"), *row(newest)]
    path.write_text(csv_text([head, *(rows[name] for name in sorted(rows))]), encoding="utf-8")


if __name__ == "__main__":
    main()
