"""Says in words when features have died, out of the numbers that a validation gives."""

from __future__ import annotations

from collections.abc import Mapping

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
