"""Which tokens of two views have the same direction: by columns as published, or exactly, by the cameras' rays.

Shapes: ``P`` pairs of views, ``M`` matches of a pair, ``K`` tokens that a matched point is interpolated from,
``N`` points in a view.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from panollava.crop.cameras import Column, locate, point_directions, token_directions
from panollava.crop.rings import neighbour_pairs, overlap_columns, pair_overlap

MIN_MATCHES = 2  # a pair of views with fewer matches is dropped: one token has no variance
LEAST_COMMON = 0.125  # share of the smaller of two views that both show, for a pair of views that a crop chose

_AREA_POINTS = 8  # points along each side of a view that tell how much of it another one shows
_EDGE_TOLERANCE = 1e-4  # share of a view's side by which a point may lie beyond its edge: cameras are float32
_POINT_TOLERANCE = 5e-3  # distance from a patch's centre, in patches, allowed where no other patch is left


@dataclass(frozen=True)
class Matches:
    """Points of two views with the same direction, each a weighted sum of tokens. ``K`` may differ between a and b."""

    pairs: Tensor  # (P, 3) int64 rows (sample, first view, second view)
    index_a: Tensor  # (P, M, K) int64, tokens of the first view, counted row by row
    weight_a: Tensor  # (P, M, K) float32, which sum to 1 over K
    index_b: Tensor  # the same of the second view
    weight_b: Tensor
    mask: Tensor  # (P, M) bool, False where a pair has fewer matches than M

    def take(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Gathers the matched points of tokens ``(B, V, Q, D)``: ``(P, M, D)`` of first views, and of second ones."""
        sample, first, second = self.pairs.unbind(1)
        return (
            _combined(tokens, sample, first, self.index_a, self.weight_a),
            _combined(tokens, sample, second, self.index_b, self.weight_b),
        )


def column_matches(cameras: Tensor, view_mask: Tensor, grid: tuple[int, int]) -> Matches:
    """The last columns of each tile with the first ones of its right neighbour, in proportion to the overlap.

    This is the published form. Overlap is a share of angle and tiles are flat, so the directions of matched tokens
    differ by up to several patches. It is exact only for touching columns of equirectangular views. Cameras are
    ``(B, V, C)``, ``view_mask`` is ``(B, V)``, ``grid`` (H', W') that of the tokens.
    """
    height, width = grid
    pairs = neighbour_pairs(cameras, view_mask)
    share = float(pair_overlap(cameras, pairs).min()) if len(pairs) else 0.0
    columns = overlap_columns(width, share)
    tokens = torch.arange(height * width, device=cameras.device).view(height, width)
    first, second = tokens[:, width - columns :], tokens[:, :columns]
    index_a, index_b = (side.reshape(1, -1, 1).expand(len(pairs), -1, -1) for side in (first, second))
    ones = cameras.new_ones(index_a.shape)
    return Matches(pairs, index_a, ones, index_b, ones, ones[..., 0] > 0)


def angles_between(matches: Matches, cameras: Tensor, grid: tuple[int, int]) -> Tensor:
    """Angles in radians ``(number of matches,)`` between the directions of tokens that ``column_matches`` matched."""
    directions = token_directions(cameras.double(), grid).flatten(2, 3)  # (B, V, Q, 3)
    first, second = matches.take(directions)
    # The chord gives small angles without the cancellation of an arc cosine.
    chord = (first - second).norm(dim=-1)[matches.mask]
    return 2 * torch.asin((chord / 2).clamp(max=1.0))


def overlapping_pairs(cameras: Tensor, view_mask: Tensor, least_common: float) -> Tensor:
    """``(P, 3)`` pairs of tiles, each once, of which the smaller one is shown by the other to this share at least."""
    centres = (torch.arange(_AREA_POINTS, device=cameras.device, dtype=cameras.dtype) + 0.5) / _AREA_POINTS
    points = point_directions(cameras, centres, centres).flatten(2, 3)  # (B, V, N, 3)
    x, y, is_ahead = locate(cameras[:, None], points[:, :, None])  # (B, V, V, N), points of the first in the second
    x0, y0, x1, y1 = cameras[:, None, :, Column.BOX_X0 : Column.BOX_Y1 + 1, None].unbind(-2)
    share = (is_ahead & (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)).to(cameras.dtype).mean(dim=-1)
    is_tile = view_mask & (cameras[..., Column.IS_GLOBAL] == 0)
    is_pair = is_tile[:, :, None] & is_tile[:, None, :] & (torch.maximum(share, share.mT) >= least_common)
    return torch.nonzero(is_pair.triu(1))


def ray_matches(cameras: Tensor, view_mask: Tensor, grid: tuple[int, int], *, least_common: float = 0.0) -> Matches:
    """Patches of one view with the exact points of the same direction in another.

    Pairs are the neighbours of a ring and all other tiles with ``MIN_MATCHES`` matches, ordered by sample and view.
    Each patch centre of the first view is projected into the second and interpolated between the four nearest patch
    centres there. Within half a patch of the edge, beyond the last centres, it is extrapolated, so that the weighted
    point is always exact. Neighbours that share no patch centres, as at overlap 0, are matched along their common
    edge, to which both are extrapolated. Arguments are those of ``column_matches``.

    With ``least_common`` pairs are those of ``overlapping_pairs``, whether a ring connects them or not.
    """
    # Most batches have the same cameras in every sample: each distinct set is matched once.
    rows = torch.cat((cameras, view_mask[..., None].to(cameras.dtype)), dim=2)
    sets, sample_set = torch.unique(rows, dim=0, return_inverse=True)
    matches = _of_sets(sets[..., :-1], sets[..., -1] > 0, grid, least_common)
    sample, row = torch.nonzero(sample_set[:, None] == matches.pairs[None, :, 0], as_tuple=True)
    pairs = torch.cat((sample[:, None], matches.pairs[row, 1:]), dim=1)
    sides = (matches.index_a[row], matches.weight_a[row], matches.index_b[row], matches.weight_b[row])
    return Matches(pairs, *sides, matches.mask[row])


def _of_sets(cameras: Tensor, view_mask: Tensor, grid: tuple[int, int], least_common: float) -> Matches:
    if least_common:
        pairs = overlapping_pairs(cameras, view_mask, least_common)
        is_ring = torch.zeros(len(pairs), dtype=torch.bool, device=cameras.device)
    else:
        pairs, is_ring = _candidates(cameras, view_mask)
    sample, view, other = pairs.unbind(1)
    first, second = cameras[sample, view], cameras[sample, other]
    # Points of the first view (P, N): its H' W' patch centres, then 2 (H' + W') points of its edges.
    x, y = (torch.cat(parts, dim=1) for parts in zip(_centres(first, grid), _edges(first, grid), strict=True))
    index_a, weight_a, is_exact_a = _interpolation(x, y, first, grid)
    directions = point_directions(first[:, None], x[..., None], y[..., None]).flatten(2, 3).squeeze(2)  # (P, N, 3)
    x, y, is_seen = locate(second, directions)
    index_b, weight_b, is_exact_b = _interpolation(x, y, second, grid)

    mask = is_seen & is_exact_a & is_exact_b
    is_edge = torch.arange(x.shape[1], device=x.device) >= grid[0] * grid[1]
    shares_centres = (mask & ~is_edge).sum(dim=1) >= MIN_MATCHES
    mask = mask & torch.where(shares_centres[:, None], ~is_edge, is_edge & is_ring[:, None])
    everything = Matches(pairs, index_a, weight_a, index_b, weight_b, mask)
    return _compact(everything, mask.sum(dim=1) >= MIN_MATCHES)


def _candidates(cameras: Tensor, view_mask: Tensor) -> tuple[Tensor, Tensor]:
    """``(P, 3)`` pairs of tiles, each once, ordered by sample and view, and ``(P,)`` whether a ring connects them."""
    ring = neighbour_pairs(cameras, view_mask)
    sets, views = view_mask.shape
    is_tile = view_mask & (cameras[..., Column.IS_GLOBAL] == 0)
    is_ring = torch.zeros(sets, views, views, dtype=torch.bool, device=cameras.device)
    is_ring[tuple(ring.unbind(1))] = True
    above = torch.ones(views, views, dtype=torch.bool, device=cameras.device).triu(1)
    is_other = is_tile[:, :, None] & is_tile[:, None, :] & above & ~is_ring & ~is_ring.mT
    pairs = torch.nonzero(is_ring | is_other)
    return pairs, is_ring[tuple(pairs.unbind(1))]


def _centres(cameras: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """x and y ``(P, N)`` of patch centres. Those in a view's padding are masked by ``_interpolation``."""
    height, width = grid
    x = (torch.arange(width, device=cameras.device, dtype=cameras.dtype) + 0.5) / width
    y = (torch.arange(height, device=cameras.device, dtype=cameras.dtype) + 0.5) / height
    y, x = torch.meshgrid(y, x, indexing="ij")
    return x.reshape(1, -1).expand(len(cameras), -1), y.reshape(1, -1).expand(len(cameras), -1)


def _edges(cameras: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """x and y ``(P, 2 (H' + W'))`` of the points on a view's edges that are level with patch centres."""
    height, width = grid
    x0, y0, x1, y1 = cameras[:, Column.BOX_X0 : Column.BOX_Y1 + 1, None].unbind(1)
    across = x0 + (x1 - x0) * (torch.arange(width, device=cameras.device, dtype=cameras.dtype) + 0.5) / width
    down = y0 + (y1 - y0) * (torch.arange(height, device=cameras.device, dtype=cameras.dtype) + 0.5) / height
    x = (across, across, x0.expand_as(down), x1.expand_as(down))
    y = (y0.expand_as(across), y1.expand_as(across), down, down)
    return torch.cat(x, dim=1), torch.cat(y, dim=1)


def _interpolation(x: Tensor, y: Tensor, cameras: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and bilinear weights ``(P, N, 4)`` of points x and y ``(P, N)``, and whether they are exact."""
    height, width = grid
    x0, y0, x1, y1 = cameras[:, Column.BOX_X0 : Column.BOX_Y1 + 1, None].unbind(1)
    left, right, to_right, is_across = _between(x, x0, x1, width)
    top, bottom, to_bottom, is_down = _between(y, y0, y1, height)
    index = torch.stack((top * width + left, top * width + right, bottom * width + left, bottom * width + right), -1)
    across, down = torch.stack((1 - to_right, to_right), -1), torch.stack((1 - to_bottom, to_bottom), -1)
    return index, (down[..., :, None] * across[..., None, :]).flatten(-2), is_across & is_down


def _between(position: Tensor, start: Tensor, end: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two of ``count`` patches in a row around a position, the share of the second, and whether that is exact."""
    inside = (position >= start - _EDGE_TOLERANCE) & (position <= end + _EDGE_TOLERANCE)
    place = position * count - 0.5  # in patches from the first centre
    # The first and last patch whose centre lies in the content; the others are padding.
    first, last = torch.ceil(start * count - 0.5 - 1e-4), torch.floor(end * count - 0.5 + 1e-4)
    low = torch.minimum(torch.maximum(place.floor(), first), torch.maximum(last - 1, first))
    high = torch.minimum(low + 1, torch.maximum(last, first))
    exact = (high > low) | ((place - low).abs() <= _POINT_TOLERANCE)
    low, high, share = low.clamp(0, count - 1), high.clamp(0, count - 1), place - low
    # Other points are masked; their weights only have to be finite.
    return low.long(), high.long(), torch.where(inside, share, 0.0), inside & exact & (last >= first)


def _compact(matches: Matches, keep: Tensor) -> Matches:
    """The kept pairs, each with its matches first, without unused matches and weights."""
    mask = matches.mask[keep]
    most = int(mask.sum(dim=1).max()) if len(mask) else 0
    order = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)[:, :most]
    mask = mask.gather(1, order)
    points = order[..., None].expand(-1, -1, matches.index_a.shape[2])

    def side(index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return _without_zeros(index[keep].gather(1, points), weight[keep].gather(1, points), mask)

    index_a, weight_a = side(matches.index_a, matches.weight_a)
    index_b, weight_b = side(matches.index_b, matches.weight_b)
    return Matches(matches.pairs[keep], index_a, weight_a, index_b, weight_b, mask)


def _without_zeros(index: Tensor, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Drops weights that are 0 in all matches: a patch centre is one token, not four."""
    weight = torch.where(weight.abs() < 1e-5, 0.0, weight)
    order = weight.abs().argsort(dim=2, descending=True, stable=True)
    index, weight = index.gather(2, order), weight.gather(2, order)
    needed = ((weight != 0) & mask[..., None]).flatten(0, 1).any(dim=0)
    count = max(1, int(needed.sum()))
    return index[..., :count], weight[..., :count]


def _combined(tokens: Tensor, sample: Tensor, view: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """``(P, M, D)``. Gathers, unlike interpolation kernels, have deterministic gradients on a GPU."""
    total = None
    for one in range(index.shape[2]):
        part = tokens[sample[:, None], view[:, None], index[..., one]]
        if index.shape[2] > 1:
            part = part * weight[..., one, None]
        total = part if total is None else total + part
    assert total is not None
    return total
