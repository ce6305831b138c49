"""What stage 1 asks of an objective."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from panollava.crop.matches import Matches, column_matches, ray_matches
from panollava.crop.rings import neighbour_pairs
from panollava.losses.diagnostics import neighbour_cosine, retrieval_accuracy, spread, view_retrieval

Pairing = Literal["columns", "rays"]
_MATCHES = {"columns": column_matches, "rays": ray_matches}


class Places(Protocol):
    """What is compared.

    Attributes:
        needs_grid: whether the tokens of a view must keep a grid.
    """

    needs_grid: bool

    def tokens(self, tokens: Tensor) -> Tensor:
        """``(B, V, Q, D)`` tokens -> ``(B, V, Q', D)`` of which places are made."""
        ...

    def match(self, cameras: Tensor, view_mask: Tensor, grid: tuple[int, int] | None) -> Matches:
        """Places of ``tokens`` that views have in common, for cameras ``(B, V, C)`` and a mask ``(B, V)``."""
        ...

    def diagnostics(self, tokens: Tensor, matches: Matches) -> dict[str, Tensor]:
        """How well ``tokens`` agree, and whether that means anything; each summed over pairs."""
        ...


class GridCorrespondences:
    """Tokens of grids, place by place.

    Args:
        pairing: ``columns`` pairs the last columns of a view with the first of its right neighbour; ``rays``
            pairs what truly looks the same way, in all views that overlap.
    """

    needs_grid = True

    def __init__(self, pairing: Pairing) -> None:
        self.pairing = pairing

    def tokens(self, tokens: Tensor) -> Tensor:
        """All of them."""
        return tokens

    def match(self, cameras: Tensor, view_mask: Tensor, grid: tuple[int, int] | None) -> Matches:
        """See ``panollava.crop.matches``.

        Raises:
            ValueError: no two views share enough.
        """
        assert grid is not None
        matches = _MATCHES[self.pairing](cameras, view_mask, grid)
        if len(matches.pairs) == 0:
            raise ValueError(
                f"stage.vision.loss.pairing={self.pairing}: no two views share 2 of their {grid[0]} x {grid[1]} "
                "tokens. Use a larger crop.overlap, views with more tokens, or pairing=columns."
            )
        return matches

    def diagnostics(self, tokens: Tensor, matches: Matches) -> dict[str, Tensor]:
        """Retrieval is of the matching place among those of its pair."""
        a, b = matches.take(tokens)
        pairs = len(a)
        return {
            "neighbour_cosine": neighbour_cosine(a, b, matches.mask).sum(),
            "retrieval": retrieval_accuracy(a, b, matches.mask).sum(),
            **{name: value * pairs for name, value in spread(a[matches.mask]).items()},
        }


class ViewMeans:
    """Views as wholes: each is the mean of its tokens, whether they keep a grid or not."""

    needs_grid = False

    def tokens(self, tokens: Tensor) -> Tensor:
        """``(B, V, 1, D)``."""
        return tokens.mean(dim=2, keepdim=True)

    def match(self, cameras: Tensor, view_mask: Tensor, grid: tuple[int, int] | None) -> Matches:
        """Each tile with its right neighbour, which have one place each."""
        pairs = neighbour_pairs(cameras, view_mask)
        index = pairs.new_zeros(len(pairs), 1, 1)
        weight = cameras.new_ones(index.shape)
        return Matches(pairs, index, weight, index, weight, weight[..., 0] > 0)

    def diagnostics(self, tokens: Tensor, matches: Matches) -> dict[str, Tensor]:
        """Retrieval is of a neighbour among all other views of the batch."""
        a, b = matches.take(tokens)
        sample, first, second = matches.pairs.unbind(1)
        own, neighbour = (sample * tokens.shape[1] + view for view in (first, second))
        views, place = torch.unique(torch.cat((own, neighbour)), return_inverse=True)
        is_neighbour = torch.zeros(len(views), len(views), dtype=torch.bool, device=tokens.device)
        is_neighbour[place[: len(own)], place[len(own) :]] = True
        every = tokens.flatten(0, 2)[views]
        values = {"retrieval": view_retrieval(every, is_neighbour | is_neighbour.mT), **spread(every)}
        return {
            "neighbour_cosine": neighbour_cosine(a, b).sum(),
            **{name: value * len(a) for name, value in values.items()},
        }


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
