"""The shipped backbones: ordinary Hugging Face folders, small, and as good as the numbers beside them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from experiments.tiny.boxes import FORMS, RANGES, BoxReader, measure_boxes
from experiments.tiny.make import BOXES_FOLDER, HERE, LANGUAGE_FOLDER, QUALITY, VISION_FOLDER, open_probe
from experiments.tiny.reading import NO_WORD, Reader
from experiments.tiny.train_language import measure_language_model
from experiments.tiny.train_vision import measure_encoder
from panollava.data.boxes import box_text
from panollava.data.scenes.questions import BOX, KINDS, ask
from panollava.data.scenes.scene import scene_at
from panollava.prompt import ChatPrompt

MOST_BYTES = 8 * 2**20


def test_they_are_small() -> None:
    folders = VISION_FOLDER, LANGUAGE_FOLDER, BOXES_FOLDER
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert set(files) == {file for file in HERE.rglob("*") if file.is_file()}
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


def test_each_number_of_a_box_is_one_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BOXES_FOLDER)
    model = AutoModelForCausalLM.from_pretrained(BOXES_FOLDER, dtype=torch.float32)
    assert len(tokenizer) <= model.config.vocab_size
    for form, numbers in zip(FORMS, RANGES, strict=True):
        ids = [tokenizer(form.format(number), add_special_tokens=False)["input_ids"] for number in numbers]
        assert {len(each) for each in ids} == {1}
        assert len({each[0] for each in ids}) == len(ids)
    for box in ([-180, 90, 180, 1, 0], [179, -90, 7, 100, 0], [0, 0, 20, 21, 0]):
        text = box_text(np.array(box, dtype=float))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == 6
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer("안녕하세요, 360 x 2024")["input_ids"]) == "안녕하세요, 360 x 2024"


def test_words_of_both_language_models_are_the_same_tokens() -> None:
    first, second = (AutoTokenizer.from_pretrained(folder) for folder in (LANGUAGE_FOLDER, BOXES_FOLDER))
    known = first.get_vocab()
    assert known.items() <= second.get_vocab().items()
    scene, rng = scene_at(0, "test", 0), np.random.default_rng(0)
    for kind in KINDS:
        asked = ask(scene, kind, rng)
        for text in () if asked is None else (asked.question, asked.answer):
            assert first(text)["input_ids"] == second(text)["input_ids"]


def test_boxes_in_training_are_what_the_prompt_gives() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BOXES_FOLDER)
    reader, prompt = BoxReader(tokenizer), ChatPrompt(tokenizer)
    asked = ask(scene_at(0, "backbones", 3), BOX, np.random.default_rng(0))
    assert asked is not None
    ours = reader.sequence([], np.full((9, reader.words_per_token), NO_WORD), asked.turns)
    ids = [prompt.image_id if token == NO_WORD else token for token in ours.ids]
    assert ids[:-1] == prompt.encode(asked.turns, image_tokens=9).ids


@pytest.mark.parametrize("form", ["written", "views"])
def test_the_second_language_model_is_as_good_as_stated(form: str) -> None:
    stated = json.loads((BOXES_FOLDER / QUALITY).read_text(encoding="utf-8"))[form]
    model = AutoModelForCausalLM.from_pretrained(BOXES_FOLDER, dtype=torch.float32)
    reader = BoxReader(AutoTokenizer.from_pretrained(BOXES_FOLDER), numbers_chance=1.0)
    words = measure_language_model(model, reader, form=form, scenes=16, seed=2)
    boxes = measure_boxes(model, reader, form=form, scenes=32, seed=2)
    assert set(stated) == {*KINDS, "all", BOX}
    assert words["all"] > stated["all"] - 0.07
    assert stated[BOX]["boxes"] > 0.98
    assert boxes["mean_iou"] > stated[BOX]["mean_iou"] - 0.08


@pytest.mark.parametrize("form", ["written", "views"])
def test_the_language_model_is_as_good_as_stated(form: str) -> None:
    stated = json.loads((LANGUAGE_FOLDER / QUALITY).read_text(encoding="utf-8"))[form]
    model = AutoModelForCausalLM.from_pretrained(LANGUAGE_FOLDER, dtype=torch.float32)
    reader = Reader(AutoTokenizer.from_pretrained(LANGUAGE_FOLDER))
    measured = measure_language_model(model, reader, form=form, scenes=24, seed=2)
    assert set(stated) == {*KINDS, "all"}
    assert stated["all"] >= 0.9
    assert measured["all"] > stated["all"] - 0.05
