"""Writes rows.csv: the scores of detection runs, out of the newest evaluation of each.

``python experiments/detection/collect.py <results folder> <run> …``, in the folder where the runs were trained.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from panollava.disk import csv_text

COLUMNS = ("AP", "AP50", "AP75", "AP50 equal scores", "F1", "centre error", "mIoU", "mIoU by pixel", "blank AP")


def row(folder: Path) -> list[object]:
    """The scores of a recorded evaluation."""
    document = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    boxes, masks = document["boxes"], document["masks"]
    given, equal = boxes["with_scores"], boxes["with_equal_scores"]
    found = [given["ap"], given["ap50"], given["ap75"], equal["ap50"], boxes["f1"], boxes["centre_error_deg"]]
    found += [masks["by_solid_angle"], masks["by_pixel"], document["blank"]["with_scores"]["ap"]]
    return [round(one["value"], 4) for one in found]


def main() -> None:
    """Writes the table beside this file."""
    results, *runs = sys.argv[1:]
    rows = []
    for run in runs:
        newest = sorted(Path(results, "eval_results", run).glob("detections_*"))[-1]
        crop, resampler, seed = run.split("_")
        rows.append([crop, resampler, seed, *row(newest)])
    text = csv_text([["crop", "resampler", "seed", *COLUMNS], *rows])
    Path(__file__).with_name("rows.csv").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
