"""Tensors of all processes together, with gradients that find their way back to each."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes of a tensor that has the same shape in each.

    Every process must call it, and take its backward pass, as often and in the same order. The gradient that
    arrives at a process is the sum of those that all of them have for the result.
    """
    return _Sum.apply(tensor) if _has_company() else tensor


def alone(tensor: Tensor) -> Tensor:
    """What ``all_reduce_sum`` is for a process by itself: the tensor."""
    return tensor


def all_gather_rows(rows: Tensor) -> Tensor:
    """Rows ``(n, D)`` of all processes in the order of their ranks; ``n`` may differ.

    They are the ``all_reduce_sum`` of rows with zeros at the places of others, which every backend can do for
    any sizes; gradients come back likewise.
    """
    if not _has_company():
        return rows
    rank = dist.get_rank()
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=rows.device)
    counts[rank] = len(rows)
    dist.all_reduce(counts)
    before, after = int(counts[:rank].sum()), int(counts[rank + 1 :].sum())
    return all_reduce_sum(functional.pad(rows, (0, 0, before, after)))


def _has_company() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
