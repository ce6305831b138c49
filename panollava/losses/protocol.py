"""The interface of an objective of stage 1, and the correspondences between views that it can be built on."""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from panollava.crop.matches import MIN_MATCHES, Matches, column_matches, overlapping_pairs, ray_matches
from panollava.crop.rings import neighbour_pairs
from panollava.losses.diagnostics import collapse_metrics, neighbour_cosine, retrieval_accuracy, view_retrieval

Pairing = Literal["columns", "rays"]


class Cost(NamedTuple):
    """The cost of the correspondences of a micro-batch."""

    total: Tensor  # sum over this process's pairs of views (float32 scalar); the loop divides it by their number
    terms: dict[str, Tensor]  # name -> detached sum over the same pairs of an unweighted part, only logged


class Correspondences(Protocol):
    """Which tokens of two views are compared."""

    needs_grid: bool  # whether the tokens of a view must keep a grid

    def tokens(self, tokens: Tensor) -> Tensor:
        """``(B, V, Q, D)`` tokens -> the ``(B, V, Q', D)`` that are compared."""

    def match(self, cameras: Tensor, view_mask: Tensor, grid: tuple[int, int] | None) -> Matches:
        """The correspondences between the ``tokens`` of views, for cameras ``(B, V, C)`` and a mask ``(B, V)``."""

    def diagnostics(self, tokens: Tensor, matches: Matches) -> dict[str, Tensor]:
        """How well ``tokens`` agree, and whether they have collapsed; each summed over pairs."""


class Objective(Protocol):
    """Makes views agree where they overlap.

    Every objective is a class ``<Type>Objective`` in ``losses/objective/<type>.py``, or a class of another package.
    Its typed keywords are keys of ``stage.vision.loss``.
    """

    correspondences: Correspondences
    # What is computed over all samples of a micro-batch and of all processes, in a few words; empty if each pair of
    # views is independent. The value of a coupled objective depends on the size of the micro-batch, and accumulation is
    # not the same as a larger batch.
    coupled: str
    remedy: str  # what to change when features collapse

    def __call__(self, a: Tensor, b: Tensor, mask: Tensor, *, across_ranks: bool) -> Cost:
        """The cost, computed in float32 also under autocast.

        A coupled objective whose value for the whole micro-batch is ``L`` returns ``L`` times its own number of
        pairs. Summed over processes and divided by all pairs, value and gradient are then those of ``L``.

        ``a`` and ``b`` are matched tokens ``(P, M, D)`` of first and second views, ``mask`` ``(P, M)`` is False where a
        pair has fewer. With ``across_ranks`` all processes make this call together and may communicate; ``P`` may then
        be 0 in some of them, but not in all.
        """


class GridCorrespondences:
    """Tokens of grids, position by position.

    ``columns`` pairs the last columns of a view with the first of its right neighbour; ``rays`` pairs positions with
    exactly the same direction, in all views that overlap, or that have ``least_common`` of the smaller one in common.
    """

    needs_grid = True
    least_common = 0.0  # more for a crop that chooses its views: the share below which two views are no pair

    def __init__(self, pairing: Pairing) -> None:
        self.pairing = pairing

    def tokens(self, tokens: Tensor) -> Tensor:
        return tokens

    def match(self, cameras: Tensor, view_mask: Tensor, grid: tuple[int, int] | None) -> Matches:
        """See ``panollava.crop.matches``. Raises ValueError if no two views of a crop share enough."""
        assert grid is not None
        if self.pairing == "rays":
            matches = ray_matches(cameras, view_mask, grid, least_common=self.least_common)
        else:
            matches = column_matches(cameras, view_mask, grid)
        if len(matches.pairs) == 0 and not self.least_common:
            raise ValueError(
                f"stage.vision.loss.pairing={self.pairing}: no two views share 2 of their {grid[0]} x {grid[1]} "
                "tokens. Use a larger crop.overlap, views with more tokens, or pairing=columns."
            )
        return matches

    def diagnostics(self, tokens: Tensor, matches: Matches) -> dict[str, Tensor]:
        """Retrieval is of the matching token among those of its pair."""
        a, b = matches.take(tokens)
        pairs = len(a)
        return {
            "neighbour_cosine": neighbour_cosine(a, b, matches.mask).sum(),
            "retrieval": retrieval_accuracy(a, b, matches.mask).sum(),
            **{name: value * pairs for name, value in collapse_metrics(a[matches.mask]).items()},
        }


class ViewMeans:
    """Whole views: each is the mean of its tokens, whether they keep a grid or not."""

    needs_grid = False
    least_common = 0.0  # as of ``GridCorrespondences``

    def tokens(self, tokens: Tensor) -> Tensor:
        """``(B, V, 1, D)``."""
        return tokens.mean(dim=2, keepdim=True)

    def match(self, cameras: Tensor, view_mask: Tensor, grid: tuple[int, int] | None) -> Matches:
        """Each tile with its right neighbour, or with those that share ``least_common``; one match per pair.

        Fewer than ``MIN_MATCHES`` pairs of a crop that chooses its views count as none: one has no variance.
        """
        if self.least_common:
            pairs = overlapping_pairs(cameras, view_mask, self.least_common)
            pairs = pairs if len(pairs) >= MIN_MATCHES else pairs[:0]
        else:
            pairs = neighbour_pairs(cameras, view_mask)
        index = pairs.new_zeros(len(pairs), 1, 1)
        weight = cameras.new_ones(index.shape)
        return Matches(pairs, index, weight, index, weight, weight[..., 0] > 0)

    def diagnostics(self, tokens: Tensor, matches: Matches) -> dict[str, Tensor]:
        """Retrieval is of a neighbour among all other views of the batch."""
        a, b = matches.take(tokens)
        sample, first, second = matches.pairs.unbind(1)
        own, neighbour = (sample * tokens.shape[1] + view for view in (first, second))
        # The n views that are in a pair, and (n, n) which of them are neighbours.
        views, place = torch.unique(torch.cat((own, neighbour)), return_inverse=True)
        is_neighbour = torch.zeros(len(views), len(views), dtype=torch.bool, device=tokens.device)
        is_neighbour[place[: len(own)], place[len(own) :]] = True
        every = tokens.flatten(0, 2)[views]
        values = {"retrieval": view_retrieval(every, is_neighbour | is_neighbour.mT), **collapse_metrics(every)}
        return {
            "neighbour_cosine": neighbour_cosine(a, b).sum(),
            **{name: value * len(a) for name, value in values.items()},
        }
