"""One optimiser step of each kind of stage; a script that torchrun starts, and a function for one process."""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from small_runs import opened
from torch import Tensor

from panollava.assemble.stage import build_stage
from panollava.training.distributed import Processes, processes
from panollava.training.loop import _wrap, validate
from panollava.training.optim import make_optimizer
from panollava.training.step import OptimiserStep

STAGES = ("vision", "resampler", "finetune")


def one_update(arguments: list[str], procs: Processes | None = None) -> dict[str, Tensor]:
    """Loss, gradient norm, validation loss and updated weights of each stage, as ``<stage>:<what>``."""
    result: dict[str, Tensor] = {}
    procs = procs or Processes()
    with opened(*arguments, procs=procs) as run:
        for name in run.cfg.stage.run:
            options = run.stage_options(name)
            torch.manual_seed(run.seed(name))
            stage = build_stage(run, name)
            module = _wrap(stage, run.trainer, run.compute, procs)
            optimizer = make_optimizer(stage.trained(), run.optim, lr=0.1)
            scaler = run.compute.scaler()
            step = OptimiserStep(stage, module, optimizer, scaler, run.compute, procs, clip_norm=1.0)
            data = run.batches(name, options)
            stage.train()
            report = step(next(iter(data.windows(0, 0))), lr=0.1)
            checked = validate(stage, module, data, run.compute, procs)
            result |= {f"{name}:{key}": torch.tensor(report[key]) for key in ("loss", "grad_norm")}
            result[f"{name}:validation"] = torch.tensor(checked["loss"])
            result |= {f"{name}:{key}": value.detach().clone() for key, value in stage.trained().items()}
    return result


def main() -> None:
    """Writes the result of all processes together to the file that the first argument names."""
    torch.set_num_threads(1)
    with processes() as procs:
        result = one_update(sys.argv[2:], procs)
        if procs.is_main:
            save_file(result, sys.argv[1])


if __name__ == "__main__":
    main()
