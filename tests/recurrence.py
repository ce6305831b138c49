"""The state-space recurrence, step by step: what the chunked scan is held to."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 30
"""Times that the step-by-step reference walks around a ring until its start is forgotten."""


def step_by_step(
    values: Tensor, step: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, skip: Tensor, *, rounds: int = 1
) -> Tensor:
    state = values.new_zeros(*values[:, 0].shape, write.shape[-1])
    for _ in range(rounds):
        outputs = []
        for t in range(values.shape[1]):
            written = (values * step[..., None])[:, t, :, :, None] * write[:, t, None, None, :]
            state = state * log_decay[:, t].exp()[..., None, None] + written
            outputs.append((state * read[:, t, None, None, :]).sum(-1) + values[:, t] * skip[..., None])
    return torch.stack(outputs, dim=1)
