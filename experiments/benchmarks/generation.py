"""Speed of answering: batches of panoramas against single ones, and the time until the first token.

python experiments/benchmarks/generation.py [--checkpoint runs/demo] [--batches 1 2 4 8] [--tokens 32] [--rounds 5]
    [--questions 8] [--threads N] [--device cpu] [--output generation.json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from panollava.batch import Batch
from panollava.crop.crop import Crop
from panollava.data.world import WorldSource
from panollava.model.api import PanoLlava
from panollava.model.hub import load_language_model, load_tokenizer
from panollava.model.vision import VisionTower
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.prompt import ChatPrompt

logger = logging.getLogger(__name__)

CROP = {"type": "anyres_e2p", "fov_deg": 90.0, "overlap": 0.5}
"""Nine views, as in training."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--checkpoint", help="a run or an export; without, the miniature backbones with an untrained middle"
    )
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="the first is what others are compared with"
    )
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of every answer; none ends early")
    parser.add_argument("--questions", type=int, default=8, help="questions of a round, each about its own panorama")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is taken, in turn with the others")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    pano = PanoLlava.from_pretrained(options.checkpoint, device=options.device) if options.checkpoint else miniature()
    pano.model.to(options.device)
    asked = WorldSource(split="test", scenes=options.questions)
    views = [pano.views(asked.panorama(index)) for index in range(options.questions)]
    texts = [pano.encode(one.question) for one in asked.questions()[:: len(asked.questions()) // options.questions]]
    todo: dict[str, Callable[[], object]] = {
        f"batch {size}": partial(_all, pano, views, texts, size, options.tokens) for size in options.batches
    }
    todo |= {
        "views of a panorama": partial(pano.views, asked.panorama(0)),
        "first token": partial(_all, pano, views[:1], texts[:1], 1, 1),
        "whole answer": partial(_all, pano, views[:1], texts[:1], 1, options.tokens),
    }
    seconds = interleaved(todo, options.rounds, torch.device(options.device))
    _tell(seconds, options)
    figures = {
        "machine": _machine(options),
        "image_tokens": pano.image_tokens,
        "text_tokens": [len(text.ids) - pano.image_tokens for text in texts],
        "questions": options.questions,
        "new_tokens": options.tokens,
        "seconds": seconds,
    }
    options.output.write_text(json.dumps(figures, indent=1) + "\n")
    logger.info("Written to %s.", options.output)


def miniature() -> PanoLlava:
    """The shipped backbones; what is between them costs the same trained or not."""
    tower = VisionTower.from_pretrained("panollava/tiny-siglip")
    prompt = ChatPrompt(load_tokenizer("panollava/tiny-qwen3"))
    model = PanoLlavaForConditionalGeneration.from_backbones(
        tower,
        load_language_model("panollava/tiny-qwen3"),
        resampler={"type": "mlp"},
        position={"type": "yaw_pitch"},
        projector={"type": "mlp"},
        crop=CROP,
        image_token_id=prompt.image_id,
        latent_width=192,
    )
    return PanoLlava(model.eval(), prompt, Crop.from_spec(CROP, view_size=tower.image_size))


@torch.inference_mode()
def _all(pano: PanoLlava, views: list[Any], texts: list[Any], size: int, tokens: int) -> None:
    """Answers all questions, ``size`` at once, each with exactly so many tokens."""
    for start in range(0, len(views), size):
        batch: Batch = pano.batch(views[start : start + size], texts[start : start + size]).to(pano.model.device)
        ids = pano.model.generate(  # type: ignore[misc]
            **batch.model_inputs,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert batch.input_ids is not None
        assert ids.shape[1] - batch.input_ids.shape[1] == tokens


def interleaved(todo: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds by name, after a round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(rounds + 1):
        for name, action in todo.items():
            start = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(times[1:]), 5) for name, times in taken.items()}


def _tell(seconds: dict[str, float], options: argparse.Namespace) -> None:
    alone = seconds[f"batch {options.batches[0]}"]
    logger.info("| panoramas at once | answers/s | tokens/s | times batch %d |", options.batches[0])
    logger.info("|---:|---:|---:|---:|")
    for size in options.batches:
        spent = seconds[f"batch {size}"]
        rate = options.questions / spent
        logger.info("| %d | %.1f | %.0f | %.2f |", size, rate, rate * options.tokens, alone / spent)
    for name in ("views of a panorama", "first token", "whole answer"):
        logger.info("%s: %.1f ms", name, 1000 * seconds[name])


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if options.device.startswith("cuda") else None
    libraries = {name: version(name) for name in ("torch", "transformers")}
    return {"processor": platform.processor(), "threads": options.threads, "gpu": gpu, **libraries}


if __name__ == "__main__":
    main()
