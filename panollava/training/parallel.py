"""A stage on several processes: a copy in each with averaged gradients (DDP), or a share of every weight (FSDP2)."""

from __future__ import annotations

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
from panollava.training import parallel as compiler
from panollava.training.distributed import Processes

_USUAL = {"darwin": "clang++", "win32": "cl"}


def check_compiler(device: str) -> None:
    """Whether there is what ``trainer.compile=true`` makes code with.

    Args:
        device: type of the device that computes, such as ``cpu``.

    Raises:
        ValueError: there is no C++ compiler, or on a GPU no Triton.
    """
    compiler = os.environ.get("CXX") or _USUAL.get(sys.platform, "g++")
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


def compiled(stage: nn.Module) -> nn.Module:
    """A stage whose forward pass torch.compile makes, without its page on each place where Python has to look."""
    if "TORCH_LOGS" not in os.environ:
        logging.getLogger("torch._dynamo.variables.tensor").setLevel(logging.ERROR)
    return torch.compile(stage)  # type: ignore[return-value]


@contextmanager
def compiling(signals: Sequence[int]) -> Iterator[None]:
    """Turns the failures of torch.compile inside into a message.

    Args:
        signals: received so far. A terminal sends Ctrl-C to the compiler as well, which ends at once, without a word.

    Raises:
        KeyboardInterrupt: a signal ended the compiler.
        ValueError: it failed; the message has its first words.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
            raise
        if signals:
            LOG.warning("The compiler was stopped before the step was whole; what was saved before it is kept.")
            raise KeyboardInterrupt from error
        raise ValueError(f"torch.compile failed: {_first_words(str(error))}. Use trainer.compile=false.") from error


def _first_words(text: str) -> str:
    """The first line of an error, and the first of those that follow in which a compiler tells one."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("backend=")]
    told = [line for line in lines[1:] if re.search(r"\berror:|\berror C\d", line)]
    return "; ".join(line[:300].rstrip(".") for line in [*lines[:1], *told[:1]])


def shard(stage: nn.Module, procs: Processes, device: torch.device, *, apart: nn.Module | None = None) -> None:
    """Leaves each process its share of every weight of a stage, which is on the CPU so far.

    Weights come together block by block while a block computes, and what is not in a block for the whole step. Each
    block goes to the device by itself, which therefore never holds the whole model. Frozen weights in another type
    than the trained ones stay in it.

    Args:
        stage: changed in place: its parameters are others afterwards, and it can be called, but not its parts alone.
        procs: who gets a share.
        device: where shares live.
        apart: a frozen part that stays whole in each process, since it is called outside of steps as well.

    Raises:
        ValueError: weights that cannot be cut, since they are packed in integers.
    """
    ignored = set(apart.parameters()) if apart is not None else set()
    packed = [name for name, p in stage.named_parameters() if not p.is_floating_point() and p not in ignored]
    if packed:
        raise ValueError(
            f"trainer.parallel=fsdp shares no quantised weights ({len(packed)} of them, first {packed[0]}). Use "
            "trainer.parallel=ddp, or a base model that is not quantised."
        )
    mesh = init_device_mesh(device.type, (procs.world_size,))
    within = set(apart.modules()) if apart is not None else set()
    blocks = [block for block in repeated_blocks(stage) if block not in within]
    for part in (*blocks, stage):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost modules that come in rows of one kind, such as the layers of a transformer."""
    children = list(module.children())
    if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1:
        alike = len({type(child) for child in children}) == 1
        if alike and all(any(True for _ in child.children()) for child in children):
            return children
    return [block for child in children for block in repeated_blocks(child)]


def is_sharded(module: object) -> bool:
    """Whether ``shard`` was here."""
    return isinstance(module, FSDPModule)


def spread(stage: nn.Module, *, compiled: bool, device: torch.device, procs: Processes) -> nn.Module:
    """What is called in training: the stage, or what keeps its copies in several processes alike.

    DDP looks for unused parameters because it then keeps the layout of its buffers: with three processes and more a
    sum depends on a number's place in them, and a resumed run would begin with another layout than it was left with.
    """
    module = compiler.compiled(stage) if compiled else stage
    if procs.world_size == 1 or is_sharded(stage):
        return module
    devices = [procs.local_rank] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False, find_unused_parameters=True)


def own_module(module: nn.Module) -> nn.Module:
    """What processes may call as often as each likes: the stage without DDP around it."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def in_step(batches: Iterator[Batch], procs: Processes) -> Iterator[tuple[Batch, bool]]:
    """Batches for a sharded stage, which all processes call equally often, and whether each counts.

    A process that has no more takes its last one again while others go on.
    """
    batch = next(batches, None)
    assert batch is not None, "each process has its share of every split"
    following: Batch | None = batch
    while procs.any(following is not None):
        batch = batch if following is None else following
        yield batch, following is not None
        following = next(batches, None)


def whole(value: Tensor) -> Tensor:
    """A tensor put together from the shares of all processes, which all ask for it; others are as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def share(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut and placed as another one is."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copies a whole tensor into a parameter that may be shared."""
    target.copy_(share(value, target))
