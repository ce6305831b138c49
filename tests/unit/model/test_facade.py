"""PanoLlava in memory: batches, streams, conversations, and what it writes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from support.chat_templates import LLAMA32
from support.models import composite
from torch import Tensor
from transformers import AutoModelForImageTextToText

from panollava.batch import Batch
from panollava.crop.crop import Crop
from panollava.data.dataset import Sample
from panollava.data.loader import Collate
from panollava.model.api import PanoLlava
from panollava.model.decoding import AnswerStream
from panollava.model.lora import LORA, add_lora, has_lora
from panollava.prompt import ChatPrompt

Backbone = Callable[[str], Path]
QUESTIONS = ["what?", "what is the colour of the cube to the right?", "무엇이 보이나요, red or blue?"]


def panorama(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 128, 3), dtype=np.uint8)


def opened(backbone: Backbone, language: str = "llama") -> PanoLlava:
    """A model whose weights are large enough that what it says depends on what it is asked."""
    model, tokenizer = composite(backbone("siglip"), backbone(language))
    with torch.no_grad():
        for weight in model.language_model.parameters():
            weight.mul_(10 if weight.ndim == 2 else 1)
    return PanoLlava(model, ChatPrompt(tokenizer), Crop.from_spec(model.config.crop, view_size=(32, 32)))


def with_adapter(pano: PanoLlava) -> PanoLlava:
    """An adapter attached that says something."""
    add_lora(pano.model, rank=4)
    with torch.no_grad():
        for name, weight in pano.model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(generator=torch.Generator().manual_seed(1), std=0.3)
    pano.model.eval()
    return pano


@torch.no_grad()
def logits(pano: PanoLlava) -> Tensor:
    batch = pano.batch([pano.views(panorama())], [pano.encode(QUESTIONS[0])])
    return pano.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        cameras=batch.cameras,
        view_mask=batch.view_mask,
    ).logits


@pytest.mark.parametrize("language", ["qwen2", "qwen3", "llama", "mistral"])
def test_a_batch_answers_as_one_by_one(language: str, backbone: Backbone) -> None:
    pano = opened(backbone, language)
    images = [panorama(seed) for seed in range(3)]
    alone = [
        pano.generate(image, question, max_new_tokens=9) for image, question in zip(images, QUESTIONS, strict=True)
    ]
    assert len(set(alone)) > 1
    assert pano.generate_batch(images, QUESTIONS, max_new_tokens=9) == alone
    encoded = [pano.encode(question) for question in QUESTIONS]
    batch = pano.batch([pano.views(image) for image in images], encoded)
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(1).tolist() == [len(one.ids) for one in encoded]
    assert batch.attention_mask[:, -1].tolist() == [1, 1, 1]


def test_a_stream_is_the_answer_in_pieces(backbone: Backbone) -> None:
    pano = opened(backbone)
    pieces: list[str] = []
    answer = pano.generate(panorama(), QUESTIONS[1], max_new_tokens=24, on_text=pieces.append)
    assert answer == pano.generate(panorama(), QUESTIONS[1], max_new_tokens=24)
    assert "".join(pieces) == answer
    assert len(pieces) > 3
    batch = pano.batch([pano.views(panorama())] * 2, [pano.encode("what?")] * 2)
    with pytest.raises(ValueError, match="One answer can be streamed at a time, not 2"):
        pano.answer(batch, on_text=pieces.append)


@pytest.mark.parametrize("text", ["무엇 🙂 red", "  a  b\n\n c ", "", " \n", "뒤에 있어요."])
def test_no_half_character_is_streamed(text: str, backbone: Backbone) -> None:
    tokenizer = opened(backbone).prompt.tokenizer
    pieces: list[str] = []
    stream = AnswerStream(tokenizer, pieces.append)
    stream.put(torch.tensor([[5, 6, 7]]))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for token in [*ids, tokenizer.eos_token_id]:
        stream.put(torch.tensor([token]))
        assert text.strip().startswith("".join(pieces))
    stream.end()
    assert "".join(pieces) == text.strip()
    assert all(pieces)


def test_a_conversation_remembers(backbone: Backbone) -> None:
    pano = opened(backbone)
    conversation = pano.chat(panorama())
    first = conversation.ask("what?", max_new_tokens=6)
    second = conversation.ask("where?", max_new_tokens=6)
    history = [("what?", first)]
    assert second == pano.generate(panorama(), "where?", history=history, max_new_tokens=6)
    assert conversation.turns == [*history, ("where?", second)]
    assert second != pano.generate(panorama(), "where?", max_new_tokens=6)
    conversation.turns.clear()
    assert conversation.ask("where?", max_new_tokens=6) == pano.generate(panorama(), "where?", max_new_tokens=6)


def test_objects_show_what_they_are_in_one_line(backbone: Backbone, tmp_path: Path) -> None:
    pano = opened(backbone)
    shown = "vision=siglip, language=llama, resampler=mlp, crop=anyres_e2p)"
    assert repr(pano) == f"PanoLlava({shown}"
    conversation = pano.chat(panorama())
    conversation.turns.append(("what?", "a cube"))
    assert repr(conversation) == f"Conversation(1 turns, {pano!r})"
    pano.save_pretrained(tmp_path)
    assert repr(PanoLlava.from_pretrained(tmp_path)) == f"PanoLlava(checkpoint={tmp_path}, {shown}"
    pano.metadata["stage"] = "finetune"
    assert repr(pano) == f"PanoLlava(stage=finetune, {shown}"


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(backbone: Backbone) -> None:
    conversation = opened(backbone).chat(panorama())
    whole = conversation.ask(QUESTIONS[1], max_new_tokens=24)
    conversation.turns.clear()
    heard: list[str] = []

    def stop(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask(QUESTIONS[1], max_new_tokens=24, on_text=stop)
    assert conversation.turns == [(QUESTIONS[1], "".join(heard))]
    assert whole.startswith("".join(heard))
    assert len(heard) == 2


def test_what_does_not_fit_is_left_out_oldest_first_or_refused(backbone: Backbone) -> None:
    pano = opened(backbone)
    positions = pano.model.config.get_text_config().max_position_embeddings
    long = [(f"question {number} " + "a b c " * 30, "red") for number in range(8)]
    encoded = pano.encode("what?", long, max_new_tokens=20)
    assert encoded.cut > 0
    assert len(encoded.ids) + 20 <= positions
    assert encoded.ids.count(pano.prompt.image_id) == pano.image_tokens
    kept = next(number for number in range(9) if pano.encode("what?", long[number:], max_new_tokens=20).cut == 0)
    assert encoded.ids == pano.encode("what?", long[kept:], max_new_tokens=20).ids
    assert 0 < kept < 8
    with pytest.raises(ValueError, match=r"takes 512 tokens.*80 of them, max_new_tokens=20.*Shorten it"):
        pano.encode("a b c " * 200, max_new_tokens=20)
    with pytest.raises(ValueError, match="lower max_new_tokens"):
        pano.generate(panorama(), "what?", max_new_tokens=432)


def test_a_token_without_an_embedding_may_pad_and_may_not_be_asked(backbone: Backbone) -> None:
    pano = opened(backbone)
    images = [panorama(seed) for seed in range(3)]
    expected = pano.generate_batch(images, QUESTIONS, max_new_tokens=9)
    tokenizer = pano.prompt.tokenizer
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<box>"])
    assert tokenizer.pad_token_id >= pano.limits.rows
    assert pano.generate_batch(images, QUESTIONS, max_new_tokens=9) == expected
    with pytest.raises(ValueError, match=r"be encoded: the language model has \d+ embeddings and none for <box>"):
        pano.generate(images[0], "what is <box>?")


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_id_of_a_pad_means_nothing(backbone: Backbone, side: Literal["left", "right"]) -> None:
    pano = opened(backbone)
    samples = [Sample("a", pano.views(panorama()), pano.crop.camera_rows, pano.encode(text)) for text in QUESTIONS]
    batches = [Collate(pad_id=pad, padding_side=side)(samples) for pad in (0, 3, pano.limits.rows + 5)]
    found = []
    for batch in batches:
        assert isinstance(batch, Batch)
        output = pano.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=batch.pixel_values,
            cameras=batch.cameras,
            view_mask=batch.view_mask,
        )
        assert batch.attention_mask is not None
        found.append(output.logits[batch.attention_mask.bool()])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_sequence_beyond_the_positions_is_refused(backbone: Backbone) -> None:
    pano = opened(backbone)
    encoded = pano.prompt.encode([("a b c " * 400, None)], image_tokens=pano.image_tokens)
    batch = pano.batch([pano.views(panorama())], [encoded])
    with pytest.raises(ValueError, match=r"more than the language model's 512 positions\. Shorten the text"):
        pano.answer(batch, max_new_tokens=2)


def test_an_export_keeps_the_day_that_prompts_name(backbone: Backbone, tmp_path: Path) -> None:
    pano = opened(backbone)
    pano.prompt.tokenizer.chat_template = LLAMA32
    pano.prompt = ChatPrompt(pano.prompt.tokenizer, today=date(2024, 7, 3))
    pano.save_pretrained(tmp_path)
    again = PanoLlava.from_pretrained(tmp_path)
    assert again.prompt.format.record() == pano.prompt.format.record()
    assert again.encode("what?") == pano.encode("what?")


def test_an_adapter_is_kept_beside_and_found_again(backbone: Backbone, tmp_path: Path) -> None:
    plain = logits(opened(backbone))
    pano = with_adapter(opened(backbone))
    expected = logits(pano)
    assert (expected - plain).abs().max() > 0.1
    with pytest.raises(ValueError, match="has LoRA"):
        pano.save_pretrained(tmp_path / "refused")
    pano.save_pretrained(tmp_path / "kept", keep_lora=True)
    assert has_lora(pano.model)
    torch.testing.assert_close(logits(pano), expected, rtol=0, atol=0)
    assert {path.name for path in (tmp_path / "kept" / LORA).iterdir()} == {
        "adapter_config.json",
        "belongs_to.json",
        "adapter_model.safetensors",
    }
    again = PanoLlava.from_pretrained(tmp_path / "kept")
    assert has_lora(again.model)
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=0)
    again.model = AutoModelForImageTextToText.from_pretrained(tmp_path / "kept")
    assert not again.model.training
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=0)
    again.merge_lora_weights()
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-3)  # of weights that are large
    with pytest.raises(ValueError, match=r"holds lora_weights of another model"):
        again.save_pretrained(tmp_path / "kept")
    again.save_pretrained(tmp_path / "merged", keep_lora=True)  # there is none to keep
    assert not (tmp_path / "merged" / LORA).exists()
    merged = PanoLlava.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(again), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, "what?"), TypeError, "Give one panorama, not a NoneType"),
        (([panorama()], "what?"), TypeError, "not a list. generate_batch takes several"),
        ((panorama(), ["what?"]), TypeError, "give one text. generate_batch takes several"),
        ((panorama(), None), TypeError, "question=None: give one text"),
        ((panorama()[..., 0], "what?"), ValueError, r"\(64, 128\) uint8"),
        ((panorama() / 255, "what?"), ValueError, "float64"),
    ],
)
def test_arguments_that_are_none(arguments: Any, error: type[Exception], message: str, backbone: Backbone) -> None:
    with pytest.raises(error, match=message):
        opened(backbone).generate(*arguments)


def test_a_batch_takes_one_question_for_all(backbone: Backbone) -> None:
    pano = opened(backbone)
    images = [panorama(seed) for seed in range(2)]
    asked = pano.generate_batch(images, "what?", max_new_tokens=4)
    assert asked == pano.generate_batch(np.stack(images), ["what?", "what?"], max_new_tokens=4)
    assert pano.generate_batch([], []) == pano.generate_batch([], "what?") == []
    for single in ("a.jpg", Path("a.jpg"), images[0], Image.fromarray(images[0])):
        with pytest.raises(TypeError, match="images are a list of panoramas, not one"):
            pano.generate_batch(single, "what?")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 pictures and 1 questions: give one question a picture, or one text for"):
        pano.generate_batch(images, ["what?"])
    with pytest.raises(TypeError, match="questions=None"):
        pano.generate_batch(images, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"history=.*give a list of .question, answer. texts"):
        pano.generate(images[0], "what?", history=["what?"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"generation=.*give panollava.generation.GenerationOptions"):
        pano.generate(images[0], "what?", generation={"num_beams": 2})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"generation.max_new_tokens=0: allowed"):
        pano.chat(images[0]).ask("what?", max_new_tokens=0)
    with pytest.raises(ValueError, match=r"pano.merge_lora_weights\(\) first.*keep_lora=True"):
        with_adapter(pano).save_pretrained("never")
