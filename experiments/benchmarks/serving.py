"""Answers a second of the server under load, and whether every answer arrives and is the right one.

``python experiments/benchmarks/serving.py runs/demo`` in the folder of the run. One run measures, one after another:
the server with 32 clients for 10 minutes, the same with batches of one, and transformers' own ``generate`` on an export
of the run, a question at a time. Expected answers come from ``PanoLlava.generate``. Written to ``serving.json``.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import requests
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from panollava import PanoLlava
from panollava.data.world import WorldSource

logger = logging.getLogger(__name__)

SAMPLE_S = 5.0
"""Time between two looks at the memory."""


def questions(scenes: int) -> list[tuple[bytes, str]]:
    """Pictures of the built-in world as PNG files, with questions without a history."""
    source = WorldSource(split="test", scenes=scenes, seed=7)
    asked = []
    for question in source.questions():
        if not question.history:
            pixels = source.question_panorama(question)
            asked.append((cv2.imencode(".png", pixels[..., ::-1])[1].tobytes(), question.question))
    return asked


def body(model: str, picture: bytes, question: str) -> dict[str, Any]:
    """A request."""
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(picture).decode()}"}}
    return {"model": model, "messages": [{"role": "user", "content": [shown, {"type": "text", "text": question}]}]}


class Server:
    """The server as a process."""

    def __init__(self, checkpoint: str, batch_size: int) -> None:
        begin = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "panollava.serve",
            f"checkpoint={checkpoint}",
            "port=0",
            f"batch_size={batch_size}",
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"(http://\S+) \(the page\)", line):
                self.address = found[1]
                break
        else:
            raise SystemExit("The server did not start.")
        self.ready_s = time.monotonic() - begin
        self.model = requests.get(f"{self.address}/v1/models", timeout=60).json()["data"][0]["id"]

    def memory_mb(self) -> float:
        """Resident memory."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def close(self) -> float:
        """Ends it; the seconds that it took."""
        begin = time.monotonic()
        self.process.send_signal(2)
        self.process.wait(30)
        return time.monotonic() - begin


def load(
    server: Server, asked: list[tuple[bytes, str]], expected: list[str], clients: int, seconds: float
) -> dict[str, Any]:
    """Clients that ask one question after another, each beginning elsewhere; what came back."""
    end, begun = time.monotonic() + seconds, datetime.now(UTC)
    counts = {"answers": 0, "wrong": 0, "refused": 0, "lost": 0}
    latencies: list[float] = []
    lock = threading.Lock()
    memory: list[float] = []

    def client(number: int) -> None:
        session, at = requests.Session(), number * len(asked) // clients
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                answer = session.post(
                    f"{server.address}/v1/chat/completions",
                    json=body(server.model, *asked[at % len(asked)]),
                    timeout=120,
                )
                if answer.status_code == 429:
                    kind = "refused"
                    time.sleep(float(answer.headers["retry-after"]))
                else:
                    text = answer.json()["choices"][0]["message"]["content"]
                    kind = "answers" if text == expected[at % len(asked)] else "wrong"
            except Exception as error:
                kind = "lost"
                logger.warning("%r", error)
            with lock:
                counts[kind] += 1
                latencies.append(time.monotonic() - start)
            at += 1

    begin = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        while time.monotonic() < end:
            memory.append(round(server.memory_mb(), 1))
            time.sleep(min(SAMPLE_S, max(0.0, end - time.monotonic())))
        for one in running:
            one.result()
    elapsed = time.monotonic() - begin
    latencies.sort()
    return {
        "clients": clients,
        "started": begun.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(elapsed, 1),
        **counts,
        "answers_per_second": round(counts["answers"] / elapsed, 2),
        "latency_median_s": round(latencies[len(latencies) // 2], 3),
        "latency_p95_s": round(latencies[len(latencies) * 95 // 100], 3),
        "memory_mb": memory,
    }


def transformers_loop(
    pano: PanoLlava, asked: list[tuple[bytes, str]], expected: list[str], seconds: float
) -> dict[str, Any]:
    """``generate`` of the Auto classes on an export, a question at a time."""
    with tempfile.TemporaryDirectory() as folder:
        pano.merge_lora_weights()
        pano.save_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        processor = AutoProcessor.from_pretrained(folder)
    count = wrong = 0
    begin = time.monotonic()
    begun = datetime.now(UTC)
    while time.monotonic() - begin < seconds:
        content, question = asked[count % len(asked)]
        picture = Image.fromarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])
        inputs = processor(images=picture, text=question)
        with torch.inference_mode():
            ids = model.generate(**inputs)
        text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        wrong += text != expected[count % len(asked)]
        count += 1
    elapsed = time.monotonic() - begin
    return {
        "started": begun.isoformat(timespec="seconds"),
        "seconds": round(elapsed, 1),
        "answers": count,
        "wrong": wrong,
        "answers_per_second": round(count / elapsed, 2),
    }


def main() -> None:
    """Measures, and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asked = questions(options.scenes)
    pano = PanoLlava.from_pretrained(options.checkpoint)
    expected = [pano.generate(picture, question) for picture, question in asked]
    document: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "questions": len(asked),
    }
    short = options.minutes * 60 / 5
    for name, batch_size, seconds in (
        ("batches", options.batch_size, options.minutes * 60),
        ("one by one", 1, short),
    ):
        server = Server(options.checkpoint, batch_size)
        found = load(server, asked, expected, options.clients, seconds)
        document[name] = {"batch_size": batch_size, "ready_s": round(server.ready_s, 1), **found}
        document[name]["closed_s"] = round(server.close(), 2)
    document["transformers"] = transformers_loop(pano, asked, expected, short)
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    rates = {name: document[name]["answers_per_second"] for name in ("batches", "one by one", "transformers")}
    logger.info("%s %s", rates, {key: document["batches"][key] for key in ("answers", "wrong", "refused", "lost")})


if __name__ == "__main__":
    main()
