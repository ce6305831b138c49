"""How a stage runs: compiled or not, replicated in each process (DDP), or sharded over the processes (FSDP2)."""

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from panollava.batch import Batch
from panollava.logs import LOG
from panollava.training.distributed import DistributedContext


def shard(
    stage: nn.Module, procs: DistributedContext, device: torch.device, *, exclude: nn.Module | None = None
) -> None:
    """Shards every weight of a stage over the processes, in place; the stage must be on the CPU.

    Weights are gathered block by block while a block computes, and those outside blocks for the whole step. Each
    block moves to the device by itself, so the device never holds the whole model. Frozen weights keep their type,
    which may differ from that of trained ones. Afterwards only the whole stage can be called, not its parts.

    Args:
        stage: gets new parameters.
        device: where shards live.
        exclude: a frozen part that stays whole in each process, since it is called outside of steps as well.

    Raises:
        ValueError: quantised weights, which are packed in integers and cannot be sharded.
    """
    ignored = set(exclude.parameters()) if exclude is not None else set()
    packed = [name for name, p in stage.named_parameters() if not p.is_floating_point() and p not in ignored]
    if packed:
        raise ValueError(
            f"trainer.parallel=fsdp cannot shard quantised weights ({len(packed)} of them, first {packed[0]}). Use "
            "trainer.parallel=ddp, or a base model that is not quantised."
        )
    mesh = init_device_mesh(device.type, (procs.world_size,))
    within = set(exclude.modules()) if exclude is not None else set()
    blocks = [block for block in repeated_blocks(stage) if block not in within]
    for part in (*blocks, stage):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost lists of modules of one type, such as the layers of a transformer."""
    children = list(module.children())
    if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1:
        alike = len({type(child) for child in children}) == 1
        if alike and all(any(True for _ in child.children()) for child in children):
            return children
    return [block for child in children for block in repeated_blocks(child)]


def is_sharded(module: object) -> bool:
    """Whether ``shard`` was applied."""
    return isinstance(module, FSDPModule)


def wrap_ddp(stage: nn.Module, *, compiled: bool, device: torch.device, procs: DistributedContext) -> nn.Module:
    """The module to call in training: the stage, compiled or not, in DDP where several processes replicate it."""
    module = stage
    if compiled:
        if "TORCH_LOGS" not in os.environ:  # else a page for each place where the graph breaks
            logging.getLogger("torch._dynamo.variables.tensor").setLevel(logging.ERROR)
        module = torch.compile(stage)  # type: ignore[assignment]
    if procs.world_size == 1 or is_sharded(stage):
        return module
    # find_unused_parameters makes DDP keep the layout of its buckets. With three or more processes a sum depends on
    # the place of a number in them, and a resumed run would start with another layout than it was stopped with.
    devices = [procs.local_rank] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False, find_unused_parameters=True)


def lockstep_batches(
    batches: Iterator[Batch], procs: DistributedContext, signals: Sequence[int] = ()
) -> Iterator[tuple[Batch, bool]]:
    """Batches for a sharded stage, the same number in all processes, and whether each counts.

    A process that has no more repeats its last one, which does not count, while others continue. All end once one of
    them has received a signal.
    """
    batch = next(batches, None)
    assert batch is not None, "each process has a part of every split"
    following: Batch | None = batch
    while procs.max(2.0 if signals else float(following is not None)) == 1.0:
        batch = batch if following is None else following
        yield batch, following is not None
        following = next(batches, None)


def full_tensor(value: Tensor) -> Tensor:
    """Gathers a sharded tensor, which all processes must call; returns others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Shards a full tensor as ``like`` is, or moves it to the device of ``like`` if that is not sharded."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def copy_into(target: Tensor, value: Tensor) -> None:
    """Copies a full tensor into a parameter that may be sharded."""
    target.copy_(shard_like(value, target))


def check_compiler(device: str) -> None:
    """Raises ValueError if ``trainer.compile=true`` finds no C++ compiler, or no Triton on ``device="cuda"``."""
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"trainer.compile=true needs a C++ compiler, and {compiler} is not found. Install one (g++, Xcode's "
            "command line tools, Visual Studio's build tools), name it in the environment variable CXX, or use "
            "trainer.compile=false."
        )
    if device == "cuda" and find_spec("triton") is None:
        raise ValueError(
            "trainer.compile=true needs Triton on a GPU: pip install triton, or use trainer.compile=false."
        )


@contextmanager
def compile_errors(signals: Sequence[int]) -> Iterator[None]:
    """Turns failures of torch.compile into one message.

    Args:
        signals: received so far. A terminal sends Ctrl-C to the compiler's process as well, which fails at once.

    Raises:
        KeyboardInterrupt: a signal ended the compiler.
        ValueError: it failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
            raise
        if signals:
            LOG.warning("The compiler was stopped before the step was complete; earlier checkpoints are kept.")
            raise KeyboardInterrupt from error
        # The first line, and the first of those after it that a C++ compiler marks as an error.
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("backend=")]
        marked = [line for line in lines[1:] if re.search(r"\berror:|\berror C\d", line)]
        text = "; ".join(line[:300].rstrip(".") for line in [*lines[:1], *marked[:1]])
        raise ValueError(f"torch.compile failed: {text}. Use trainer.compile=false.") from error
