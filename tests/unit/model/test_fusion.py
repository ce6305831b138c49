"""How views join: which tokens are kept, in which order, and that their number is known without them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panollava.crop.cameras import PERSPECTIVE, Camera, Column, camera_tensor, token_directions
from panollava.crop.sphere import direction_to_angles
from panollava.crop.strategies import (
    AnyresCrop,
    AnyresE2pCrop,
    AnyresMaxCrop,
    CropStrategy,
    CubemapCrop,
    E2pCrop,
    ResizeCrop,
    SlidingWindowCrop,
    tile_count,
)
from panollava.model.fusion import check_join, crop_misfits, fuse, image_token_count, kept_columns

Grid = tuple[int, int]


def rows_of(strategy: CropStrategy) -> Tensor:
    return camera_tensor(strategy.cameras())


def numbered(views: int, grid: Grid) -> Tensor:
    """Tokens ``(1, V, Q, 3)`` that say which view, row and column they are."""
    axes = [torch.arange(side) for side in (views, *grid)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(1, 2)[None].float()


def joined(cameras: Tensor, grid: Grid, join: str) -> Tensor:
    """(view, row, column) of each token that one panorama has after joining, in order."""
    tokens, counts = fuse(
        numbered(len(cameras), grid), torch.ones(1, len(cameras), dtype=torch.bool), join, cameras[None], grid
    )
    assert counts.tolist() == [len(tokens)] == [image_token_count(cameras, grid[0] * grid[1], join, grid)]
    return tokens.long()


def shares(cameras: Tensor, width: int, join: str) -> list[float]:
    """Share of the horizon that is in none, one, two and three of the kept columns of a ring's tiles."""
    tiles = cameras[cameras[:, Column.IS_GLOBAL] == 0]
    view, _, column = joined(tiles, (1, width), join).unbind(1)
    kept = torch.zeros(len(tiles), width, dtype=torch.bool)
    kept[view, column] = True
    yaw, extent = tiles[:, Column.YAW, None].double(), tiles[:, Column.H_EXTENT, None].double()
    around = (torch.arange(72_000).double() + 0.5) / 72_000 * 2 * math.pi
    turn = torch.remainder(around - yaw + math.pi, 2 * math.pi) - math.pi  # (V, steps)
    is_flat = tiles[:, Column.PROJECTION, None] == PERSPECTIVE
    half = torch.where(is_flat, extent / 2, 1.0).tan()
    x = torch.where(is_flat, turn.tan() / half / 2, turn / extent) + 0.5
    is_seen = turn.abs() <= extent / 2
    times = (kept.gather(1, (x * width).long().clamp(0, width - 1)) & is_seen).sum(dim=0)
    return [float((times == count).double().mean()) for count in range(4)]


def ring_yaws(cameras: Tensor, grid: Grid) -> Tensor:
    """Yaws of the columns that the tiles keep, in order around the ring, in [0, 2 pi)."""
    cameras = cameras.double()
    kept = joined(cameras, grid, "stitch_nearest")
    is_tile = cameras[kept[:, 0], Column.IS_GLOBAL] == 0
    view, row, column = kept[is_tile & (kept[:, 1] == 0)].unbind(1)
    yaw, _ = direction_to_angles(token_directions(cameras, grid)[view, row, column])
    return torch.remainder(yaw, 2 * math.pi).sort().values


TOUCHING = [
    AnyresE2pCrop(overlap=0.0),
    AnyresE2pCrop(fov_deg=60.0, overlap=0.0, global_view="resize"),
    E2pCrop(fov_deg=45.0, overlap=0.0),
    E2pCrop(fov_deg=7.2, overlap=0.0),
    SlidingWindowCrop(overlap=0.0),
    SlidingWindowCrop(fov_deg=360.0, overlap=0.0),
    SlidingWindowCrop(fov_deg=0.36, overlap=0.0),
    CubemapCrop(),
    AnyresCrop(max_tiles=2),
    ResizeCrop(),
]


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (1, 1), (2, 64)])
@pytest.mark.parametrize("strategy", TOUCHING, ids=lambda strategy: type(strategy).__name__)
def test_where_tiles_only_touch_stitch_is_concat(strategy: CropStrategy, grid: Grid) -> None:
    cameras = rows_of(strategy)
    for join in ("stitch", "stitch_nearest"):
        assert torch.equal(joined(cameras, grid, join), joined(cameras, grid, "concat"))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 14, 16, 24, 27, 32])
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.2, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("crop", [AnyresE2pCrop, SlidingWindowCrop])
def test_stitch_shows_every_direction_and_few_of_them_twice(crop: type, overlap: float, width: int) -> None:
    cameras = rows_of(crop(overlap=overlap))
    none, _, twice, more = shares(cameras, width, "stitch")
    assert none < 1e-4
    # Each of the two outermost columns of a tile reaches beyond its half step by less than its own width.
    widest = 90 / width if crop is SlidingWindowCrop else math.degrees(2 * math.atan(1 / width))
    assert twice + 2 * more <= 2 * widest * tile_count(90, overlap) / 360


def test_nearest_leaves_directions_out() -> None:
    """What was said to show everything once: the default crop, and the miniature grid at a quarter of overlap."""
    assert shares(rows_of(AnyresE2pCrop()), 16, "stitch_nearest")[0] == pytest.approx(0.086, abs=1e-3)
    assert shares(rows_of(AnyresE2pCrop(overlap=0.25)), 4, "stitch_nearest")[0] == pytest.approx(0.115, abs=1e-3)


@pytest.mark.parametrize("grid", [(2, 16), (2, 14), (1, 27)])
@pytest.mark.parametrize("overlap", [0.5, 0.25, 0.2])
@pytest.mark.parametrize("crop", [AnyresE2pCrop, SlidingWindowCrop])
def test_kept_columns_show_the_ring_once(crop: type, overlap: float, grid: Grid) -> None:
    cameras = rows_of(crop(overlap=overlap))
    count = tile_count(90, overlap)
    yaws = ring_yaws(cameras, grid)
    gaps = torch.diff(yaws, append=yaws[:1] + 2 * math.pi)
    widest = math.radians(90) / grid[1] if crop is SlidingWindowCrop else 2 / grid[1]  # at a tile's centre
    assert gaps.min() > 1e-3
    assert gaps.max() < 2 * widest
    step = 2 * math.pi / count
    share = step / math.radians(90) if crop is SlidingWindowCrop else math.tan(step / 2)
    assert abs(len(yaws) / count - grid[1] * share) <= 1


def test_the_numbers_of_the_default_crop() -> None:
    """Eight tiles of 90 degrees at half overlap: of 16 columns 8 reach into the half step of 22.5 degrees."""
    cameras, grid = rows_of(AnyresE2pCrop()), (16, 16)
    assert image_token_count(cameras, 256, "concat", grid) == 9 * 256
    assert image_token_count(cameras, 256, "stitch", grid) == 256 + 8 * 16 * 8
    assert image_token_count(cameras, 256, "stitch_nearest", grid) == 256 + 8 * 16 * 6
    for nearest, expected in ((False, list(range(4, 12))), (True, list(range(5, 11)))):
        columns = kept_columns(cameras[None], torch.ones(1, 9, dtype=torch.bool), 16, nearest=nearest)[0]
        assert columns[0].all()
        assert [torch.nonzero(row).flatten().tolist() for row in columns[1:]] == [expected] * 8


def test_tokens_stay_in_the_order_of_concat() -> None:
    cameras, grid = rows_of(AnyresE2pCrop()), (3, 8)
    everything, kept = joined(cameras, grid, "concat").tolist(), joined(cameras, grid, "stitch").tolist()
    assert kept[:24] == everything[:24]  # the global view, whole and first
    assert len(kept) < len(everything)
    assert kept == [token for token in everything if token in kept]


def test_of_two_columns_that_see_one_edge_one_is_kept() -> None:
    """Strips of 90 degrees in steps of 45: with two columns both look 22.5 degrees aside, half a step."""
    for fov_deg in (90.0, 72.0, 51.43, 33.3):
        cameras = rows_of(SlidingWindowCrop(fov_deg=fov_deg, overlap=0.5))
        step = 2 * math.pi / len(cameras)
        cameras[:, Column.H_EXTENT] = 2 * step  # whatever the rounding, the columns lie on the edges
        kept = joined(cameras, (1, 2), "stitch_nearest")
        assert kept[:, 2].tolist() == [0] * len(cameras)


STRATEGIES: st.SearchStrategy[CropStrategy] = st.one_of(
    st.builds(E2pCrop, fov_deg=st.floats(20, 179), overlap=st.floats(0, 0.9)),
    st.builds(
        AnyresE2pCrop,
        fov_deg=st.integers(20, 179).map(float),
        overlap=st.integers(0, 18).map(lambda twentieths: twentieths / 20),
        global_view=st.sampled_from(["letterbox", "resize"]),
    ),
    st.builds(SlidingWindowCrop, fov_deg=st.floats(20, 360), overlap=st.floats(0, 0.9)),
)


@settings(deadline=None, max_examples=150)
@given(strategy=STRATEGIES, height=st.integers(1, 3), width=st.integers(1, 40))
def test_every_ring_is_shown_once_and_counted(strategy: CropStrategy, height: int, width: int) -> None:
    cameras = rows_of(strategy)
    tiles = cameras[cameras[:, Column.IS_GLOBAL] == 0]
    step = 2 * math.pi / len(tiles)
    assert shares(cameras, width, "stitch")[0] < 1e-3
    columns, _ = direction_to_angles(token_directions(tiles[0].double(), (1, width))[0])  # this tile looks ahead
    if columns.abs().min() > step / 2 * (1 + 1e-6):
        with pytest.raises(ValueError, match="nothing to keep"):
            joined(cameras, (height, width), "stitch_nearest")
        return
    kept = joined(cameras, (height, width), "stitch_nearest")  # holds the count to the tokens
    each = (len(kept) - (len(cameras) - len(tiles)) * height * width) / height / len(tiles)
    assert each == int(each)
    yaws = ring_yaws(cameras, (height, width))
    assert len(yaws) == each * len(tiles)
    if len(yaws) > 1:
        gaps = torch.diff(yaws, append=yaws[:1] + 2 * math.pi)
        assert gaps.min() > 1e-5 * 2 * math.pi / len(yaws)
        assert gaps.max() < (step + 1e-6 if each == 1 else 2.01 * columns.diff().max())


def test_a_mixed_batch_is_each_of_its_panoramas() -> None:
    grid = (2, 8)
    crops = [AnyresE2pCrop(), AnyresE2pCrop(overlap=0.0), SlidingWindowCrop(overlap=0.25), ResizeCrop()]
    cameras = [rows_of(strategy) for strategy in crops]
    mask = torch.tensor([[view < len(rows) for view in range(9)] for rows in cameras])
    mask[1] = mask[1].roll(2)  # padding may stand anywhere
    padded = torch.zeros(4, 9, len(Column))
    padded[mask] = torch.cat(cameras)
    tokens = torch.randn(4, 9, 16, 5)
    together, counts = fuse(tokens, mask, "stitch", padded, grid)
    alone = [
        fuse(own[seen][None], torch.ones(1, len(rows), dtype=torch.bool), "stitch", rows[None], grid)[0]
        for own, seen, rows in zip(tokens, mask, cameras, strict=True)
    ]
    assert counts.tolist() == [len(part) for part in alone]
    assert torch.equal(together, torch.cat(alone))
    assert counts.tolist() == [image_token_count(rows, 16, "stitch", grid) for rows in cameras]


def test_only_kept_tokens_get_a_gradient() -> None:
    cameras = rows_of(AnyresE2pCrop())
    tokens = torch.randn(1, 9, 16, 5, requires_grad=True)
    fused, _ = fuse(tokens, torch.ones(1, 9, dtype=torch.bool), "stitch", cameras[None], (2, 8))
    fused.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.sum() == fused.numel()
    assert tokens.grad[0, 0].min() == 1
    assert tokens.grad.unique().tolist() == [0, 1]


def broken(change: int, to: float) -> Tensor:
    cameras = rows_of(E2pCrop(overlap=0.0))
    cameras[1, change] = to
    return cameras


REFUSED = [
    (rows_of(E2pCrop(pitch_rows_deg=(-45.0, 0.0, 45.0))), "look to pitches of -45, 0, 45 degrees"),
    (rows_of(AnyresE2pCrop(pitch_rows_deg=(-30.0, 30.0))), "look to pitches of -30, 30 degrees"),
    (rows_of(CubemapCrop(poles=True)), "look to pitches of -90, 0, 90 degrees"),
    (rows_of(AnyresMaxCrop()), "look to pitches of -60, 0, 60 degrees"),
    (broken(Column.ROLL, 0.3), "are rolled"),
    (broken(Column.YAW, 1.5), "do not close the ring in equal steps"),
    (broken(Column.YAW, 0.0), "do not close the ring in equal steps"),
    (broken(Column.H_EXTENT, 1.8), "not all of one projection and width"),
    (broken(Column.PROJECTION, 1.0), "not all of one projection and width"),
    (rows_of(E2pCrop(overlap=0.0))[:3], "do not close the ring in equal steps"),
    (camera_tensor([Camera(PERSPECTIVE, 0.0, 0.0, 0.0, 3.0, 3.0)]), "do not close the ring in equal steps"),
]


@pytest.mark.parametrize(("cameras", "reason"), REFUSED)
def test_other_crops_are_refused_with_the_reason_and_the_way_out(cameras: Tensor, reason: str) -> None:
    for call in (lambda: check_join(cameras, "stitch"), lambda: image_token_count(cameras, 16, "stitch", (4, 4))):
        with pytest.raises(ValueError, match=r"model\.join=stitch.*model\.join=concat") as refusal:
            call()
        assert reason in str(refusal.value)
    check_join(cameras, "concat")


def test_what_else_cannot_be_stitched() -> None:
    cameras = rows_of(AnyresE2pCrop(overlap=0.9))
    with pytest.raises(ValueError, match=r"40 tiles have 8 columns.*model\.join=concat.*lower crop\.overlap"):
        image_token_count(cameras, 64, "stitch_nearest", (8, 8))
    assert image_token_count(cameras, 64, "stitch", (8, 8)) == 64 + 40 * 8 * 2
    assert image_token_count(cameras, 49, "stitch_nearest", (7, 7)) == 49 + 40 * 7
    with pytest.raises(ValueError, match=r"have no grid.*model\.join=concat.*resampler=mlp"):
        image_token_count(cameras, 64, "stitch", None)
    assert image_token_count(cameras, 64, "concat", None) == 41 * 64
    for call in (lambda: image_token_count(cameras, 64, "knit", (8, 8)), lambda: check_join(cameras, "knit")):
        with pytest.raises(
            ValueError, match=r"model\.join='knit' does not exist\. Available: concat, mean, stitch, stitch_nearest"
        ):
            call()


def test_mean_is_that_of_the_real_views_alone() -> None:
    tokens = torch.randn(2, 3, 4, 5, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    with torch.no_grad():
        tokens[1, 1] = torch.nan
    cameras = rows_of(E2pCrop(fov_deg=120, overlap=0.0)).expand(2, -1, -1)
    found, counts = fuse(tokens, mask, "mean", cameras, None)
    expected = torch.cat([tokens[0].mean(dim=0), (tokens[1, 0] + tokens[1, 2]) / 2])
    assert counts.tolist() == [4, 4]
    assert image_token_count(cameras[0], 4, "mean", None) == 4
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad[1, 1], torch.zeros(4, 5))


@pytest.mark.parametrize("kind", ["adaptive", "panollava.crop.strategies:AdaptiveCrop"])
def test_chosen_views_are_in_no_ring(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of a crop of another package, which is named by its class."""
    monkeypatch.setenv("PANOLLAVA_ALLOW", "panollava")
    model = {"join": "stitch", "resampler": {"type": "bimamba", "scan": "ring"}}
    joined, scanned = crop_misfits({"type": kind}, model)
    assert joined.startswith("model.join=stitch")
    assert scanned.startswith("model.resampler.scan=ring")
    assert f"crop={kind} chooses tiles" in joined
    assert f"crop={kind} chooses tiles" in scanned
    assert crop_misfits({"type": kind}, {"join": "concat", "resampler": {"type": "mlp"}}) == []
    assert crop_misfits({"type": "anyres_e2p"}, model) == crop_misfits({}, model) == []
