"""The memory that a plan forecasts, beside the largest that training steps take on the CPU.

python experiments/benchmarks/memory.py [--cases tiny:resampler:8 small:finetune:4] [--steps 2] [--output memory.json]

A case is a language model, a stage and a batch. ``tiny`` are the shipped backbones, ``small`` has a Llama of 135
million random weights in place of the language model. Each case runs in a process of its own, from the config to
optimiser steps with texts as long as they may be, of which one is a few tokens shorter, as texts differ in training.
The largest resident memory of the whole process (``VmHWM``, so this needs Linux) is compared. It is measured again
where glibc returns tensors of 1 MB or more to the system (``MALLOC_MMAP_THRESHOLD_``): its heap keeps the difference.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hydra import compose, initialize_config_dir
from resamplers import status
from shared_prefix import SMALL
from transformers import LlamaConfig, LlamaForCausalLM

from panollava.batch import IGNORE_INDEX
from panollava.config.command_line import CONF, canonical
from panollava.config.sweep_arguments import register_resolvers
from panollava.model.hub import SHIPPED
from panollava.run.build_stage import build_stage
from panollava.run.config_check import checked
from panollava.run.memory import longest
from panollava.run.plan import plan_run
from panollava.run.run import Run, open_run
from panollava.training.distributed import DistributedContext
from panollava.training.loop import OptimiserStep
from panollava.training.options import make_optimizer

logger = logging.getLogger(__name__)
CASES = (
    *("tiny:vision:32", "tiny:vision-trained:32", "tiny:resampler:8", "tiny:resampler:64", "tiny:finetune:8"),
    *("small:resampler:4", "small:finetune:4", "small:resampler:16", "small:finetune:8"),
)
TRAINED = "-trained"
"""Suffix of a stage that trains the encoder too."""
RETURNS = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Environment in which glibc returns larger tensors to the system when they are freed."""
SHORTER = 8
"""Tokens by which one text is shorter than the others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=CASES, help="<tiny or small>:<stage>:<batch>")
    parser.add_argument("--steps", type=int, default=2, help="the second one has the optimiser's state")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--measure", metavar="FOLDER", help="print the peak of the one case, and end")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    if options.measure:
        _measure(options.cases[0], options.measure, options.steps)
        return
    results = {}
    with TemporaryDirectory() as folder:
        _write_small(Path(folder) / "small")
        logger.info("| case | forecast, GB | measured, GB | ratio | measured, memory returned, GB |")
        logger.info("|---|---:|---:|---:|---:|")
        for case in options.cases:
            forecast, measured = _forecast(case, folder), _peak(case, folder, options)
            returned = _peak(case, folder, options, RETURNS)
            ratio = forecast / measured
            results[case] = {"forecast": forecast, "measured": measured, "returned": returned, "ratio": round(ratio, 3)}
            row = (forecast / 1e9, measured / 1e9, ratio, returned / 1e9)
            logger.info("| %s | %.2f | %.2f | %.2f | %.2f |", case, *row)
    libraries = {name: version(name) for name in ("torch", "transformers", "peft")}
    asked = {"steps": options.steps, "threads": options.threads}
    figures = {**libraries, **asked, "bytes": results}
    options.output.write_text(json.dumps(figures, indent=1) + "\n")
    logger.info("Written to %s.", options.output)


def _write_small(folder: Path) -> None:
    """A Llama of 135 million random weights with the tokenizer of the miniature language model."""
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(folder)
    for file in SHIPPED["panollava/tiny-qwen3"].iterdir():
        if file.name.startswith(("tokenizer", "special", "chat_template", "vocab", "merges", "added")):
            shutil.copy(file, folder)


def _opened(case: str, folder: str, *more: str) -> tuple[str, AbstractContextManager[Run]]:
    """Name of the stage, and its run, which is a context manager."""
    size, stage, batch = case.split(":")
    name = stage.removesuffix(TRAINED)
    asked = [f"stage={name}", f"stage.{name}.batch_size={batch}", "trainer.device=cpu", "tracking=none", *more]
    asked += [f"data.train_scenes={max(8, int(batch))}", "data.val_scenes=4", "evaluation.enabled=false"]
    asked += [f"output_dir={folder}/runs", f"store.dir={folder}/cache", "trainer.num_workers=0", "init_from=none"]
    asked += [f"language.name={folder}/small"] if size == "small" else []
    asked += [f"stage.{name}.vision_trainable_blocks=all"] if stage.endswith(TRAINED) else []
    register_resolvers()
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = checked(compose("train", overrides=canonical(asked)))
    return name, open_run(cfg, DistributedContext())


def _forecast(case: str, folder: str) -> int:
    _, opened = _opened(case, folder, "dry_run=plan")
    with opened as run:
        plan = plan_run(run)
        return plan.total(plan.stages[0])


def _measure(case: str, folder: str, steps: int) -> None:
    """Takes optimiser steps, and prints the process's largest memory in bytes."""
    name, opened = _opened(case, folder, "overwrite=true")
    with opened as run:
        _train(run, name, steps)
        logger.info("%d", 1024 * status("VmHWM"))


def _train(run: Run, name: str, steps: int) -> None:
    options, stage = run.stage_options(name), build_stage(run, name)
    optimizer = make_optimizer(stage.trained(), run.optim, options.lr)
    step = OptimiserStep(stage, stage, optimizer, run.compute.scaler(), run.compute, run.procs, run.trainer.clip_norm)
    stage.train()
    batches = run.batches(name, options)
    for _ in range(steps):
        batch = longest(next(iter(batches.windows(0)))[0], run.backbones.image_tokens + options.max_text_length)
        if batch.attention_mask is not None and batch.labels is not None:
            batch.attention_mask[0, -SHORTER:] = 0
            batch.labels[0, -SHORTER:] = IGNORE_INDEX
        assert len(batch) == options.batch_size
        step([batch], options.lr)


def _peak(case: str, folder: str, options: argparse.Namespace, environment: Mapping[str, str] | None = None) -> int:
    command = [sys.executable, __file__, "--cases", case, "--measure", folder]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    return int(done.stderr.split()[-1])


if __name__ == "__main__":
    main()
