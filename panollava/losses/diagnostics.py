"""Says in words when features have died, out of the numbers that a validation gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

MAX_ROWS = 4096
"""Rows that the effective rank looks at: enough for the widths in use, and the decomposition stays cheap."""


@torch.no_grad()
def effective_rank(tokens: Tensor) -> Tensor:
    """Number of directions that tokens ``(..., D)`` spread over, a scalar from 0 (one point) to D.

    The exponential of the entropy of the singular values of the centred tokens; of more than ``MAX_ROWS``
    tokens, evenly spaced ones are used.

    Source: Roy and Vetterli 2007, The effective rank, definition 1.
    """
    rows = _rows(tokens)
    rows = rows[:: max(1, -(-rows.shape[0] // MAX_ROWS))]
    values = torch.linalg.svdvals(rows - rows.mean(dim=0))
    if values.numel() == 0 or values[0] <= 1e-6 * rows.norm():
        return tokens.new_zeros((), dtype=torch.float32)
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp()


@torch.no_grad()
def neighbour_cosine(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean cosine of matched tokens: ``(P, L, D)`` twice and a mask ``(P, L)``, or None for all, -> ``(P,)``."""
    mask = _every(a) if mask is None else mask
    cosine = functional.cosine_similarity(a.float(), b.float(), dim=-1)
    return (cosine * mask).sum(dim=-1) / mask.sum(dim=-1)


@torch.no_grad()
def retrieval_accuracy(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """How often the nearest token of the other view is the matching one; chance is 1 in the pair's tokens.

    Both directions are averaged and nearness is the cosine of tokens centred by their view, so that a part
    common to all tokens neither helps nor hides. A tie counts by the number of tokens that share it: with
    all tokens alike the result is chance, not 1.

    Args:
        a: ``(P, L, D)``.
        b: ``(P, L, D)``, token by token the match of ``a``.
        mask: ``(P, L)`` bool, which of them are there; None for all.

    Returns:
        ``(P,)``.
    """
    mask = _every(a) if mask is None else mask
    with torch.autocast(a.device.type, enabled=False):
        first, second = (functional.normalize(_centred(side, mask), dim=-1) for side in (a, b))
        similarity = first @ second.mT
    hits = []
    for scores in (similarity, similarity.mT):
        scores = scores.masked_fill(~mask[:, None, :], -torch.inf)
        best = scores >= scores.amax(dim=-1, keepdim=True) - 1e-6
        share = best.diagonal(dim1=-2, dim2=-1) / best.sum(dim=-1)
        hits.append((share * mask).sum(dim=-1) / mask.sum(dim=-1))
    return (hits[0] + hits[1]) / 2


@torch.no_grad()
def dead_share(tokens: Tensor, *, threshold: float = 0.01) -> Tensor:
    """Share of the dimensions of tokens ``(..., D)`` that hardly vary, a scalar.

    A dimension is dead where its standard deviation is at most ``threshold`` times the root mean square of
    all entries: measured against the tokens' own scale, so that a full collapse onto one point shows as 1.
    """
    rows = _rows(tokens)
    return (rows.std(dim=0, correction=0) <= threshold * rows.square().mean().sqrt()).float().mean()


@torch.no_grad()
def is_collapsed(tokens: Tensor, *, min_rank: float = 2.0, max_dead: float = 0.5) -> Tensor:
    """Whether tokens ``(..., D)`` tell so little apart that their agreement means nothing, a bool scalar.

    So few tokens, or so narrow ones, that they could hardly spread further are not judged by their rank.
    """
    rows = _rows(tokens)
    is_flat = effective_rank(rows) < min_rank if min(len(rows) - 1, rows.shape[1]) >= 2 * min_rank else False
    return (dead_share(rows) > max_dead) | is_flat


def spread(tokens: Tensor) -> dict[str, Tensor]:
    """What tells agreement from collapse, of tokens ``(..., D)``, by name: scalars in float32."""
    return {
        "effective_rank": effective_rank(tokens),
        "dead_share": dead_share(tokens),
        "collapsed": is_collapsed(tokens).float(),
    }


@torch.no_grad()
def view_retrieval(views: Tensor, is_neighbour: Tensor) -> Tensor:
    """How often the nearest other view is a neighbour, a scalar; ties count by their share.

    Nearness is the cosine of centred views, as in ``retrieval_accuracy``. Chance is the number of a view's
    neighbours in the number of other views.

    Args:
        views: ``(n, D)``.
        is_neighbour: ``(n, n)`` bool.
    """
    with torch.autocast(views.device.type, enabled=False):
        unit = functional.normalize(views.float() - views.float().mean(dim=0), dim=-1)
        scores = (unit @ unit.mT).fill_diagonal_(-torch.inf)
    best = scores >= scores.amax(dim=1, keepdim=True) - 1e-6
    return ((best & is_neighbour).sum(dim=1) / best.sum(dim=1)).mean()


def _every(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def _rows(tokens: Tensor) -> Tensor:
    return tokens.detach().float().flatten(0, -2)


def _centred(tokens: Tensor, mask: Tensor) -> Tensor:
    """``(P, L, D)`` less the mean over the tokens of each pair."""
    tokens = tokens.float() * mask[..., None]
    return tokens - tokens.sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]


MOST_COLLAPSED = 0.5
"""Share of the pairs of views, in batches that look collapsed, from which on all of it does."""

MOST_HINGE = 0.95
"""Variance term from which on the compared features count as dead: their deviation is a twentieth of its aim of 1."""


def collapse(metrics: Mapping[str, float], *, width: int) -> str | None:
    """What was measured and what it means, or None where nothing has died.

    Args:
        metrics: means over the validation split: those of ``panollava.losses.diagnostics.spread``, of the
            resampler's tokens, and the objective's own; what is missing says nothing.
        width: of the tokens.
    """
    found = []
    if metrics.get("collapsed", 0.0) > MOST_COLLAPSED:
        found.append(
            f"{100 * metrics['dead_share']:.0f} % of the {width} dimensions of the resampler's tokens hardly vary, and "
            f"the tokens spread over {metrics['effective_rank']:.1f} directions (effective rank)"
        )
    if metrics.get("variance", 0.0) > MOST_HINGE:
        found.append(
            f"the variance term is {metrics['variance']:.3f} of at most 1: what the head makes of different places is "
            "all but the same"
        )
    if not found:
        return None
    return (
        f"features have collapsed: {'; '.join(found)}. Views then agree whatever they show, so neither a low loss nor "
        "a high neighbour_cosine is evidence of learning"
    )
