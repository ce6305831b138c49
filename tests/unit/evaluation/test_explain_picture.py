"""The picture of an explanation: attention lies where it goes, and what has no place is left out with a note."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import ANSWER, QUESTION, TOKENS, opened, views_of
from torch import Tensor
from transformers.models.qwen2 import modeling_qwen2

from panollava.crop.crop import Crop
from panollava.crop.sphere import angles_to_direction, pixel_to_direction
from panollava.evaluation.drawing import PANEL
from panollava.evaluation.explain import (
    CAVEAT,
    GRIDLESS,
    MEAN,
    SPEECHLESS,
    AnswerAttention,
    TokenMap,
    answer_attention,
    attention_panel,
    explain_picture,
    times_even,
    token_towards,
)
from panollava.model.api import PanoLlava, VisionPart
from panollava.model.resampler.mlp import MlpResampler

Backbone = Callable[[str], Path]


@pytest.mark.parametrize(("join", "yaw"), [("concat", 0.0), ("concat", 180.0), ("stitch", -90.0)])
def test_attention_forced_to_one_token_is_painted_there(
    join: str, yaw: float, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    pano = opened(backbone, join=join)
    cameras = pano.crop.camera_rows
    wanted, _ = token_towards(cameras, (4, 4), yaw + 8, 8)
    ids = pano.prompt.encode([(QUESTION, ANSWER)], image_tokens=pano.image_tokens).ids
    seen = answer_attention(pano, views_of(pano), QUESTION, ANSWER).is_seen
    assert seen.flatten()[wanted]
    at = ids.index(pano.prompt.image_id) + int(seen.flatten()[:wanted].sum())

    def forced(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        weights = query.new_zeros(*query.shape[:3], key.shape[2])
        weights[..., at] = 1
        return query.transpose(1, 2).contiguous(), weights

    monkeypatch.setattr(modeling_qwen2, "eager_attention_forward", forced)
    found = answer_attention(pano, views_of(pano), QUESTION, ANSWER)
    assert found.weights.flatten().nonzero().tolist() == [[wanted]]
    assert found.image_share == 1
    lie = TokenMap(cameras, (4, 4), (90, 180))
    painted = times_even(found.weights, found.is_seen / found.is_seen.sum(), lie)
    row, column = torch.meshgrid(torch.arange(90.0), torch.arange(180.0), indexing="ij")
    directions = pixel_to_direction(column, row, (90, 180)).double()
    centre = angles_to_direction(*torch.tensor([yaw + 14.0, 14.0], dtype=torch.float64).deg2rad())  # of the patch
    apart = (directions @ centre).clamp(-1, 1).acos()
    assert (apart[painted > 0] < math.radians(20)).all()
    assert (painted[apart < math.radians(10)] > 1).all()
    panel = attention_panel(np.zeros((64, 128, 3), np.uint8), found, TokenMap(cameras, (4, 4), PANEL))
    bright = torch.from_numpy(panel.picture.max(axis=-1) > 60).nonzero().double()
    turn = torch.remainder(bright[:, 1] / PANEL[1] * 360 - 180 - (yaw + 14), 360)
    assert len(bright) > 1000
    assert ((turn < 15) | (turn > 345)).all()


def test_even_attention_is_one_everywhere() -> None:
    cameras = Crop.from_spec({"type": "anyres_e2p"}, view_size=(32, 32)).camera_rows
    weights = torch.full((9, TOKENS), 0.004)
    painted = times_even(weights, torch.full((9, TOKENS), 1 / (9 * TOKENS)), TokenMap(cameras, (4, 4), (90, 180)))
    assert torch.allclose(painted, torch.ones_like(painted))


PANORAMA = np.random.default_rng(0).integers(0, 256, (128, 256, 3), np.uint8)
DIRECTION = {"yaw_deg": 40.0, "pitch_deg": 10.0}


def page_of(pano: PanoLlava | None, whole: PanoLlava) -> tuple[np.ndarray, list[str]]:
    part = VisionPart("name", whole.model.vision, whole.crop, pano)
    asked = None if pano is None else (QUESTION, ANSWER)
    return explain_picture(PANORAMA, views_of(whole), asked=asked, **vars(part), **DIRECTION)


def test_what_cannot_be_shown_is_left_out_with_a_note(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, mean = opened(backbone), opened(backbone, join="mean")
    full, notes = page_of(whole, whole)
    assert CAVEAT in notes
    assert not {GRIDLESS, SPEECHLESS, MEAN} & set(notes)
    _, notes = page_of(None, whole)
    assert SPEECHLESS in notes
    assert CAVEAT not in notes
    _, notes = page_of(mean, mean)
    assert MEAN in notes
    assert CAVEAT not in notes
    monkeypatch.setattr(MlpResampler, "token_grid", lambda self, grid: None)
    gridless, notes = page_of(whole, whole)
    assert {CAVEAT, GRIDLESS} <= set(notes)
    assert gridless.shape[0] < full.shape[0] - PANEL[0]  # two panels fewer, which is a row


def test_views_without_a_grid_are_painted_with_their_sums() -> None:
    cameras = Crop.from_spec({"type": "cubemap", "poles": True}, view_size=(32, 32)).camera_rows
    weights = torch.arange(6.0)[:, None].expand(6, 3) / 100
    found = AnswerAttention(weights, torch.ones(6, 3, dtype=torch.bool), (2, 3), 3)
    panel = attention_panel(np.zeros((64, 128, 3), np.uint8), found, TokenMap(cameras, (1, 1), PANEL))
    assert "whole views" in panel.title
    assert "layers 2, 3 of 3" in panel.title
    assert "45% of all attention" in panel.caption
    assert panel.scale is not None
    assert panel.scale[2] == "2.0"  # the heaviest view has 15 of 45 parts, and even attention gives it a sixth
    shades = panel.picture.max(axis=-1)
    row = [shades[PANEL[0] // 2, round(PANEL[1] * share)] for share in (0.5, 0.75, 0.01, 0.25)]  # front right back left
    assert row == sorted(set(row))
    assert len(np.unique(panel.picture.reshape(-1, 3), axis=0)) == 6
