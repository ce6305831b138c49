"""Forked processes of one run, as torchrun starts them, and the work that tests of several processes share."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from panollava.component import component_names, find_component
from panollava.losses.protocol import Objective
from panollava.run.build_stage import build_stage
from panollava.training.distributed import DistributedContext, init_distributed
from panollava.training.loop import OptimiserStep, validate
from panollava.training.options import make_optimizer
from panollava.training.parallel import full_tensor, shard, wrap_ddp
from support.runs import opened

GRACE_S = 10.0
"""Between the two signals; torchrun waits for thirty seconds."""
STAGES = ("vision", "resampler", "finetune")


@dataclass
class Ended:
    """How a process went.

    Attributes:
        code: exit status, minus the signal that ended it.
        result: what its work returned, None where it failed.
        errors: what it wrote to standard error.
    """

    code: int | None
    result: Any
    errors: str


def run_ranks(work: Callable[[], Any], folder: Path, count: int = 2, timeout_s: float = 120.0) -> list[Ended]:
    """Calls ``work`` in so many processes with the variables that torchrun sets, and waits for their end.

    As under torchrun, a failure of one is followed by SIGTERM for the others, and that, later, by SIGKILL.

    Args:
        work: what each of them does.
        folder: gets their output.
        count: number of processes.
        timeout_s: after which they are ended, and the test fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    group = [context.Process(target=_rank, args=(work, folder, rank, count, store.port)) for rank in range(count)]
    for process in group:
        process.start()
    until, told = time.monotonic() + timeout_s, False
    try:
        while any(process.exitcode is None for process in group):
            assert time.monotonic() < until, "\n".join(_errors(folder, count))
            if any(process.exitcode for process in group) and not told:
                until, told = min(until, time.monotonic() + GRACE_S), True
                for process in group:
                    process.terminate()
            time.sleep(0.02)
    finally:
        for process in group:
            process.kill()
            process.join()
    results = [folder / f"result{rank}" for rank in range(count)]
    return [
        Ended(process.exitcode, pickle.loads(path.read_bytes()) if path.is_file() else None, errors)
        for process, path, errors in zip(group, results, _errors(folder, count), strict=True)
    ]


def succeed(work: Callable[[], Any], folder: Path, count: int = 2) -> list[Any]:
    """Results of ``run_ranks``, all of which must have gone well."""
    ended = run_ranks(work, folder, count)
    assert [one.code for one in ended] == [0] * count, "\n".join(one.errors for one in ended)
    return [one.result for one in ended]


def _rank(work: Callable[[], Any], folder: Path, rank: int, count: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    # sys.stderr may be pytest's; what a process says must not get lost when it is killed.
    sys.stderr = open(folder / f"errors{rank}", "w", buffering=1, encoding="utf-8")  # noqa: SIM115
    code = 1
    try:
        result = work()
        (folder / f"result{rank}").write_bytes(pickle.dumps(result))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # nothing of the parent's, such as its temporary folders, is this process's to clean up


def _errors(folder: Path, count: int) -> list[str]:
    return [(folder / f"errors{rank}").read_text("utf-8") for rank in range(count)]


def one_update(arguments: list[str], procs: DistributedContext | None = None) -> dict[str, Tensor]:
    """Loss, gradient norm, validation loss and updated weights of each stage, as ``<stage>:<what>``."""
    result: dict[str, Tensor] = {}
    procs = procs or DistributedContext()
    with opened(*arguments, procs=procs) as run:
        for name in run.cfg.stage.run:
            options = run.stage_options(name)
            torch.manual_seed(run.seed(name))
            stage = build_stage(run, name)
            if run.is_sharded:
                shard(stage, procs, run.compute.device, exclude=run.backbones.tower)
            module = wrap_ddp(stage, compiled=False, device=run.compute.device, procs=procs)
            optimizer = make_optimizer(stage.trained(), run.optim, lr=0.1)
            scaler = run.compute.scaler()
            step = OptimiserStep(stage, module, optimizer, scaler, run.compute, procs, clip_norm=1.0)
            data = run.batches(name, options)
            stage.train()
            report = step(next(iter(data.windows(0, 0))), lr=0.1)
            checked = validate(stage, module, data, run.compute, procs)
            result |= {f"{name}:{key}": torch.tensor(report[key]) for key in ("loss", "grad_norm")}
            result[f"{name}:validation"] = torch.tensor(checked["loss"])
            result |= {f"{name}:{key}": full_tensor(value.detach()).clone() for key, value in stage.trained().items()}
            if run.is_sharded:
                run.backbones.forget()
    return result


def shared_update(arguments: list[str]) -> dict[str, Tensor]:
    """What one process of several does."""
    with init_distributed(timeout_s=60.0) as procs:
        return one_update(arguments, procs)


def objectives() -> dict[str, Objective]:
    """One of each kind, by a name."""
    room = "losses.objective"
    result = {name: find_component(room, name, "Objective")() for name in component_names(room, "Objective")}
    return {**result, "densecl_of_batch": find_component(room, "densecl", "Objective")(negatives="batch")}


def cost_of(
    name: str, a: Tensor, b: Tensor, mask: Tensor, procs: DistributedContext | None = None
) -> dict[str, Tensor]:
    """Total, terms and gradients of an objective, as ``<name>:<what>``; numbers are added up over processes."""
    procs = procs or DistributedContext()
    a, b = (side.clone().requires_grad_() for side in (a, b))
    total, terms = objectives()[name](a, b, mask, across_ranks=procs.world_size > 1)
    gradients = torch.autograd.grad(total, (a, b))
    values = procs.sum({"total": float(total.detach()), **{key: float(value) for key, value in terms.items()}})
    result = {f"{name}:{key}": torch.tensor(value) for key, value in values.items()}
    return {**result, f"{name}:a": gradients[0].contiguous(), f"{name}:b": gradients[1].contiguous()}


def costs_of_part(batch: dict[str, Tensor], cut: int) -> dict[str, Tensor]:
    """`cost_of` every objective on this process's pairs: those before `cut` in the first process, else the rest."""
    with init_distributed(timeout_s=60.0) as procs:
        part = slice(0, cut) if procs.is_main else slice(cut, None)
        a, b, mask = batch["a"][part], batch["b"][part], batch["mask"][part] > 0
        return {key: value for name in objectives() for key, value in cost_of(name, a, b, mask, procs).items()}
