"""Several questions about one panorama: its tokens computed once against once for each of them.

python experiments/benchmarks/shared_prefix.py [--scenes 8] [--rounds 3] [--image 2304] [--rows 3] [--text 60]
    [--models tiny small] [--threads N] [--output shared_prefix.json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from generation import interleaved, miniature
from resamplers import status
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from panollava.batch import IGNORE_INDEX, Batch, pack
from panollava.data.dataset import QuestionDataset, TextEncoder
from panollava.data.loader import Collate
from panollava.data.world import WorldSource
from panollava.generation import GenerationOptions
from panollava.model.api import PanoLlava
from panollava.model.hub import load_language_model
from panollava.model.shared_prefix import mask_for

logger = logging.getLogger(__name__)
NEW_TOKENS = 4
"""Of an answer; those of the built-in world have one to three words."""
SMALL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMALL |= {"num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192}
"""A Llama of 135 million weights."""
PLACEHOLDER = 1
"""Any token; its embedding is replaced."""
WAYS = ("apart", "shared")
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--scenes", type=int, default=8, help="panoramas of the built-in world with all their questions"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is taken, in turn with the other")
    parser.add_argument("--image", type=int, default=2304, help="image tokens of a training row")
    parser.add_argument("--rows", type=int, default=3, help="training rows about one panorama")
    parser.add_argument(
        "--text", type=int, default=60, help="text tokens of a training row, from a third less to a third more"
    )
    parser.add_argument("--models", nargs="*", default=["tiny", "small"], help="language models that train")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "WAY"), help="print the peak of one way, and end")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    if options.memory:
        name, way = options.memory
        step = steps(_language(name), options)[way]
        Path("/proc/self/clear_refs").write_text("5")  # puts VmHWM back
        step()
        logger.info("%d", 1024 * status("VmHWM"))
        return
    seconds: dict[str, dict[str, float]] = {
        "answers to the built-in world": interleaved(answers(options), options.rounds, CPU)
    }
    peaks = {}
    for name in options.models:
        seconds[f"training, {name}"] = interleaved(steps(_language(name), options), options.rounds, CPU)
        peaks[f"training, {name}"] = {way: _peak(name, way) for way in WAYS}
    logger.info("| | apart, s | shared, s | ratio | peak apart, GB | shared |")
    logger.info("|---|---:|---:|---:|---:|---:|")
    for name, taken in seconds.items():
        memory = [f"{peaks[name][way] / 1e9:.2f}" if name in peaks else "" for way in WAYS]
        ratio = taken["apart"] / taken["shared"]
        logger.info("| %s | %.2f | %.2f | %.2f | %s | %s |", name, *taken.values(), ratio, *memory)
    asked = {key: getattr(options, key) for key in ("scenes", "rounds", "image", "rows", "text", "threads")}
    libraries = {name: version(name) for name in ("torch", "transformers")}
    figures = {"machine": platform.processor(), **libraries, **asked, "seconds": seconds, "peak_bytes": peaks}
    options.output.write_text(json.dumps(figures, indent=1) + "\n")
    logger.info("Written to %s.", options.output)


def answers(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """All questions about some scenes, in batches of 32, from ready features; both ways give the same answers."""
    pano, world = miniature(), WorldSource(split="test", scenes=options.scenes)
    dataset = QuestionDataset(world, pano.crop, TextEncoder(pano.prompt, pano.image_tokens).question)
    collate, found = Collate(padding_side="left"), {}
    parts = [range(len(dataset))[start : start + 32] for start in range(0, len(dataset), 32)]
    for way in WAYS:
        samples = [dataset.shared(part) if way == "shared" else [dataset[at] for at in part] for part in parts]
        found[way] = partial(_answers, pano, [_encoded(pano, collate(each)) for each in samples])
    assert found["apart"]() == found["shared"]()
    return found


@torch.inference_mode()
def _encoded(pano: PanoLlava, batch: Batch) -> Batch:
    """With features, as a feature store has them."""
    tower = pano.model.vision.tower
    batch.vision_features = torch.stack([tower(views) for views in batch.pixel_values])
    batch.pixel_values = None
    return batch


def _answers(pano: PanoLlava, batches: list[Batch]) -> list[str]:
    options = GenerationOptions(max_new_tokens=NEW_TOKENS)
    return list(chain.from_iterable(pano.answer(batch, generation=options) for batch in batches))


def steps(model: PreTrainedModel, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Forward and backward of a frozen language model for rows about one panorama."""
    spread = options.text // 3
    lengths = [options.text - spread + 2 * spread * row // max(1, options.rows - 1) for row in range(options.rows)]
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(2, 400, (length,), generator=generator).tolist() for length in lengths]
    image = [PLACEHOLDER] * options.image
    rows = [([*image, *text], [IGNORE_INDEX] * options.image + text) for text in texts]
    (packed,) = pack(rows, PLACEHOLDER)
    padded = partial(pad_sequence, batch_first=True)
    apart = {
        "ids": padded([torch.tensor(ids) for ids, _ in rows]),
        "labels": padded([torch.tensor(labels) for _, labels in rows], padding_value=IGNORE_INDEX),
        "attention_mask": padded([torch.ones(len(ids), dtype=torch.long) for ids, _ in rows]),
    }
    shared = {
        "ids": torch.tensor([packed.ids]),
        "labels": torch.tensor([packed.labels]),
        "position_ids": torch.tensor([packed.positions]),
        "segments": torch.tensor([packed.segments]),
    }
    return {"apart": partial(_step, model, **apart), "shared": partial(_step, model, **shared)}


def _step(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor, **inputs: Any) -> float:
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    if "segments" in inputs:
        inputs["attention_mask"] = mask_for(model, inputs.pop("segments"), embeds.dtype)
    else:
        model.set_attn_implementation("sdpa")
    targets = labels[:, 1:]
    kept = torch.nonzero((targets != IGNORE_INDEX).any(dim=0)).flatten()
    logits = model(inputs_embeds=embeds, use_cache=False, logits_to_keep=kept, **inputs).logits
    loss = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets[:, kept].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    loss.backward()
    return float(loss.detach())


def _language(name: str) -> PreTrainedModel:
    if name == "tiny":
        model = load_language_model("panollava/tiny-qwen3", attn_implementation="sdpa")
    else:
        model = LlamaForCausalLM(LlamaConfig(**SMALL, attn_implementation="sdpa"))
    return model.eval().requires_grad_(False)


def _peak(name: str, way: str) -> int:
    """Largest memory of a process that takes one step one way, in bytes."""
    asked = [argument for argument in sys.argv[1:] if not argument.startswith("--output")]
    done = subprocess.run(
        [sys.executable, __file__, *asked, "--memory", name, way], check=True, capture_output=True, text=True
    )
    return int(done.stderr.split()[-1])


if __name__ == "__main__":
    main()
