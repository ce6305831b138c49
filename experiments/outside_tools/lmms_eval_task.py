"""An evaluation of panollava as a task of lmms-eval, and the comparison of both, item by item.

``write <evaluation> <folder>`` writes the task: pictures, questions, and the YAML file that lmms-eval reads.
``compare <evaluation> <samples.jsonl>`` says how many answers are equal to the letter, and which are not.
An evaluation is a folder such as ``results/eval_results/demo/predictions_<time>``.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
from pathlib import Path
from typing import Any

import cv2

from panollava.crop.crop import Crop
from panollava.run.sources import open_source

logger = logging.getLogger(__name__)
TASK = "panollava"
YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function {task}_functions.doc_to_visual
doc_to_text: question
doc_to_messages: !function {task}_functions.doc_to_messages
doc_to_target: answer
process_results: !function {task}_functions.process_results
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""
FUNCTIONS = '''\
"""Functions of the task: a picture with a conversation, and the exact match of its answer."""

import json

from PIL import Image


def doc_to_visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    texts = [text for turn in json.loads(doc["history"]) for text in turn] + [doc["question"]]
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": [{"type": "text", "text": text}]}
        for number, text in enumerate(texts)
    ]
    messages[0]["content"].insert(0, {"type": "image", "url": doc_to_visual(doc)[0]})
    return messages


def process_results(doc, results):
    return {"exact_match": float(results[0].strip().lower() == doc["answer"].strip().lower())}
'''


def read_evaluation(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The settings of an evaluation and the rows of its answers."""
    settings = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["settings"]
    with (folder / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        return settings, list(csv.DictReader(file))


def write(evaluation: Path, folder: Path) -> None:
    """Writes the task."""
    settings, rows = read_evaluation(evaluation)
    crop = settings["crop"]
    size = crop.get("view_size") or 224
    source = open_source(settings["data"], settings["split"], Crop.from_spec(crop, view_size=(size, size)))
    questions = {one.sample_id: one for one in source.questions()}
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    lines = []
    for row in rows:
        if row["image_id"] not in files:
            files[row["image_id"]] = path = (folder / "pictures" / f"{len(files):05d}.png").resolve()
            cv2.imwrite(str(path), source.question_panorama(questions[row["sample_id"]])[..., ::-1])
        known = {"history": row.get("history") or "[]", "answer": json.loads(row["references"])[0]}
        image = str(files[row["image_id"]])
        lines.append(json.dumps({"id": row["sample_id"], "image": image, "question": row["question"], **known}))
    path = (folder / "questions.jsonl").resolve()
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    length = settings["conditions"]["generation"]["max_new_tokens"]
    yaml = YAML.format(task=TASK, questions=path, max_new_tokens=length)
    (folder / f"{TASK}.yaml").write_text(yaml, encoding="utf-8")
    (folder / f"{TASK}_functions.py").write_text(FUNCTIONS, encoding="utf-8")
    logger.info("%d questions about %d pictures: %s", len(lines), len(files), folder)


def compare(evaluation: Path, samples: Path) -> bool:
    """Whether all answers are equal to the letter; logs those that are not."""
    _, rows = read_evaluation(evaluation)
    ours = {row["sample_id"]: row["prediction"] for row in rows}
    theirs = {}
    for line in samples.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        answer = sample["filtered_resps"]
        while isinstance(answer, list):
            (answer,) = answer
        theirs[rows[int(sample["doc_id"])]["sample_id"]] = answer
    different = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    for name in sorted(different)[:20]:
        logger.info("%s: %r in panollava, %r in lmms-eval", name, ours.get(name), theirs.get(name))
    equal = len(ours) - len(different)
    logger.info("%d of %d answers are equal to the letter (%.1f %%).", equal, len(ours), 100 * equal / len(ours))
    return not different


def main() -> None:
    """Runs one of the two."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "compare"))
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    if options.what == "write":
        write(options.evaluation, options.path)
    else:
        sys.exit(0 if compare(options.evaluation, options.path) else 1)


if __name__ == "__main__":
    main()
