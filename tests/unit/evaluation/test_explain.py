"""Explaining: components, likeness and attention are what linear algebra and the language model's layers say."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import ANSWER, QUESTION, TOKENS, opened, views_of
from torch import Tensor

from panollava.crop.crop import Crop
from panollava.evaluation.explain import (
    answer_attention,
    chosen_layers,
    last_answer,
    principal_colours,
    see,
    similarity,
    token_towards,
    whole_length,
)
from panollava.model.api import PanoLlava
from panollava.model.lora import add_lora
from panollava.model.vlm import plain_attention

Backbone = Callable[[str], Path]
HISTORY = [("what is there?", "a cube")]


def low_rank(count: int = 200, width: int = 12) -> tuple[Tensor, Tensor]:
    """Rows that three uncorrelated numbers make up, and these numbers, the most varying first."""
    generator = torch.Generator().manual_seed(0)
    scores, _ = torch.linalg.qr(torch.randn(count, 4, generator=generator, dtype=torch.float64))
    scores = scores[:, 1:] - scores[:, 1:].mean(dim=0)
    scores, _ = torch.linalg.qr(scores)
    axes, _ = torch.linalg.qr(torch.randn(width, 3, generator=generator, dtype=torch.float64))
    sizes = torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64)
    return (scores * sizes) @ axes.T + 5, scores * sizes


def test_three_components_of_rows_of_rank_three_are_all_of_them() -> None:
    rows, scores = low_rank()
    colours, share = principal_colours(rows)
    assert share == pytest.approx(1)
    assert colours.min() == 0
    assert colours.max() == 1
    for component in range(3):
        inside = (colours[:, component] > 0) & (colours[:, component] < 1)
        assert inside.sum() > 180  # the outermost in a hundred are cut at each end
        together = np.corrcoef(colours[inside, component], scores[inside, component])
        assert abs(together[0, 1]) == pytest.approx(1)


def test_the_share_of_variance_is_that_of_the_singular_values() -> None:
    rows = torch.randn(60, 20, generator=torch.Generator().manual_seed(1)) * torch.linspace(1, 3, 20)
    values = torch.linalg.svdvals(rows - rows.mean(dim=0)) ** 2
    assert principal_colours(rows)[1] == pytest.approx(float(values[:3].sum() / values.sum()), rel=1e-5)


def test_the_sign_of_a_component_is_settled() -> None:
    rows, _ = low_rank()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(principal_colours(rows[order])[0], principal_colours(rows)[0][order])


@pytest.mark.parametrize("rows", [torch.full((5, 7), 3.1), torch.ones(1, 2)], ids=["alike", "alone"])
def test_rows_without_variance_are_grey(rows: Tensor) -> None:
    colours, _ = principal_colours(rows)
    assert colours.shape == (len(rows), 3)
    assert (colours == 0.5).all()


def test_similarity_is_the_cosine() -> None:
    rows = torch.tensor([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0], [-3.0, -4.0]])
    assert similarity(rows, 0).tolist() == pytest.approx([1, 1, 0, -1])


def test_a_direction_has_the_token_that_shows_it() -> None:
    cameras = Crop.from_spec({"type": "anyres_e2p"}, view_size=(32, 32)).camera_rows
    index, direction = token_towards(cameras, (4, 4), 92.0, 3.0)
    assert index == 3 * TOKENS + 6  # the third tile of a ring of eight; just above and right of its middle
    assert direction.tolist() == pytest.approx([math.cos(0.0523599) * math.sin(1.6057), 0.052336, -0.03485], abs=1e-4)


def test_a_direction_that_no_view_shows_is_refused() -> None:
    cameras = Crop.from_spec({"type": "e2p"}, view_size=(32, 32)).camera_rows
    with pytest.raises(ValueError, match="yaw=0 pitch=80: no view of this crop shows this direction"):
        token_towards(cameras, (4, 4), 0, 80)


def test_see_gives_what_the_model_computes(backbone: Backbone) -> None:
    pano = opened(backbone)
    views = views_of(pano)
    features, tokens = see(pano.model.vision, views, pano.crop.camera_rows)
    with torch.no_grad():
        assert torch.equal(features, pano.model.vision.features(views[None])[0])
        assert torch.equal(tokens, pano.model.vision(views[None], cameras=pano.crop.camera_rows[None])[0])


def of_one_pass(pano: PanoLlava, views: Tensor) -> tuple[list[int], Tensor]:
    """Ids of the conversation, and the attention (layers, S, S) of one plain pass, averaged over heads."""
    encoded = pano.prompt.encode([*HISTORY, (QUESTION, ANSWER)], image_tokens=pano.image_tokens)
    with plain_attention(pano.model.language_model.get_decoder()), torch.no_grad():
        output = pano.model(
            input_ids=torch.tensor([encoded.ids]),
            attention_mask=torch.ones(1, len(encoded.ids), dtype=torch.long),
            pixel_values=views[None],
            cameras=pano.crop.camera_rows[None],
            output_attentions=True,
        )
    return encoded.ids, torch.stack([layer[0].mean(dim=0) for layer in output.attentions])


@pytest.mark.parametrize(
    ("language", "join", "lora"),
    [("qwen2", "concat", False), ("qwen3", "stitch", True), ("llama", "concat", True), ("mistral", "stitch", False)],
)
def test_weights_are_those_of_the_layers(language: str, join: str, lora: bool, backbone: Backbone) -> None:
    """Against one pass over everything, in which each row of attention sums to one."""
    pano = opened(backbone, language, join=join)
    if lora:
        add_lora(pano.model, rank=2)
        pano.model.eval()
    kernel = pano.model.language_model.get_decoder().config._attn_implementation
    views = views_of(pano)
    found = answer_attention(pano, views, QUESTION, ANSWER, history=HISTORY, layers=[1, 2])
    ids, layers = of_one_pass(pano, views)
    assert kernel == pano.model.language_model.get_decoder().config._attn_implementation == "sdpa"
    assert torch.allclose(layers.sum(dim=-1), torch.ones(2, len(ids)), atol=1e-5)

    prompt = pano.prompt.encode([*HISTORY, (QUESTION, None)], image_tokens=pano.image_tokens).ids
    begin, end = len(prompt), next(at for at in range(len(prompt), len(ids)) if ids[at] in pano.prompt.stop_ids)
    assert ids[:begin] == prompt
    assert end - begin > 2
    is_image = torch.tensor(ids) == pano.prompt.image_id
    rows = layers[:, begin - 1 : end - 1].mean(dim=(0, 1))
    assert torch.allclose(found.weights[found.is_seen], rows[is_image], atol=1e-6)
    assert found.image_share == pytest.approx(float(rows[is_image].sum()), abs=1e-5)
    assert 0.1 < found.image_share < 1
    others = layers[:, begin:end].mean(dim=(0, 1))
    assert not torch.allclose(found.weights[found.is_seen], others[is_image], atol=1e-5)
    assert int(found.is_seen.sum()) == pano.image_tokens == (TOKENS * 9 if join == "concat" else TOKENS * 5)
    assert not found.weights[~found.is_seen].any()


def test_a_window_of_the_language_model_is_kept(backbone: Backbone) -> None:
    """Tokens out of the window get nothing; the cache no longer holds them when the answer is read."""
    pano = opened(backbone, "mistral")
    pano.model.language_model.config.sliding_window = 60
    views = views_of(pano)
    found = answer_attention(pano, views, QUESTION, ANSWER, history=HISTORY, layers=[1, 2])
    ids, layers = of_one_pass(pano, views)
    begin = len(pano.prompt.encode([*HISTORY, (QUESTION, None)], image_tokens=pano.image_tokens).ids)
    rows = layers[:, begin - 1 : len(ids) - 2].mean(dim=(0, 1))
    assert ids[-1] in pano.prompt.stop_ids
    assert torch.allclose(found.weights.flatten(), rows[torch.tensor(ids) == pano.prompt.image_id], atol=1e-6)
    assert (found.weights[:5] == 0).all()
    assert (found.weights[-1] > 0).any()


def test_layers_differ_and_the_last_third_is_the_default(backbone: Backbone) -> None:
    pano = opened(backbone)
    views = views_of(pano)
    first, last, usual = (answer_attention(pano, views, QUESTION, ANSWER, layers=one) for one in ([1], [2], None))
    assert torch.equal(last.weights, usual.weights)
    assert usual.layers == (2,)
    assert not torch.allclose(first.weights, last.weights)


@pytest.mark.parametrize(("count", "layers"), [(1, [1]), (4, [3, 4]), (12, [9, 10, 11, 12]), (28, [*range(19, 29)])])
def test_the_last_third(count: int, layers: list[int]) -> None:
    assert chosen_layers(count, None) == layers


@pytest.mark.parametrize("layers", [[0], [3], [1, 3], []])
def test_a_layer_that_is_not_there_is_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"layers=\[.*\]: allowed are one or more of 1 to 2"):
        chosen_layers(2, layers)


def test_the_last_answer_is_that_of_the_last_turn_without_its_end() -> None:
    is_target = [False, True, True, False, False, True, True, True]
    assert last_answer(is_target, [5, 6, 2, 5, 5, 7, 8, 2], stop_ids=[2]) == [5, 6]
    assert last_answer([False, True], [5, 2], stop_ids=[2]) == [1]  # an empty answer is its end


def test_a_sliding_window_attends_to_nothing_before_it() -> None:
    seen = torch.tensor([[[[0.25, 0.75]], [[0.75, 0.25]]]])  # one row of two heads
    assert whole_length(seen, 5).tolist() == [[0, 0, 0, 0.5, 0.5]]


def test_the_own_kernel_is_restored_after_an_error(backbone: Backbone) -> None:
    decoder = opened(backbone).model.language_model.get_decoder()

    def fail() -> None:
        with plain_attention(decoder):
            assert decoder.config._attn_implementation == "eager"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert decoder.config._attn_implementation == "sdpa"
