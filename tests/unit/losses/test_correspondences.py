"""What is compared: places of grids, or views as wholes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panollava.crop.cameras import camera_tensor
from panollava.crop.matches import column_matches, ray_matches
from panollava.crop.strategies import AnyresE2pCrop, ResizeCrop
from panollava.losses.diagnostics import neighbour_cosine, retrieval_accuracy
from panollava.losses.protocol import GridCorrespondences, ViewMeans

GRID = (4, 4)
CAMERAS = camera_tensor(AnyresE2pCrop(overlap=0.5).cameras((64, 64)))[None].expand(2, -1, -1)
MASK = torch.ones(CAMERAS.shape[:2], dtype=torch.bool)
TILES = 8


def tokens() -> Tensor:
    return torch.randn(2, 1 + TILES, 16, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("pairing", "expected"), [("columns", column_matches), ("rays", ray_matches)])
def test_grids_are_matched_by_the_pairing(pairing: str, expected: object) -> None:
    places = GridCorrespondences(pairing)  # type: ignore[arg-type]
    matches, wanted = places.match(CAMERAS, MASK, GRID), expected(CAMERAS, MASK, GRID)  # type: ignore[operator]
    for name in ("pairs", "index_a", "weight_a", "index_b", "weight_b", "mask"):
        assert torch.equal(getattr(matches, name), getattr(wanted, name))
    values = tokens()
    assert places.tokens(values) is values
    a, b = matches.take(values)
    found = places.diagnostics(values, matches)
    assert float(found["neighbour_cosine"]) == float(neighbour_cosine(a, b, matches.mask).sum())
    assert float(found["retrieval"]) == float(retrieval_accuracy(a, b, matches.mask).sum())
    assert found["collapsed"] == 0
    assert 5 < float(found["effective_rank"]) / len(a) <= 6


def test_views_without_neighbours_are_refused() -> None:
    cameras = camera_tensor(ResizeCrop().cameras((64, 64)))[None]
    with pytest.raises(ValueError, match=r"stage\.vision\.loss\.pairing=rays: no two views share 2 of their 4 x 4"):
        GridCorrespondences("rays").match(cameras, torch.ones(1, 1, dtype=torch.bool), GRID)


def test_views_as_wholes_are_means_of_their_tokens_beside_their_right_neighbours() -> None:
    places, values = ViewMeans(), tokens()
    matches = places.match(CAMERAS, MASK, None)
    a, b = matches.take(places.tokens(values))
    assert a.shape == (2 * TILES, 1, 6)
    for pair in range(2 * TILES):
        sample, tile = divmod(pair, TILES)
        torch.testing.assert_close(a[pair, 0], values[sample, 1 + tile].mean(dim=0))
        torch.testing.assert_close(b[pair, 0], values[sample, 1 + (tile + 1) % TILES].mean(dim=0))
    assert matches.mask.all()


def test_a_view_is_looked_for_among_all_other_views_of_the_batch() -> None:
    """Two rings on two circles: each view's neighbours are nearest, in its own panorama alone."""
    places = ViewMeans()
    matches = places.match(CAMERAS, MASK, None)
    angle = torch.arange(TILES) / TILES * 2 * torch.pi
    ring = torch.stack((angle.cos(), angle.sin()), dim=1)
    values = torch.zeros(2, 1 + TILES, 1, 4)
    values[0, 1:, 0, :2], values[1, 1:, 0, 2:] = ring, ring
    found = places.diagnostics(values, matches)
    pairs = 2 * TILES
    assert float(found["retrieval"]) == pairs
    assert float(found["neighbour_cosine"]) == pytest.approx(pairs * float((angle[1] - angle[0]).cos()), rel=1e-4)
    assert float(found["effective_rank"]) == pytest.approx(4 * pairs, rel=1e-3)
    mixed = values.clone()
    mixed[:, 1:] = values[:, 1 + (torch.arange(TILES) * 3) % TILES]  # neighbours are three steps apart
    assert float(places.diagnostics(mixed, matches)["retrieval"]) == 0
    same = places.diagnostics(torch.ones_like(values), matches)
    assert float(same["retrieval"]) == pytest.approx(pairs * 2 / (pairs - 1))
    assert float(same["collapsed"]) == pairs
