"""Decoding is panollava's own: what a stranger's files say, placeholders, beams, samples, and what an export keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import composite
from transformers import GenerationConfig, pipeline

from panollava.crop.crop import Crop
from panollava.generation import GenerationOptions, recorded_generation
from panollava.model.api import PanoLlava
from panollava.model.decoding import from_transformers, sampler, to_transformers
from panollava.prompt import ChatPrompt

Backbone = Callable[[str], Path]
QUESTIONS = ["what?", "what is the colour of the cube to the right?", "무엇이 보이나요, red or blue?"]
STRANGE: dict[str, Any] = {
    "begin_suppress_tokens": list(range(100)),
    "bad_words_ids": [[token] for token in range(100, 200)],
    "cache_implementation": "static",
    "do_sample": True,
    "encoder_repetition_penalty": 1.5,
    "exponential_decay_length_penalty": [1, 1.5],
    "forced_eos_token_id": 5,
    "guidance_scale": 2.0,
    "max_new_tokens": 3,
    "min_length": 400,
    "min_new_tokens": 20,
    "no_repeat_ngram_size": 1,
    "num_beams": 4,
    "num_return_sequences": 2,
    "output_scores": True,
    "renormalize_logits": True,
    "repetition_penalty": 1.5,
    "return_dict_in_generate": True,
    "sequence_bias": [[[7], 50.0]],
    "suppress_tokens": list(range(200, 290)),
    "temperature": 5.0,
    "top_p": 0.5,
    "use_cache": False,
}
"""What a generation_config.json may hold, each of which would change answers."""
VICUNA = {"temperature": 0.9, "top_p": 0.6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
"""Source: generation_config.json of lmsys/vicuna-7b-v1.5, whose save_pretrained fails with it."""


def panorama(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 128, 3), dtype=np.uint8)


def opened(
    backbone: Backbone, language: str | Path = "llama", generation: GenerationOptions | None = None
) -> PanoLlava:
    """A model whose weights are large enough that what it says depends on what it is asked."""
    model, tokenizer = composite(backbone("siglip"), backbone(language) if isinstance(language, str) else language)
    with torch.no_grad():
        for weight in model.language_model.parameters():
            weight.mul_(6 if weight.ndim == 2 else 1)
    crop = Crop.from_spec(model.config.crop, view_size=(32, 32))
    return PanoLlava(model, ChatPrompt(tokenizer), crop, generation=generation)


def changed(folder: Path, to: Path, name: str, values: dict[str, Any]) -> Path:
    """A copy of a language model's folder with other values in one of its JSON files."""
    shutil.copytree(folder, to)
    path = to / name
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), encoding="utf-8")
    return to


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_a_strangers_settings_change_nothing_but_the_stop_tokens(file: str, backbone: Backbone, tmp_path: Path) -> None:
    values = {**STRANGE, "eos_token_id": [2, 1]} if file.startswith("gen") else {"repetition_penalty": 1.5}
    strange = opened(backbone, changed(backbone("llama"), tmp_path / "strange", file, values))
    plain = opened(backbone)
    for options in (GenerationOptions(max_new_tokens=8), GenerationOptions(max_new_tokens=8, num_beams=3)):
        images = [panorama(seed) for seed in range(3)]
        expected = plain.generate_batch(images, QUESTIONS, generation=options)
        assert strange.generate_batch(images, QUESTIONS, generation=options) == expected
    assert strange.stop_ids == ([2, 1] if file.startswith("gen") else plain.stop_ids)
    batch = plain.batch([plain.views(panorama())], [plain.encode("what?")])
    inputs = {key: value for key, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    ids = [one.model.generate(**inputs, max_new_tokens=8) for one in (plain, strange)]
    assert torch.equal(ids[0], ids[1])  # transformers' own generate too
    strange.save_pretrained(tmp_path / "export")
    assert PanoLlava.from_pretrained(tmp_path / "export").stop_ids == strange.stop_ids


def test_all_stop_tokens_end_an_answer(backbone: Backbone, tmp_path: Path) -> None:
    plain = opened(backbone)
    whole = plain.generate(panorama(), QUESTIONS[1], max_new_tokens=12)
    batch = plain.batch([plain.views(panorama())], [plain.encode(QUESTIONS[1])])
    inputs = {key: value for key, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    spoken = plain.model.generate(**inputs, max_new_tokens=12)[0, batch.input_ids.shape[1] :].tolist()
    stops = {"eos_token_id": [spoken[4], 2]}
    folder = changed(backbone("llama"), tmp_path / "stops", "generation_config.json", stops)
    answer = opened(backbone, folder).generate(panorama(), QUESTIONS[1], max_new_tokens=12)
    assert answer != whole
    assert whole.startswith(answer[:-1])


def test_no_stop_token_is_assumed_of_an_architecture(backbone: Backbone, tmp_path: Path) -> None:
    """LlamaConfig says 2 where no file does, and 2 may be any word."""
    folder = shutil.copytree(backbone("llama"), tmp_path / "bare")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token_id"}), "utf-8")
    pano = opened(backbone, folder)
    assert pano.model.generation_config.eos_token_id is None
    assert pano.stop_ids == pano.prompt.stop_ids


@pytest.mark.parametrize("language", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}, {"temperature": 1.0}],
    ids=str,
)
def test_the_placeholder_is_never_generated(language: str, options: dict[str, Any], backbone: Backbone) -> None:
    """Its id is the next after the vocabulary of one model, and a row without a token of the other."""
    pano = opened(backbone, language)
    head = pano.model.get_output_embeddings()
    placeholder = pano.prompt.image_id
    if placeholder < head.weight.shape[0]:
        with torch.no_grad():  # what would be taken each time
            head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor([placeholder]), 1e4))
    else:
        assert placeholder == head.weight.shape[0]
    batch = pano.batch([pano.views(panorama())], [pano.encode("what?")])
    inputs = {key: value for key, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    for config in ({"do_sample": False}, {"do_sample": True}):
        ids = pano.model.generate(**inputs, **config, max_new_tokens=5)[0, batch.input_ids.shape[1] :]
        assert placeholder not in ids
    answers = pano.generate(panorama(), "what?", generation=GenerationOptions(max_new_tokens=5, **options))
    assert isinstance(answers, str)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "length_penalty": 2.0},
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"temperature": 1.5},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "seed": 7},
    ],
    ids=str,
)
def test_an_answer_does_not_depend_on_its_batch(options: dict[str, Any], backbone: Backbone) -> None:
    pano = opened(backbone, generation=GenerationOptions(max_new_tokens=12, **options))
    images = [panorama(seed) for seed in range(3)]
    alone = [pano.generate(image, question) for image, question in zip(images, QUESTIONS, strict=True)]
    torch.manual_seed(5)  # the global generator has no say
    assert pano.generate_batch(images, QUESTIONS) == alone
    greedy = GenerationOptions(max_new_tokens=12)
    assert pano.generate_batch(images, QUESTIONS, generation=greedy) != alone
    pieces: list[str] = []
    assert pano.generate(images[0], QUESTIONS[0], on_text=pieces.append) == "".join(pieces) == alone[0]
    if "temperature" in options:
        again = pano.generation.changed({"seed": 8})
        assert pano.generate_batch(images, QUESTIONS, generation=again) != alone


def test_samples_have_the_probabilities_of_the_softmax() -> None:
    logits, rows = torch.tensor([3.0, 2.0, 1.0, -1.0, -torch.inf]), 20_000
    keys = [str(row).encode() for row in range(rows)]
    for options, possible in (({"temperature": 2.0}, 4), ({"temperature": 2.0, "top_k": 2}, 2)):
        process = sampler(GenerationOptions(**options), keys)
        drawn = process(torch.zeros(rows, 1, dtype=torch.long), logits.expand(rows, -1)).argmax(-1)
        expected = torch.softmax(logits[:possible] / 2, -1)
        share = torch.bincount(drawn, minlength=5) / rows
        assert (share[:possible] - expected).abs().max() < 0.015  # four standard deviations
        assert share[possible:].sum() == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "length_penalty": 0.5, "no_repeat_ngram_size": 3},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
    ],
    ids=str,
)
def test_an_export_keeps_the_options_in_a_config_of_its_own(
    options: dict[str, Any], backbone: Backbone, tmp_path: Path
) -> None:
    language = changed(backbone("llama"), tmp_path / "vicuna", "generation_config.json", VICUNA)
    pano = opened(backbone, language, GenerationOptions(max_new_tokens=9, **options))
    pano.save_pretrained(tmp_path / "export")
    again = PanoLlava.from_pretrained(tmp_path / "export")
    assert again.generation == pano.generation
    assert again.generate(panorama(), "what?") == pano.generate(panorama(), "what?")
    GenerationConfig.from_pretrained(tmp_path / "export").validate(strict=True)


def test_an_export_of_another_program_is_decoded_greedily(backbone: Backbone) -> None:
    """Such as one from before exports kept their options, with the language model's own settings."""
    assert from_transformers(GenerationConfig(**STRANGE)) == GenerationOptions()
    changed_by_hand = to_transformers(GenerationOptions(), [2], 0)
    changed_by_hand.repetition_penalty, changed_by_hand.do_sample = 1.2, True
    assert from_transformers(changed_by_hand) == GenerationOptions(repetition_penalty=1.2, temperature=1.0)


def test_the_pipeline_answers_as_the_options_say_and_alike_in_batches(backbone: Backbone, tmp_path: Path) -> None:
    options = GenerationOptions(max_new_tokens=7, repetition_penalty=2.0, no_repeat_ngram_size=2)
    pano = opened(backbone, generation=options)
    pano.prompt.tokenizer.pad_token = None  # as Llama's
    pano.save_pretrained(tmp_path / "export")
    pipe = pipeline("image-text-to-text", model=str(tmp_path / "export"))
    messages = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": Image.fromarray(panorama(seed))},
                    {"type": "text", "text": question},
                ],
            }
        ]
        for seed, question in enumerate(QUESTIONS)
    ]
    expected = [pano.generate(panorama(seed), question) for seed, question in enumerate(QUESTIONS)]
    for size in (1, 2):
        found = pipe(messages, batch_size=size, return_full_text=False)
        assert [one[0]["generated_text"].strip() for one in found] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, r"generation.max_new_tokens=0: allowed is a whole number >= 1"),
        ({"max_new_tokens": 1.5}, r"generation.max_new_tokens=1.5: allowed is a whole number"),
        ({"max_new_tokens": "8"}, r"generation.max_new_tokens='8'"),
        ({"num_beams": True}, r"generation.num_beams=True"),
        ({"temperature": -1.0}, r"generation.temperature=-1.0: allowed is a number >= 0"),
        ({"temperature": float("nan")}, r"generation.temperature=nan"),
        ({"top_p": 1.1, "temperature": 1.0}, r"generation.top_p=1.1: allowed is a number > 0 and <= 1"),
        ({"top_p": 0.9}, r"generation.top_p=0.9 is for sampling, and generation.temperature=0"),
        ({"top_k": 5}, r"generation.top_k=5 is for sampling"),
        ({"seed": 5}, r"generation.seed=5 is for sampling"),
        ({"temperature": 0.5, "num_beams": 2}, r"generation.temperature=0.5 and generation.num_beams=2"),
        ({"length_penalty": 2.0}, r"generation.length_penalty=2.0 is for beam search"),
    ],
)
def test_values_that_are_none_or_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**options)


def test_what_runs_recorded() -> None:
    assert recorded_generation({"evaluation": {"max_new_tokens": 16}}) == GenerationOptions(max_new_tokens=16)
    assert recorded_generation({}) == GenerationOptions()
    options = GenerationOptions(temperature=0.5, top_p=0.9)
    assert recorded_generation({"generation": vars(options), "evaluation": {"max_new_tokens": 3}}) == options
    with pytest.raises(ValueError, match="not of this panollava"):
        recorded_generation({"generation": {"width": 3}})
