"""Texts that share what comes before them: the same loss, gradients and answers as each by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from support.models import ANSWER, QUESTION, Backbone, opened, views_of
from torch import Tensor
from torch.nn import functional

from panollava.batch import IGNORE_INDEX, PAD, PREFIX, Batch, image_end, pack
from panollava.data.dataset import Sample
from panollava.data.loader import Collate
from panollava.generation import GenerationOptions
from panollava.model.api import PanoLlava
from panollava.model.lora import add_lora
from panollava.model.shared_prefix import SPLIT, attend_split, packed_mask, prefill, unshareable
from panollava.prompt import Encoded
from panollava.stages.language import InstructStage
from panollava.stages.protocol import StageSetup

IMAGE = 9
HISTORY = (("where is it?", "left"),)
ASKED = (
    ("first", QUESTION),
    ("second", "why?"),
    ("first", "is it a cube?"),
    ("first", "how many?"),
    ("second", "is it?"),
)
"""Name of the panorama, and question."""


def texts() -> some.SearchStrategy[list[tuple[list[int], list[int]]]]:
    """Texts with 0 to 3 image tokens behind one of two beginnings, and labels behind the image alone."""
    words = some.lists(some.integers(0, 8), min_size=1, max_size=4)

    def text(start: list[int], image: int, rest: list[int]) -> tuple[list[int], list[int]]:
        ids = [*start, *[IMAGE] * image, *rest]
        return ids, [IGNORE_INDEX] * (len(ids) - len(rest)) + rest

    starts = some.sampled_from(([], [1], [2, 3]))
    return some.lists(some.builds(text, starts, some.integers(1, 3), words), min_size=1, max_size=5)


@given(texts())
def test_a_packed_row_has_each_text_whole(given_texts: list[tuple[list[int], list[int]]]) -> None:
    rows = pack(given_texts, IMAGE)
    found = []
    for row in rows:
        assert len({*map(len, (row.ids, row.labels, row.positions, row.segments))}) == 1
        for number in range(1, max(row.segments) + 1):
            own = [at for at, segment in enumerate(row.segments) if segment in (PREFIX, number)]
            assert [row.positions[at] for at in own] == list(range(len(own)))
            found.append(([row.ids[at] for at in own], [row.labels[at] for at in own]))
        # Where a text begins, the label is not predicted from the end of another one.
        starts = [at for at in range(1, len(row.ids)) if row.segments[at] != row.segments[at - 1]]
        assert all(row.labels[at] == IGNORE_INDEX for at in starts)
    assert sorted(found) == sorted(given_texts)
    assert len(rows) == len({tuple(ids[: image_end(ids, IMAGE) - 1]) for ids, _ in given_texts})


@given(some.lists(some.integers(PAD, 3), min_size=1, max_size=9))
def test_a_token_sees_what_comes_before_it_in_its_text(segments: list[int]) -> None:
    mask = packed_mask(torch.tensor([segments]))[0, 0]
    for query, own in enumerate(segments):
        for key, other in enumerate(segments):
            sees = key <= query and (other == own or (other == PREFIX and own != PAD))
            assert bool(mask[query, key]) == sees
    assert mask.diagonal().all()


@given(some.integers(0, 4), some.lists(some.integers(1, 3), min_size=1, max_size=5), some.integers(0, 2))
def test_a_split_attention_is_that_of_the_whole_mask(prefix: int, texts: list[int], pads: int) -> None:
    """Rows of two panoramas; the second one's prefix is a token shorter."""
    rows = [[PREFIX] * prefix + sorted(texts) + [PAD] * pads]
    rows.append([PREFIX] * max(0, prefix - 1) + sorted(texts) + [PAD] * (pads + min(1, prefix)))
    mask = packed_mask(torch.tensor(rows))
    generator = torch.Generator().manual_seed(prefix)
    query, key, value = (torch.randn(2, 4, len(rows[0]), 8, generator=generator) for _ in range(3))
    module = torch.nn.Module()
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    for start in range(max(0, prefix - 1) + 1):
        found, _ = attend_split(module, query, key, value, mask[:, :, start:], is_causal=None)
        torch.testing.assert_close(found, expected)


def samples(pano: PanoLlava, *, share: bool) -> list[Sample]:
    """Questions about two panoramas with answers; with ``share`` each panorama comes once."""
    seen: set[str] = set()
    found = []
    for name, question in ASKED:
        text = pano.prompt.encode([(question, ANSWER)], image_tokens=pano.image_tokens, targets="text")
        views = None if share and name in seen else views_of(pano, seed=len(name))
        seen.add(name)
        found.append(Sample(question, views, pano.crop.camera_rows, text, shares=name if share else None))
    return found


def stage_of(pano: PanoLlava, *, recompute: bool = False) -> InstructStage:
    add_lora(pano.model, rank=2, alpha=4, dropout=0.0)
    with torch.no_grad():
        for name, weight in pano.model.named_parameters():
            if "lora_B" in name:  # zero at the start: A would have no gradient
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return InstructStage(pano.model, StageSetup("finetune", checkpoint_activations=recompute)).train()


def gradients(stage: InstructStage, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    stage.zero_grad()
    loss = stage(batch).losses["language"]
    loss.backward()
    return loss.detach(), {
        name: weight.grad.clone() for name, weight in stage.trained().items() if weight.grad is not None
    }


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("language", ["llama", "mistral", "qwen2", "qwen3"])
def test_gradients_are_those_of_separate_texts(backbone: Backbone, language: str, kernel: str) -> None:
    pano = opened(backbone, language)
    pano.model.language_model.set_attn_implementation(kernel)
    stage, collate = stage_of(pano), Collate(image_id=pano.prompt.image_id)
    apart, shared = (collate(samples(pano, share=share)) for share in (False, True))
    assert isinstance(apart, Batch)
    assert isinstance(shared, Batch)
    assert shared.input_ids is not None
    assert (len(shared), len(shared.input_ids), len(shared.cameras)) == (5, 2, 2)
    assert stage.counts(shared) == stage.counts(apart)
    loss, expected = gradients(stage, apart)
    found_loss, found = gradients(stage, shared)
    torch.testing.assert_close(found_loss, loss, rtol=1e-5, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    assert stage(shared).metrics == stage(apart).metrics
    assert pano.model.language_model.config._attn_implementation == (SPLIT if kernel == "sdpa" else kernel)


def test_activations_are_recomputed_of_packed_rows_too(backbone: Backbone) -> None:
    pano = opened(backbone)
    batch = Collate(image_id=pano.prompt.image_id)(samples(pano, share=True))
    assert isinstance(batch, Batch)
    _, expected = gradients(stage_of(pano), batch)
    pano = opened(backbone)
    _, found = gradients(stage_of(pano, recompute=True), batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def questions(pano: PanoLlava, *, share: bool, history: bool = False) -> Batch:
    """A batch for answers; with ``history`` the second panorama's questions come after other turns."""
    found = samples(pano, share=share)
    for at, (name, question) in enumerate(ASKED):
        before = HISTORY if history and name == "second" else ()
        found[at] = replace(found[at], text=pano.encode(question, before))
    batch = Collate(padding_side="left")(found)
    assert isinstance(batch, Batch)
    return batch


@pytest.mark.parametrize("language", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_next_token_after_a_shared_prefix(backbone: Backbone, language: str) -> None:
    pano = opened(backbone, language)
    apart, shared = (questions(pano, share=share, history=True) for share in (False, True))
    with torch.inference_mode():
        expected = pano.model(**apart.model_inputs).logits[:, -1]
        inputs = prefill(pano.model, shared.model_inputs, 1)
        known = inputs["past_key_values"].get_seq_length()
        inputs["input_ids"] = inputs["input_ids"][:, known:]
        found = pano.model(**inputs).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected - expected[:1])[1:].abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("language", ["llama", "mistral", "qwen2", "qwen3"])
def test_answers_are_those_of_separate_questions(backbone: Backbone, language: str, beams: int, history: bool) -> None:
    pano = opened(backbone, language)
    options = GenerationOptions(max_new_tokens=6, num_beams=beams)
    apart = pano.answer(questions(pano, share=False, history=history), generation=options)
    shared = questions(pano, share=True, history=history)
    assert len(shared.cameras) == 2
    assert pano.answer(shared, generation=options) == apart


def test_samples_are_those_of_separate_questions(backbone: Backbone) -> None:
    """A row's random numbers depend on its picture and question."""
    pano = opened(backbone)
    options = GenerationOptions(max_new_tokens=6, temperature=1.0, seed=3)
    apart = pano.answer(questions(pano, share=False), generation=options)
    assert pano.answer(questions(pano, share=True), generation=options) == apart


def test_a_window_that_is_too_short_is_computed_apart(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    pano = opened(backbone, "mistral")
    config = pano.model.language_model.config
    length = questions(pano, share=True).input_ids.shape[1]  # type: ignore[union-attr]
    assert not unshareable(pano.model.language_model, length)
    config.sliding_window = length - 1
    assert "tokens back" in unshareable(pano.model.language_model, length)
    monkeypatch.setattr("panollava.model.api.prefill", None)
    options = GenerationOptions(max_new_tokens=4)
    apart = pano.answer(questions(pano, share=False), generation=options)
    assert pano.answer(questions(pano, share=True), generation=options) == apart


def test_flash_attention_is_refused_by_name(backbone: Backbone) -> None:
    pano = opened(backbone)
    pano.model.language_model.config._attn_implementation = "flash_attention_2"
    assert "model.language.attn_implementation=flash_attention_2" in unshareable(pano.model.language_model, 8)


def test_texts_without_learnt_tokens_before_the_answer_pack_too() -> None:
    """One sample in a batch, and labels only in the answer."""
    text = Encoded([1, IMAGE, IMAGE, 4, 5], [False] * 4 + [True], 0)
    cameras = torch.zeros(2, 11)
    sample = Sample("a", torch.zeros(2, 3, 4, 4, dtype=torch.uint8), cameras, text, shares="x")
    batch = Collate(image_id=IMAGE)([sample])
    assert isinstance(batch, Batch)
    assert batch.input_ids is not None
    assert batch.input_ids.tolist() == [text.ids]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[IGNORE_INDEX] * 4 + [5]]
