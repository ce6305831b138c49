"""The composite with model.join=stitch: placeholders, padding views, beams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import composite
from torch import Tensor
from torch.nn.functional import pad

from panollava.crop.crop import Crop
from panollava.model.fusion import image_token_count

Backbone = Callable[[str], Path]
CROP = {"type": "anyres_e2p", "overlap": 0.5}
VIEWS, GRID = 9, (4, 4)
COUNT = 16 + 8 * 8
"""Of the four columns of a tile the middle two are nearer to its centre than to a neighbour's."""


@pytest.fixture
def model(backbone: Backbone) -> Any:
    stitched = composite(backbone("siglip"), backbone("qwen2"), join="stitch", crop=CROP)[0]
    assert stitched.vision.token_grid == GRID
    stitched.generation_config.eos_token_id = None
    return stitched


def inputs(model: Any, words: tuple[int, ...]) -> dict[str, Tensor]:
    """Left-padded prompts of an image and so many words after it."""
    random = torch.Generator().manual_seed(1)
    cameras = Crop.from_spec(CROP, view_size=(32, 32)).camera_rows
    assert image_token_count(cameras, 16, "stitch", GRID) == COUNT
    image = torch.full((COUNT,), model.config.image_token_id)
    rows = [torch.cat([image, torch.randint(10, 250, (count,), generator=random)]) for count in words]
    lacking = [max(words) - count for count in words]
    ones = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": torch.stack([pad(row, (lack, 0)) for row, lack in zip(rows, lacking, strict=True)]),
        "attention_mask": torch.stack([pad(row, (lack, 0)) for row, lack in zip(ones, lacking, strict=True)]),
        "pixel_values": torch.randint(0, 256, (len(words), VIEWS, 3, 32, 32), dtype=torch.uint8, generator=random),
        "cameras": cameras.repeat(len(words), 1, 1),
        "view_mask": torch.ones(len(words), VIEWS, dtype=torch.bool),
    }


@torch.no_grad()
def test_kept_tokens_take_the_placeholders_in_order(model: Any) -> None:
    batch = inputs(model, (5, 5))
    tokens = model.encode_views(batch["pixel_values"], cameras=batch["cameras"]).unflatten(2, GRID)
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    embeddings[:, :16] = tokens[:, 0].flatten(1, 2)
    embeddings[:, 16:COUNT] = tokens[:, 1:, :, 1:3].flatten(1, 3)
    expected = model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(model(**batch).logits, expected)


@torch.no_grad()
def test_padding_views_are_left_out(model: Any) -> None:
    batch = inputs(model, (5, 5))
    padded = batch | {
        "cameras": pad(batch["cameras"], (0, 0, 0, 3)),
        "pixel_values": pad(batch["pixel_values"], (0, 0, 0, 0, 0, 0, 0, 3)),
        "view_mask": pad(batch["view_mask"], (0, 3)),
    }
    torch.testing.assert_close(model(**padded).logits, model(**batch).logits)


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "use_cache": False}])
@torch.no_grad()
def test_an_answer_is_the_same_in_a_batch_and_alone(model: Any, options: dict[str, Any]) -> None:
    batch = inputs(model, (4, 9))
    length = batch["input_ids"].shape[1]
    together = model.generate(**batch, **options, max_new_tokens=4, do_sample=False)[:, length:]
    assert together.shape == (2, 4)
    for row, lack in enumerate((5, 0)):
        single = {name: value[row : row + 1] for name, value in batch.items()}
        single |= {name: single[name][:, lack:] for name in ("input_ids", "attention_mask")}
        alone = model.generate(**single, **options, max_new_tokens=4, do_sample=False)
        assert torch.equal(alone[0, length - lack :], together[row])
