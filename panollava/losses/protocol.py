"""What stage 1 asks of an objective."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from panollava.losses.places import Places


class Cost(NamedTuple):
    """What the matched places of a micro-batch cost.

    Attributes:
        total: sum over this process's pairs of views (scalar, fp32); the loop divides it by the number of pairs.
        terms: name -> detached sum over the same pairs of an unweighted part, logged only.
    """

    total: Tensor
    terms: dict[str, Tensor]


class Objective(Protocol):
    """Makes views agree where they overlap.

    Every objective is a class ``<Type>Objective`` in ``losses/objective/<type>.py``, built with its own typed
    keywords, which are keys of ``stage.vision.loss``.

    Attributes:
        places: what of two views is compared.
        coupled: what is taken over all samples of a micro-batch, and those of all processes with it, in a few
            words; empty where each pair of views is a matter of its own. A coupled objective is defined per
            micro-batch: it changes with its size, and accumulating is not the same as a larger batch.
        remedy: what to change when features collapse.
    """

    places: Places
    coupled: str
    remedy: str

    def __call__(self, a: Tensor, b: Tensor, mask: Tensor, *, across_ranks: bool) -> Cost:
        """The cost, computed in fp32 also under autocast.

        A coupled objective whose value for the whole micro-batch is ``L`` returns ``L`` times its own pairs, so
        that value and gradient, summed over processes and divided by all pairs, are those of ``L``.

        Args:
            a: ``(P, M, D)``, the matched places of first views.
            b: ``(P, M, D)``, those of second views.
            mask: ``(P, M)`` bool, False where a pair has fewer places.
            across_ranks: whether all processes make this call together, so that they may be asked.
        """
        ...
