"""Measures of agreement and collapse of features, and the message about a collapse for the log."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

MAX_ROWS = 4096  # rows that the effective rank uses: enough for the widths in use, and the decomposition stays cheap
MAX_COLLAPSED = 0.5  # share of pairs of views in collapsed batches above which training is reported as collapsed
MAX_HINGE = 0.95  # variance term above which features count as collapsed: their deviation is 0.05 instead of 1


@torch.no_grad()
def effective_rank(tokens: Tensor) -> Tensor:
    """Number of directions in which tokens ``(..., D)`` vary, a scalar from 0 (one point) to D.

    It is the exponential of the entropy of the singular values of the centred tokens. Of more than ``MAX_ROWS``
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
    mask = a.new_ones(a.shape[:2], dtype=torch.bool) if mask is None else mask
    cosine = functional.cosine_similarity(a.float(), b.float(), dim=-1)
    return (cosine * mask).sum(dim=-1) / mask.sum(dim=-1)


@torch.no_grad()
def retrieval_accuracy(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """``(P,)``: how often the nearest token of the other view is the matching one, for tokens as above.

    Both directions are averaged. Nearness is the cosine of tokens centred by their view, so that a part common to all
    tokens has no effect. Chance is 1 in the pair's tokens. A tie counts by the number of tokens that share it: if all
    tokens are equal the result is chance, not 1.
    """
    mask = a.new_ones(a.shape[:2], dtype=torch.bool) if mask is None else mask
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
def dead_share(tokens: Tensor) -> Tensor:
    """Share of the dimensions of tokens ``(..., D)`` that hardly vary, a scalar; 1 for a collapse onto one point.

    A dimension is dead if its standard deviation is at most 1 % of the root mean square of all entries.
    """
    rows = _rows(tokens)
    return (rows.std(dim=0, correction=0) <= 0.01 * rows.square().mean().sqrt()).float().mean()


def collapse_metrics(tokens: Tensor) -> dict[str, Tensor]:
    """What distinguishes agreement from collapse, for tokens ``(..., D)``: name -> float32 scalar.

    ``collapsed`` is 1 where tokens vary so little that their agreement means nothing: more than half of their
    dimensions are dead, or their rank is below 2, where they are enough and wide enough to reach twice that.
    """
    rows = _rows(tokens)
    rank, dead = effective_rank(rows), dead_share(rows)
    is_flat = min(len(rows) - 1, rows.shape[1]) >= 4 and rank < 2
    return {"effective_rank": rank, "dead_share": dead, "collapsed": ((dead > 0.5) | is_flat).float()}


@torch.no_grad()
def view_retrieval(views: Tensor, is_neighbour: Tensor) -> Tensor:
    """How often the nearest other view is a neighbour, a scalar, for views ``(n, D)`` and a bool matrix ``(n, n)``.

    Nearness and ties are those of ``retrieval_accuracy``. Chance is the share of neighbours among all other views.
    """
    with torch.autocast(views.device.type, enabled=False):
        unit = functional.normalize(views.float() - views.float().mean(dim=0), dim=-1)
        scores = (unit @ unit.mT).fill_diagonal_(-torch.inf)
    best = scores >= scores.amax(dim=1, keepdim=True) - 1e-6
    return ((best & is_neighbour).sum(dim=1) / best.sum(dim=1)).mean()


def collapse_message(metrics: Mapping[str, float], *, width: int) -> str | None:
    """What was measured and what it means if features of tokens of this width have collapsed, else None.

    ``metrics`` are means over the validation split of ``collapse_metrics`` and of the objective's own terms, if any.
    """
    found = []
    if metrics.get("collapsed", 0.0) > MAX_COLLAPSED:
        found.append(
            f"{100 * metrics['dead_share']:.0f} % of the {width} dimensions of the resampler's tokens hardly vary, and "
            f"the tokens vary in {metrics['effective_rank']:.1f} directions (effective rank)"
        )
    if metrics.get("variance", 0.0) > MAX_HINGE:
        found.append(
            f"the variance term is {metrics['variance']:.3f} of at most 1: the head maps different patches to almost "
            "the same features"
        )
    if not found:
        return None
    return (
        f"features have collapsed: {'; '.join(found)}. Views then agree for any content, so neither a low loss nor "
        "a high neighbour_cosine is evidence of learning"
    )


def _rows(tokens: Tensor) -> Tensor:
    return tokens.detach().float().flatten(0, -2)


def _centred(tokens: Tensor, mask: Tensor) -> Tensor:
    """``(P, L, D)`` less the mean over the tokens of each pair."""
    tokens = tokens.float() * mask[..., None]
    return tokens - tokens.sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]
