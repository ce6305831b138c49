"""Seconds of scoring a file of captions: the command, each part of it, and pycocoevalcap on the same words.

python experiments/benchmarks/scoring.py [--predictions FILE] [--answers 5961] [--rounds 3] [--output scoring.json]
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from panollava.evaluation.measure import AUTO, choose_measure
from panollava.evaluation.metrics import EXACT, AnswerSet, find_metric
from panollava.evaluation.predictions import read_predictions

logger = logging.getLogger(__name__)
OURS = {"BLEU": "BLEU-4", "ROUGE-L": "ROUGE-L", "CIDEr": "CIDEr"}
"""Metrics that both compute, and the score that is compared."""
PER_QUESTION, QUESTIONS_PER_PICTURE = 5, 3
"""Of generated captions: answers, which is also the number of references."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--predictions", type=Path, help="CSV of captions; without it they are generated")
    parser.add_argument("--answers", type=int, default=5961, help="generated captions")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is taken, in turn with the other")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("panollava").setLevel(logging.WARNING)
    logging.getLogger(__name__).setLevel(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="panollava-scoring-") as folder:
        file = options.predictions or generate(Path(folder) / "captions.csv", options.answers)
        taken: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, seconds in {**_command(file, Path(folder)), **_parts(file)}.items():
                taken.setdefault(name, []).append(seconds)
        size = len(read_predictions(file, "grouped"))
    seconds = {name: round(statistics.median(each), 3) for name, each in taken.items()}
    for name, each in seconds.items():
        logger.info("%-24s %8.2f s", name, each)
    ratios = {name: round(seconds[f"pycocoevalcap, {name}"] / seconds[name], 1) for name in OURS}
    for name, ratio in ratios.items():
        logger.info("%s: %.1f times as fast as pycocoevalcap", name, ratio)
    figures = {"machine": platform.processor(), "numpy": version("numpy"), "answers": size, "rounds": options.rounds}
    figures |= {"generated": options.predictions is None, "seconds": seconds, "pycocoevalcap_to_ours": ratios}
    options.output.write_text(json.dumps(figures, indent=1) + "\n")
    logger.info("Written to %s.", options.output)


def generate(path: Path, count: int) -> Path:
    """A file of captions of about 50 words, five for each question, with references of about 20 words."""
    draw = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(3000)])
    shares = 1 / np.arange(1, len(words) + 1)

    def text(length: int) -> str:
        return " ".join(draw.choice(words, max(1, draw.poisson(length)), p=shares / shares.sum()))

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "query", "prediction", "reference"))
        for row in range(count):
            question = row // PER_QUESTION
            writer.writerow((f"{question // QUESTIONS_PER_PICTURE}.jpg", f"question {question}", text(50), text(20)))
    return path


def _command(file: Path, folder: Path) -> dict[str, float]:
    """Seconds of the whole command, and of an interpreter that imports what the command needs."""
    command = ["-m", "panollava.score", f"predictions={file}", f"out={folder / 'scores.json'}"]
    ways = {"command": command, "imports alone": ["-c", "import panollava.score"]}
    found = {}
    for name, arguments in ways.items():
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        found[name] = time.perf_counter() - start
    return found


def _parts(file: Path) -> dict[str, float]:
    """Seconds of each part in this process, ours before pycocoevalcap's for each metric."""
    found: dict[str, float] = {}
    scored = _timed(found, "reading", partial(read_predictions, file, "grouped"))
    answers = AnswerSet(scored)
    split = _timed(found, "words", lambda: answers.split)
    _timed(found, "n-grams of references", lambda: answers.reference_ngrams)
    _timed(found, "exact match", partial(find_metric(EXACT, "").scores, answers))
    references = {place: list(one.references) for place, one in enumerate(split)}
    predictions = {place: [one.prediction] for place, one in enumerate(split)}
    theirs: dict[str, Callable[[], Any]] = {
        "BLEU": lambda: Bleu(4).compute_score(references, predictions, verbose=0)[0][3],
        "ROUGE-L": lambda: Rouge().compute_score(references, predictions)[0],
        "CIDEr": lambda: Cider().compute_score(references, predictions)[0],
    }
    for name, key in OURS.items():
        own = _timed(found, name, partial(find_metric(name, "").scores, answers))
        other = _timed(found, f"pycocoevalcap, {name}", theirs[name])
        if abs(own[key].value - other) > 1e-12:
            raise RuntimeError(f"{key} is {own[key].value!r} and {other!r} in pycocoevalcap: not the same function.")
    _timed(found, "choice of the measure", partial(choose_measure, AUTO, answers))
    return found


def _timed(found: dict[str, float], name: str, action: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    value = action()
    found[name] = time.perf_counter() - start
    return value


if __name__ == "__main__":
    main()
