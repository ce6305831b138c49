"""Next-token loss as a sum and a count, so that accumulation and processes do not change the objective."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from panollava.batch import IGNORE_INDEX


def token_nll_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the labels, summed, in float32.

    Nothing is shifted here: ``logits[i]`` are those that predict ``labels[i]``. A caller that holds the
    logits of a whole sequence passes ``logits[:, :-1]`` and ``labels[:, 1:]``.

    Args:
        logits: ``(..., vocabulary)`` in any floating type.
        labels: ``(...)`` int64, ``IGNORE_INDEX`` where a position is no target.

    Returns:
        The sum (float32) and the number of targets (int64); 0 and 0 where there is no target.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"Logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not match: there must be one "
            "row of logits for each label."
        )
    total = functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return total, (labels != IGNORE_INDEX).sum()
