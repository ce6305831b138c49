"""``model.tokens_per_side``: tokens of a view averaged over a coarser grid, and all that follows their number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import composite, opened, views_of
from torch import Tensor
from torch.nn import functional

from panollava.component import component_names
from panollava.crop.crop import Crop
from panollava.evaluation.explain import answer_attention
from panollava.model.fusion import image_token_count
from panollava.model.vision import PanoVision, VisionTower
from panollava.model.vlm import PanoLlavaForConditionalGeneration

Backbone = Callable[[str], Path]
CROP = {"type": "anyres_e2p", "overlap": 0.5}
CAMERAS = Crop.from_spec(CROP, view_size=(32, 32)).camera_rows
SMALL: dict[str, dict[str, Any]] = {
    "bimamba": {"width": 16, "layers": 1, "state": 4, "head_width": 8},
    "c_abstractor": {"width": 16, "depth": 1, "tokens_per_side": 3},
    "identity": {},
    "mlp": {"width": 16},
    "perceiver": {"latents": 6, "depth": 1, "width": 16, "heads": 2},
    "pool": {"tokens_per_side": 2},
    "qformer": {"queries": 6, "layers": 1, "width": 16, "heads": 2},
}


@pytest.fixture(scope="module")
def tower(backbone: Backbone) -> VisionTower:
    """Of 4 x 4 patches."""
    return VisionTower.from_pretrained(backbone("siglip"))


def built(tower: VisionTower, kind: str = "mlp", side: int | None = None, **settings: Any) -> PanoVision:
    spec = {"type": kind, **SMALL[kind], **settings}
    return PanoVision.build(tower, resampler=spec, latent_width=24, tokens_per_side=side).eval()


def pixels(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, len(CAMERAS), 3, 32, 32), dtype=torch.uint8, generator=generator)


def exactly_pooled(tokens: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """By PyTorch: each token becomes ``side`` x ``side`` equal ones, so that every side divides."""
    fine = tokens.unflatten(2, grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
    pooled = functional.adaptive_avg_pool2d(fine.flatten(0, 1).movedim(-1, 1), side)
    return pooled.movedim(1, -1).flatten(1, 2).unflatten(0, tokens.shape[:2])


@pytest.mark.parametrize("kind", component_names("model.resampler", "Resampler"))
@torch.no_grad()
def test_tokens_are_the_area_means_of_the_resamplers(tower: VisionTower, kind: str) -> None:
    plain = built(tower, kind)
    grid = plain.token_grid
    assert grid is not None
    tokens = plain(pixels(), cameras=CAMERAS[None])
    for side in range(1, min(grid) + 1):
        pooled = built(tower, kind, side)
        assert (pooled.tokens_per_view, pooled.token_grid) == (side**2, (side, side))
        assert (pooled.resampled_per_view, pooled.resampled_grid) == (plain.tokens_per_view, grid)
        found = pooled(pixels(), cameras=CAMERAS[None])
        torch.testing.assert_close(found, exactly_pooled(tokens, grid, side), rtol=1e-5, atol=1e-5)
    for side in (0, min(grid) + 1):
        with pytest.raises(ValueError, match=rf"model\.tokens_per_side={side}: .*1 to {min(grid)} are possible"):
            built(tower, kind, side)


@torch.no_grad()
def test_the_side_of_the_grid_changes_nothing(tower: VisionTower) -> None:
    plain, same = (built(tower, side=side)(pixels(), cameras=CAMERAS[None]) for side in (None, 4))
    assert torch.equal(plain, same)


@pytest.mark.parametrize(("kind", "key"), [("qformer", "queries"), ("perceiver", "latents")])
def test_tokens_without_a_grid_are_refused_with_the_key_of_their_number(
    tower: VisionTower, kind: str, key: str
) -> None:
    with pytest.raises(ValueError, match=rf"model\.tokens_per_side=2 .*no grid.*model\.resampler\.{key}"):
        built(tower, kind, 2, shortcut=False)
    assert built(tower, kind, shortcut=False).tokens_per_view == SMALL[kind][key]


def test_it_can_be_built_without_weights(tower: VisionTower) -> None:
    with torch.device("meta"):
        assert built(tower, side=3).tokens_per_view == 9


def test_gradients_reach_every_token_of_the_resampler(tower: VisionTower) -> None:
    vision = built(tower, side=3)
    features = torch.randn(1, 2, 16, tower.width, requires_grad=True)
    vision(cameras=CAMERAS[None, :2], vision_features=features).square().sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(-1) > 0).all()


@torch.no_grad()
def test_the_language_model_reads_the_pooled_tokens_with_their_directions(backbone: Backbone) -> None:
    model, _ = composite(backbone("siglip"), backbone("qwen2"), crop=CROP, tokens_per_side=3)
    tokens = model.vision(pixels(), cameras=CAMERAS[None])
    assert tokens.shape[:3] == (1, 9, 9)
    expected = model.projector(model.position(tokens, CAMERAS[None], (3, 3)))
    torch.testing.assert_close(model.encode_views(pixels(), cameras=CAMERAS[None]), expected)


def test_an_export_keeps_it_and_one_from_before_has_none(backbone: Backbone, tmp_path: Path) -> None:
    model, _ = composite(backbone("siglip"), backbone("qwen2"), crop=CROP, tokens_per_side=3)
    model.save_pretrained(tmp_path)
    again = PanoLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert again.vision.token_grid == (3, 3)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("tokens_per_side") == 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert PanoLlavaForConditionalGeneration.from_pretrained(tmp_path).vision.token_grid == (4, 4)


@torch.no_grad()
def test_attention_is_drawn_over_the_pooled_tokens(backbone: Backbone) -> None:
    pano = opened(backbone, tokens_per_side=3)
    assert pano.image_tokens == 81
    found = answer_attention(pano, views_of(pano), "what is red?", "the cube")
    assert found.weights.shape == (9, 9)
    assert bool(found.is_seen.all())


@torch.no_grad()
def test_views_are_stitched_by_their_pooled_columns(backbone: Backbone) -> None:
    """Each of three columns reaches beyond the border to a neighbour's half; two of four would be left out."""
    pano = opened(backbone, tokens_per_side=3, join="stitch")
    assert pano.image_tokens == image_token_count(CAMERAS, 9, "stitch", (3, 3)) == 81
    assert pano.answer(pano.batch([views_of(pano)], [pano.encode("what is red?")]), max_new_tokens=2)
