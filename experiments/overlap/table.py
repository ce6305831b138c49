"""Overlap 0 against 0.5: one table of two sweeps, with the feature store and without it (see README.md here).

``python experiments/overlap/table.py runs/overlap_encoded runs/overlap_stored`` writes ``table.md`` beside this file.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path

STAGES = ("vision", "resampler", "finetune")
OVERLAPS = ("0.5", "0.0")

Rows = dict[str, list[dict[str, str]]]


def read(sweep: Path) -> Rows:
    """Overlap -> the finished jobs of a sweep, a row each of its ``sweep.csv``."""
    with (sweep / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["status"] == "finished"]
    return {overlap: [row for row in rows if row["crop.overlap"] == overlap] for overlap in OVERLAPS}


def mean(rows: Sequence[dict[str, str]], *names: str) -> float:
    """Mean over the seeds of a sum of columns."""
    return statistics.fmean(sum(float(row[name]) for name in names) for row in rows)


def line(title: str, rows: Rows, *names: str, factor: float = 1.0, digits: int = 1) -> str:
    """A line of the table: both overlaps, and what the second saves."""
    with_overlap, without = (factor * mean(rows[overlap], *names) for overlap in OVERLAPS)
    saved = f"{100 * (1 - without / with_overlap):.0f} %"
    return f"| {title} | {with_overlap:.{digits}f} | {without:.{digits}f} | {saved} |"


def table(encoded: Rows, stored: Rows) -> str:
    """Markdown: tokens, time, speed, memory and quality."""
    seconds = [f"{stage}_seconds" for stage in STAGES]
    lines = ["| | overlap 0.5 | overlap 0 | saved |", "|---|---:|---:|---:|", "| views of a panorama | 9 | 5 | 44 % |"]
    lines.append(line("image tokens", encoded, "image_tokens", digits=0))
    for name, rows in (("every epoch encoded", encoded), ("features from the store", stored)):
        lines.append(line(f"training, all stages, s ({name})", rows, *seconds))
        lines += [line(f"{stage}, s ({name})", rows, f"{stage}_seconds") for stage in STAGES]
    lines.append(line("ms an answer", encoded, "latency_s", factor=1000))
    lines.append(line("peak memory of the process, GB", encoded, "finetune_peak_memory_gb", digits=2))
    quality = [f"{100 * mean(encoded[overlap], 'exact_match'):.1f} %" for overlap in OVERLAPS]
    lines.append(f"| exact match | {quality[0]} | {quality[1]} | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoded", type=Path, help="sweep with store.enabled=false")
    parser.add_argument("stored", type=Path, help="sweep with the store warm")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = table(read(options.encoded), read(options.stored))
    (Path(__file__).parent / "table.md").write_text(text, encoding="utf-8")
    logging.getLogger(__name__).info(text)


if __name__ == "__main__":
    main()
