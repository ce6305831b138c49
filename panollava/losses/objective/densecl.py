"""DenseCL: each token must find its match in the other view among tokens of other directions."""

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from panollava.losses.all_reduce import all_gather_rows
from panollava.losses.protocol import Cost, GridCorrespondences, Pairing

# Similarities held at once when all tokens of a batch are compared. The backward pass recomputes them.
MAX_LOGITS = 2**24
_MIN_NORM = 1e-6  # smaller norms are treated as this one, so that gradients stay finite


def dense_pairs(a: Tensor, b: Tensor, mask: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Each token against the other tokens of its own pair, in float32 also under autocast.

    Matched tokens ``(P, L, D)`` and a mask ``(P, L)`` give the cross-entropies ``(P,)`` of finding b from a and a from
    b by cosine, averaged over tokens. Raises ValueError for a pair of fewer than two, which has no negatives.

    Source: Wang et al. 2021, Dense Contrastive Learning (arXiv:2011.09157), equation 2, in both directions, with
        positions matched by geometry and negatives of the same pair of views.
    """
    count = mask.sum(dim=1)
    if bool((count < 2).any()):
        raise ValueError(
            f"DenseCL needs at least 2 matched tokens a pair to contrast them, got {int(count.min())}: use a larger "
            "view, a larger crop.overlap, or stage.vision.loss.negatives=batch."
        )
    with torch.autocast(a.device.type, enabled=False):
        a, b = _unit(a), _unit(b)
        logits = a @ b.mT / temperature
        positive = logits.diagonal(dim1=1, dim2=2)
        return (
            _mean(logits.masked_fill(~mask[:, None, :], -torch.inf).logsumexp(dim=2) - positive, mask),
            _mean(logits.masked_fill(~mask[:, :, None], -torch.inf).logsumexp(dim=1) - positive, mask),
        )


def dense_batch(a: Tensor, b: Tensor, mask: Tensor, *, temperature: float, across_ranks: bool) -> tuple[Tensor, Tensor]:
    """As ``dense_pairs``, with each token against those of all pairs of the batch.

    Where more than two views overlap, some negatives have the direction of the match. With ``across_ranks`` the batch
    is that of all processes, which must all make this call. The result is that of this process's pairs.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = _unit(a), _unit(b)
        positive = (a * b).sum(dim=2) / temperature
        return (
            _mean(_unflatten(_log_total(a[mask], b[mask], temperature, across_ranks), mask) - positive, mask),
            _mean(_unflatten(_log_total(b[mask], a[mask], temperature, across_ranks), mask) - positive, mask),
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
    return functional.normalize(tokens.float(), dim=-1, eps=_MIN_NORM)


def _unflatten(values: Tensor, mask: Tensor) -> Tensor:
    """Values of the tokens that are present, back at their positions ``(P, L)``."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """``(P, L)`` -> ``(P,)``: the mean over the tokens that are present."""
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1)


class DenseclObjective:
    """Cross-entropy over matched tokens in both directions, by cosine over ``temperature``.

    ``negatives`` are the other tokens of the same ``pair`` of views, or those of all pairs of a micro-``batch``.
    """

    remedy = "lower stage.vision.lr, raise stage.vision.loss.temperature, or take negatives=batch"

    def __init__(
        self,
        *,
        pairing: Pairing = "columns",
        temperature: Annotated[float, Interval(ge=0.01, le=10)] = 0.07,
        negatives: Literal["pair", "batch"] = "pair",
    ) -> None:
        self.correspondences = GridCorrespondences(pairing)
        self.temperature = temperature
        self.coupled = "negatives" if negatives == "batch" else ""

    def __call__(self, a: Tensor, b: Tensor, mask: Tensor, *, across_ranks: bool) -> Cost:
        """See ``Objective``. The term ``forward`` finds tokens of second views, ``backward`` those of first ones."""
        if self.coupled:
            sides = dense_batch(a, b, mask, temperature=self.temperature, across_ranks=across_ranks)
        else:
            sides = dense_pairs(a, b, mask, temperature=self.temperature)
        forward, backward = (side.sum() for side in sides)
        return Cost((forward + backward) / 2, {"forward": forward.detach(), "backward": backward.detach()})
