"""Differentiable all-reduce: sums and rows of all processes, with gradients for each."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes of a tensor that has the same shape in each.

    Every process must call it, and run its backward pass, equally often and in the same order. The gradient of a
    process's tensor is the sum of the gradients that all processes have for the result.
    """
    return _AllReduceSum.apply(tensor) if _is_distributed() else tensor


def all_gather_rows(rows: Tensor) -> Tensor:
    """Rows ``(n, D)`` of all processes in the order of their ranks; ``n`` may differ between them.

    This is the ``all_reduce_sum`` of rows padded with zeros, which every backend supports for any sizes.
    """
    if not _is_distributed():
        return rows
    rank = dist.get_rank()
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=rows.device)
    counts[rank] = len(rows)
    dist.all_reduce(counts)
    before, after = int(counts[:rank].sum()), int(counts[rank + 1 :].sum())
    return all_reduce_sum(functional.pad(rows, (0, 0, before, after)))


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _AllReduceSum(torch.autograd.Function):
    # torch.distributed.nn.functional.all_reduce does the same and is deprecated.
    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return _AllReduceSum.forward(_ctx, gradients[0])
