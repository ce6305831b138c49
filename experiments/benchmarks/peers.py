"""Whole training loops at equal shapes: our stage 2 beside transformers' Llava with its Trainer.

python experiments/benchmarks/peers.py [--vocabularies 8192 151936] [--steps 12] [--rounds 3] [--profile]
    [--output peers.json]

Both have the same random backbones and projector, the same pictures and texts, fp32 and AdamW, and only the projector
trains. The arms take turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resamplers import status
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import panollava
from panollava.data.dataset import PanoDataset, TextEncoder
from panollava.data.loader import Collate
from panollava.data.source import DataSource, Record
from panollava.model.hub import SHIPPED
from panollava.training.loop import OptimiserStep

logger = logging.getLogger(__name__)
OURS, STORE, PEER = "ours", "ours, features stored", "transformers"
ARMS = (OURS, PEER, STORE)
PATCH, HEAD = 16, 16
"""Pixels of a patch's side; width of an attention head where 64 does not divide the model's."""
QUESTION = "what is where?"
WORDS = ("the red ring is to the left of a blue ball and a green box is far behind", "it near one tall white tower")
SKIPPED = 2
"""Steps that are not timed: memory is allocated in them."""
LR = 1e-3
LOSS_TOLERANCE = 1e-5
"""Relative: the losses before training are those of the same weights on the same sample, summed in another order."""


def main() -> None:
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if options.arm:
        sys.stdout.write("\n" + json.dumps(_run(options.arm, options.folder, options)))
        return
    found: dict[str, Any] = {}
    for vocabulary in options.vocabularies:
        with tempfile.TemporaryDirectory(prefix="panollava-peers-") as folder:
            prepare(Path(folder), vocabulary, options)
            filling = _start(STORE, Path(folder), "filling", options)
            runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
            for at in range(options.rounds):
                for arm in ARMS:
                    runs[arm].append(_start(arm, Path(folder), str(at), options))
                    logger.info("vocabulary %d, %s: %s", vocabulary, arm, runs[arm][-1])
        found[str(vocabulary)] = _summary(runs, filling)
    asked = {
        key: getattr(options, key) for key in ("batch", "steps", "rounds", "side", "encoder", "language", "threads")
    }
    libraries = {name: version(name) for name in ("torch", "transformers")}
    figures = {"machine": platform.processor(), **libraries, **asked, "load": os.getloadavg()[0], "vocabularies": found}
    options.output.write_text(json.dumps(figures, indent=1) + "\n")
    logger.info("%s\nWritten to %s.", _table(found), options.output)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[8192, 151936])
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of a run; the first two are not timed")
    parser.add_argument("--rounds", type=int, default=3, help="how often each arm is taken, in turn with the others")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224, help="pixels of a view's side")
    parser.add_argument("--encoder", type=int, nargs=2, default=[192, 6], help="width and layers")
    parser.add_argument("--language", type=int, nargs=2, default=[384, 8], help="width and layers")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--profile", action="store_true", help="record which operations take the time")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)  # these three are passed to the new processes
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(folder: Path, vocabulary: int, options: argparse.Namespace) -> None:
    """Writes random backbones and, for the peer, our batches as tensors and our projector."""
    torch.manual_seed(0)
    width, layers = options.encoder
    encoder = SiglipVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=_heads(width),
        image_size=options.side, patch_size=PATCH, vision_use_head=False,
    )  # fmt: skip
    SiglipVisionModel(encoder).save_pretrained(folder / "vision")
    size = {"height": options.side, "width": options.side}
    shipped = json.loads((SHIPPED["panollava/tiny-siglip"] / "preprocessor_config.json").read_text())
    (folder / "vision/preprocessor_config.json").write_text(json.dumps({**shipped, "size": size}))
    width, layers = options.language
    language = Qwen3Config(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=_heads(width),
        num_key_value_heads=_heads(width), head_dim=width // _heads(width), vocab_size=vocabulary,
        tie_word_embeddings=True, eos_token_id=2, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(language).save_pretrained(folder / "language")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(SHIPPED["panollava/tiny-qwen3"] / file, folder / "language")
    pano = _pano(folder)
    batch = Collate()(_samples(pano, Views("train", options.batch * options.steps, options.side)))
    assert bool(batch.attention_mask.all()), "Texts differ in length."
    ids = batch.input_ids.masked_fill(batch.input_ids == pano.prompt.image_id, vocabulary - 1)
    tensors = {"input_ids": ids, "labels": batch.labels, "views": batch.pixel_values[:, 0]}
    torch.save({**tensors, "projector": pano.model.projector.state_dict()}, folder / "peer.pt")


def _heads(width: int) -> int:
    return width // (64 if width % 64 == 0 else HEAD)


class Views(DataSource):
    """Random pictures, each shown whole in one view, with texts of the same words in another order."""

    def __init__(self, name: str, count: int, side: int) -> None:
        self.name, self._count, self._side = name, count, side

    def __len__(self) -> int:
        return self._count

    def record(self, index: int, epoch: int) -> Record:
        words = np.random.default_rng([index, 0]).permutation(" ".join(WORDS).split())
        return Record(f"{self.name}-{index}", turns=((QUESTION, " ".join(["here", *words])),))

    def picture(self, index: int) -> str:
        return f"{self.name} {index} of {self._side} pixels"

    def panorama(self, index: int) -> np.ndarray:
        draw = np.random.default_rng([index, 1])
        return draw.integers(0, 256, (self._side, 2 * self._side, 3), dtype=np.uint8)


def _pano(folder: Path) -> panollava.PanoLlava:
    return panollava.PanoLlava.from_backbones(
        str(folder / "vision"),
        str(folder / "language"),
        resampler={"type": "identity"},
        position={"type": "none"},
        projector={"type": "mlp"},
        crop={"type": "resize"},
    )


def _samples(pano: panollava.PanoLlava, source: Views) -> list[Any]:
    """All samples, encoded as stage 2 encodes them."""
    encode = TextEncoder(pano.prompt, pano.image_tokens, targets="text").record
    dataset = PanoDataset(source, pano.crop, encode)
    return [dataset[0, index] for index in range(len(source))]


def _start(arm: str, folder: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run in a process of its own."""
    command = [sys.executable, __file__, "--arm", arm, "--folder", str(folder), "--name", name]
    for key in ("steps", "batch", "side", "threads"):
        command += [f"--{key}", str(getattr(options, key))]
    command += ["--profile"] if options.profile else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arm}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _run(arm: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    run = _Peer(folder, options) if arm == PEER else _Ours(folder, options, arm == STORE)
    before = run.loss()
    Path("/proc/self/clear_refs").write_text("5")  # puts VmHWM back
    clock = _Clock(options.steps, options.profile)
    run.train(clock)
    timed = (options.steps - SKIPPED) * options.batch
    seconds, cpu_seconds = (last - first for last, first in zip(clock.ends[-1], clock.ends[SKIPPED - 1], strict=True))
    found = {
        "samples_per_second": round(timed / seconds, 3),
        "samples_per_cpu_second": round(timed / cpu_seconds, 3),
        "peak_bytes": clock.peak_bytes,
        "trained": run.trained,
        "loss_before": before,
        "loss_after": run.loss(),
    }
    return {**found, "profile": clock.top(options.steps - SKIPPED)} if options.profile else found


class _Clock:
    """Times and memory of a loop that calls it at the end of each step."""

    def __init__(self, steps: int, profiles: bool) -> None:
        self.ends: list[tuple[float, float]] = []  # wall-clock and processor time
        self.peak_bytes = 0
        self._steps = steps
        self._profiler = torch.profiler.profile() if profiles else None

    def __call__(self) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))
        if self._profiler is not None and len(self.ends) == SKIPPED:
            self._profiler.start()
        if len(self.ends) == self._steps:
            self.peak_bytes = int(1024 * status("VmHWM"))
            if self._profiler is not None:
                self._profiler.stop()

    def top(self, steps: int) -> dict[str, float]:
        """Milliseconds a step of all operations together, and of those that take most of them."""
        assert self._profiler is not None
        own = {each.key: each.self_cpu_time_total / 1e3 / steps for each in self._profiler.key_averages()}
        most = sorted(own, key=lambda key: -own[key])[:14]
        return {"all": round(sum(own.values()), 1), **{key: round(own[key], 1) for key in most}}


class _Ours:
    """Stage 2 through ``panollava.Trainer``."""

    def __init__(self, folder: Path, options: argparse.Namespace, stores: bool) -> None:
        self._pano = _pano(folder)
        self._train = Views("train", options.batch * options.steps, options.side)
        self.trained = sum(weight.numel() for weight in self._pano.model.projector.parameters())
        settings = {"store.enabled": stores, "store.dir": str(folder / "store"), "trainer.num_workers": 0}
        settings |= {"trainer.device": "cpu", "trainer.precision": "fp32", "stage.resampler.max_text_length": 224}
        self._trainer = panollava.Trainer(
            self._pano,
            self._train,
            Views("val", 2, options.side),
            stage="resampler",
            folder=folder / f"run-{stores}-{options.name}",
            epochs=1,
            batch_size=options.batch,
            lr=LR,
            settings=settings,
        )

    def train(self, clock: _Clock) -> None:
        step = OptimiserStep.__call__

        def timed(self: OptimiserStep, window: Any, lr: float) -> dict[str, float]:
            report = step(self, window, lr)
            clock()
            return report

        OptimiserStep.__call__ = timed  # type: ignore[method-assign]
        self._trainer.fit()
        OptimiserStep.__call__ = step  # type: ignore[method-assign]

    @torch.no_grad()
    def loss(self) -> float:
        """Of the first sample."""
        batch = Collate()(_samples(self._pano, Views("train", 1, self._train._side)))
        return float(self._pano.model(**batch.model_inputs, labels=batch.labels).loss)


class _Peer:
    """Llava through transformers' ``Trainer``; it gets our views and texts as tensors, and normalises the views."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        given = torch.load(folder / "peer.pt", weights_only=True)
        vision = SiglipVisionModel.from_pretrained(folder / "vision")
        language = Qwen3ForCausalLM.from_pretrained(folder / "language")
        token = language.config.vocab_size - 1
        config = LlavaConfig(
            vision_config=vision.config, text_config=language.config, image_token_id=token, vision_feature_layer=-1,
            vision_feature_select_strategy="full", tie_word_embeddings=True,
        )  # fmt: skip
        self._model = model = LlavaForConditionalGeneration(config)
        model.model.vision_tower.load_state_dict(vision.state_dict())
        model.model.language_model.load_state_dict(language.model.state_dict())
        model.lm_head.load_state_dict(language.lm_head.state_dict())
        projector = model.model.multi_modal_projector
        for name, layer in (("layers.0", projector.linear_1), ("layers.2", projector.linear_2)):
            layer.load_state_dict({key: given["projector"][f"{name}.{key}"] for key in ("weight", "bias")})
        model.requires_grad_(False)
        projector.requires_grad_(True)
        # Llava takes the features before the encoder's last norm, and ours after it. The two are then one function.
        projector.linear_1 = torch.nn.Sequential(model.model.vision_tower.post_layernorm, projector.linear_1)
        self.trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        self._given, self._folder, self._options = given, folder, options

    def train(self, clock: _Clock) -> None:
        options = self._options
        arguments = TrainingArguments(
            output_dir=str(self._folder / "peer"), per_device_train_batch_size=options.batch, max_steps=options.steps,
            learning_rate=LR, weight_decay=0.01, adam_beta2=0.98, warmup_steps=round(0.1 * options.steps),
            lr_scheduler_type="cosine", max_grad_norm=1.0, save_strategy="no", report_to="none", use_cpu=True,
            disable_tqdm=True, remove_unused_columns=False, logging_steps=10,
        )  # fmt: skip

        class Told(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock()

        rows = [self._row(index) for index in range(len(self._given["views"]))]
        Trainer(model=self._model, args=arguments, train_dataset=rows, callbacks=[Told()]).train()

    @torch.no_grad()
    def loss(self) -> float:
        row = {key: value[None] for key, value in self._row(0).items()}
        return float(self._model(**row).loss)

    def _row(self, index: int) -> dict[str, torch.Tensor]:
        given = self._given
        row = {key: given[key][index] for key in ("input_ids", "labels")}
        row["attention_mask"] = torch.ones_like(row["input_ids"])
        row["pixel_values"] = (given["views"][index].float() / 255 - 0.5) / 0.5
        return row


def _summary(runs: dict[str, list[dict[str, Any]]], filling: dict[str, Any]) -> dict[str, Any]:
    """Medians by arm and ratios of rounds; RuntimeError where the arms do not train the same from the same start."""
    first = {arm: its[0] for arm, its in runs.items()}
    if len({each["trained"] for each in first.values()}) != 1:
        raise RuntimeError(f"Not the same number of trained weights: {first}")
    losses = [each["loss_before"] for each in first.values()]
    if max(losses) - min(losses) > LOSS_TOLERANCE * max(losses):
        raise RuntimeError(f"Not the same loss before training: {first}")
    found: dict[str, Any] = {}
    for rate in ("samples_per_second", "samples_per_cpu_second"):
        rates = {arm: [each[rate] for each in its] for arm, its in runs.items()}
        ratios = {
            arm: [round(own / other, 3) for own, other in zip(rates[arm], rates[PEER], strict=True)]
            for arm in (OURS, STORE)
        }
        found[rate] = {
            "median": {arm: round(statistics.median(each), 2) for arm, each in rates.items()},
            "while the store fills": filling[rate],
            "times the peer, by round": ratios,
            "times the peer": {arm: round(statistics.median(each), 2) for arm, each in ratios.items()},
        }
    found["peak_bytes"] = {arm: max(each["peak_bytes"] for each in its) for arm, its in runs.items()}
    kept = ("trained", "loss_before", "loss_after", "profile")
    found["first run"] = {arm: {key: each[key] for key in kept if key in each} for arm, each in first.items()}
    return found


def _table(found: dict[str, Any]) -> str:
    lines = [
        "| vocabulary | arm | samples/s | times the peer | samples/CPU s | times the peer | peak, GB |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for vocabulary, its in found.items():
        for arm in ARMS:
            cells = [str(vocabulary), arm]
            for rate in ("samples_per_second", "samples_per_cpu_second"):
                cells += [f"{its[rate]['median'][arm]:.2f}", f"{its[rate]['times the peer'].get(arm, 1.0):.2f}"]
            lines.append("| " + " | ".join([*cells, f"{its['peak_bytes'][arm] / 1e9:.2f}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
