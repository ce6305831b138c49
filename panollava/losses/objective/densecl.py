"""DenseCL: each place finds its match in the other view among places that look elsewhere."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from panollava.losses.all_reduce import all_gather_rows
from panollava.losses.protocol import Cost, GridCorrespondences, Pairing

MAX_LOGITS = 2**24
"""Similarities that are held at once where all places of a batch are compared; the backward pass makes them anew."""

_LEAST_NORM = 1e-6
"""Norm below which a token has no direction: its gradient stays finite."""


def dense_pairs(a: Tensor, b: Tensor, mask: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Each place against the other places of its own pair, in float32 also under autocast.

    Args:
        a: ``(P, L, D)``, places of the first view of each pair.
        b: ``(P, L, D)``, the places they are matched with.
        mask: ``(P, L)`` bool, which of them are there.
        temperature: cosines are divided by it.

    Returns:
        Cross-entropies ``(P,)`` of finding b from a and a from b, averaged over places.

    Raises:
        ValueError: a pair has fewer than two places, so that there is nothing to tell its match from.

    Source: Wang et al. 2021, Dense Contrastive Learning (arXiv:2011.09157), equation 2, in both directions, with
        positions matched by geometry and negatives of the same pair of views.
    """
    count = mask.sum(dim=1)
    if bool((count < 2).any()):
        raise ValueError(
            f"DenseCL needs at least 2 matched tokens a pair to tell them apart, got {int(count.min())}: use a larger "
            "view, a larger crop.overlap, or stage.vision.loss.negatives=batch."
        )
    with torch.autocast(a.device.type, enabled=False):
        a, b = _unit(a), _unit(b)
        logits = a @ b.mT / temperature
        right = logits.diagonal(dim1=1, dim2=2)
        return (
            _mean(logits.masked_fill(~mask[:, None, :], -torch.inf).logsumexp(dim=2) - right, mask),
            _mean(logits.masked_fill(~mask[:, :, None], -torch.inf).logsumexp(dim=1) - right, mask),
        )


def dense_batch(a: Tensor, b: Tensor, mask: Tensor, *, temperature: float, across_ranks: bool) -> tuple[Tensor, Tensor]:
    """Each place against those of all pairs of the batch, in float32 also under autocast.

    Where more than two views look one way, some of the negatives do too.

    Args:
        a: as for ``dense_pairs``.
        b: likewise.
        mask: likewise.
        temperature: likewise.
        across_ranks: whether the batch is that of all processes, who then all make this call.

    Returns:
        As ``dense_pairs``, of the pairs held here.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = _unit(a), _unit(b)
        right = (a * b).sum(dim=2) / temperature
        return (
            _mean(_spread(_log_total(a[mask], b[mask], temperature, across_ranks), mask) - right, mask),
            _mean(_spread(_log_total(b[mask], a[mask], temperature, across_ranks), mask) - right, mask),
        )


def _log_total(queries: Tensor, keys: Tensor, temperature: float, across_ranks: bool) -> Tensor:
    """``(n, D)`` and ``(m, D)`` -> ``(n,)``: log of the sum over keys of exp(cosine / temperature)."""
    keys = all_gather_rows(keys) if across_ranks else keys
    rows = max(1, MAX_LOGITS // max(1, len(keys)))
    parts = [
        checkpoint(_log_sum, part, keys, temperature, use_reentrant=False, preserve_rng_state=False)
        for part in queries.split(rows)
    ]
    return torch.cat(parts)


def _log_sum(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    return (queries @ keys.mT / temperature).logsumexp(dim=1)


def _unit(tokens: Tensor) -> Tensor:
    return functional.normalize(tokens.float(), dim=-1, eps=_LEAST_NORM)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Values of the places that are there, back at their places ``(P, L)``."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """``(P, L)`` -> ``(P,)``: the mean over the places that are there."""
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1)


class DenseclObjective:
    """Cross-entropy over matched places in both directions, by cosine.

    Args:
        pairing: see ``GridCorrespondences``.
        temperature: cosines are divided by it.
        negatives: what a match is told from; ``pair``: the other places of the same two views; ``batch``: those
            of all pairs of a micro-batch.
    """

    remedy = "lower stage.vision.lr, raise stage.vision.loss.temperature, or take negatives=batch"

    def __init__(
        self,
        *,
        pairing: Pairing = "columns",
        temperature: Annotated[float, Interval(ge=0.01, le=10)] = 0.07,
        negatives: Literal["pair", "batch"] = "pair",
    ) -> None:
        self.places = GridCorrespondences(pairing)
        self.temperature = temperature
        self.coupled = "negatives" if negatives == "batch" else ""

    def __call__(self, a: Tensor, b: Tensor, mask: Tensor, *, across_ranks: bool) -> Cost:
        """Summed over pairs; ``forward`` finds places of second views, ``backward`` those of first ones."""
        if self.coupled:
            sides = dense_batch(a, b, mask, temperature=self.temperature, across_ranks=across_ranks)
        else:
            sides = dense_pairs(a, b, mask, temperature=self.temperature)
        forward, backward = (side.sum() for side in sides)
        return Cost((forward + backward) / 2, {"forward": forward.detach(), "backward": backward.detach()})
