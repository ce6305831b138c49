"""One optimiser step of each kind of stage, by one process or by its part of several."""

from __future__ import annotations

import torch
from small_runs import opened
from torch import Tensor

from panollava.run.build_stage import build_stage
from panollava.training.distributed import Processes, processes
from panollava.training.loop import OptimiserStep, validate
from panollava.training.options import make_optimizer
from panollava.training.parallel import shard, spread, whole

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
            if run.is_sharded:
                shard(stage, procs, run.compute.device, apart=run.backbones.tower)
            module = spread(stage, compiled=False, device=run.compute.device, procs=procs)
            optimizer = make_optimizer(stage.trained(), run.optim, lr=0.1)
            scaler = run.compute.scaler()
            step = OptimiserStep(stage, module, optimizer, scaler, run.compute, procs, clip_norm=1.0)
            data = run.batches(name, options)
            stage.train()
            report = step(next(iter(data.windows(0, 0))), lr=0.1)
            checked = validate(stage, module, data, run.compute, procs)
            result |= {f"{name}:{key}": torch.tensor(report[key]) for key in ("loss", "grad_norm")}
            result[f"{name}:validation"] = torch.tensor(checked["loss"])
            result |= {f"{name}:{key}": whole(value.detach()).clone() for key, value in stage.trained().items()}
            if run.is_sharded:
                run.backbones.forget()
    return result


def shared_update(arguments: list[str]) -> dict[str, Tensor]:
    """What one process of several does."""
    with processes(timeout_s=60.0) as procs:
        return one_update(arguments, procs)
