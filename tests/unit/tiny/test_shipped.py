"""The shipped backbones: ordinary Hugging Face folders, small, and as good as the numbers beside them."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from experiments.tiny.make import HERE, LANGUAGE_FOLDER, QUALITY, VISION_FOLDER, open_probe
from experiments.tiny.reading import Reader
from experiments.tiny.train_language import measure_language_model
from experiments.tiny.train_vision import measure_encoder
from panollava.data.scenes.questions import KINDS

MOST_BYTES = 8 * 2**20


def test_they_are_small() -> None:
    files = [file for folder in (VISION_FOLDER, LANGUAGE_FOLDER) for file in folder.rglob("*") if file.is_file()]
    assert all(HERE in file.parents for file in files)
    assert 0 < sum(file.stat().st_size for file in files) <= MOST_BYTES


def test_the_encoder_is_an_ordinary_folder() -> None:
    model = AutoModel.from_pretrained(VISION_FOLDER, dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(VISION_FOLDER, backend="pil")
    assert model.config.model_type == "siglip_vision_model"
    assert model(pixel_values=torch.zeros(1, 3, 64, 64)).last_hidden_state.shape == (1, 16, model.config.hidden_size)
    assert list(processor.image_mean) == [0.5, 0.5, 0.5]


def test_the_language_model_is_an_ordinary_folder() -> None:
    model = AutoModelForCausalLM.from_pretrained(LANGUAGE_FOLDER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(LANGUAGE_FOLDER)
    assert model.config.model_type == "qwen3"
    assert model.config.tie_word_embeddings
    assert len(tokenizer) <= model.config.vocab_size
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer("안녕하세요")["input_ids"]) == "안녕하세요"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_the_encoder_is_as_good_as_stated() -> None:
    stated = json.loads((VISION_FOLDER / QUALITY).read_text(encoding="utf-8"))
    measured = measure_encoder(open_probe(), scenes=20)
    for name in ("tile_colour", "tile_shape", "global_colour", "background"):
        assert stated[name] > 0.9
        assert measured[name] > stated[name] - 0.04
    assert measured["offset_error_deg"] < stated["offset_error_deg"] + 0.5


@pytest.mark.parametrize("form", ["written", "views"])
def test_the_language_model_is_as_good_as_stated(form: str) -> None:
    stated = json.loads((LANGUAGE_FOLDER / QUALITY).read_text(encoding="utf-8"))[form]
    model = AutoModelForCausalLM.from_pretrained(LANGUAGE_FOLDER, dtype=torch.float32)
    reader = Reader(AutoTokenizer.from_pretrained(LANGUAGE_FOLDER))
    measured = measure_language_model(model, reader, form=form, scenes=24, seed=2)
    assert set(stated) == {*KINDS, "all"}
    assert stated["all"] >= 0.9
    assert measured["all"] > stated["all"] - 0.05
