"""Lower bound for the check of a CSV: reads its rows, and the first and the last bytes of every picture.

python experiments/benchmarks/data_floor.py train.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

BLOCK = 65_536


def main(path: Path) -> int:
    """Number of bytes that were read."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))[1:]
    count = 0
    for name in dict.fromkeys(row[0] for row in rows):
        with (path.parent / name).open("rb", buffering=0) as picture:
            count += len(picture.read(BLOCK))
            picture.seek(max(0, picture.seek(0, 2) - BLOCK))
            count += len(picture.read(BLOCK))
    return count


if __name__ == "__main__":
    main(Path(sys.argv[1]))
