"""Processors: pictures and conversations in, inputs of generate out; whole exports in a fresh process."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.models import composite
from support.picture_files import png, stored_as, with_orientation
from transformers import AutoImageProcessor, AutoProcessor, pipeline

from panollava.crop.crop import Crop
from panollava.model.api import PanoLlava
from panollava.model.processor import PanoLlavaImageProcessor, PanoLlavaProcessor, read_picture
from panollava.prompt import ChatPrompt

Backbone = Callable[[str], Path]
RING = {"type": "bimamba", "width": 16, "layers": 2, "state": 4, "head_width": 8, "scan": "ring"}


def panorama(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 128, 3), dtype=np.uint8)


def pair(backbone: Backbone, language: str = "qwen2", **options: Any) -> tuple[Any, PanoLlavaProcessor]:
    model, tokenizer = composite(backbone("siglip"), backbone(language))
    return model, PanoLlavaProcessor.of(model, tokenizer, **options)


def test_a_file_a_picture_and_an_array_are_the_same_views(tmp_path: Path) -> None:
    image = Image.fromarray(panorama())
    image.save(tmp_path / "pano.png")
    spec = {"type": "anyres_e2p", "overlap": 0.5, "fov_deg": 90.0, "renderer": "cv2"}
    processor = PanoLlavaImageProcessor(spec, (32, 48))
    crop = Crop.from_spec(spec, view_size=(32, 48))
    for given in (panorama(), image, str(tmp_path / "pano.png"), tmp_path / "pano.png", [panorama()]):
        output = processor(given)
        assert torch.equal(output["pixel_values"], crop.views(panorama())[None])
        assert torch.equal(output["cameras"], crop.camera_rows[None])
        assert output["view_mask"].all()
    assert output["pixel_values"].dtype == torch.uint8
    with pytest.raises(ValueError, match=r"uint8 RGB, .*this is \(64, 128, 3\) float32"):
        processor(panorama().astype(np.float32))


def test_pictures_are_read_as_their_files_would_be(tmp_path: Path) -> None:
    """Lying, of 16 bits, clear, of a palette; as a file and as PIL opens it."""
    processor = PanoLlavaImageProcessor({"type": "resize"}, (16, 16))
    files = [tmp_path / f"{name}.png" for name in ("lying", "deep", "clear", "palette")]
    files[0].write_bytes(with_orientation(png(stored_as(panorama(), 6)), 6))
    files[1].write_bytes(png(panorama()[..., 0].astype(np.uint16) * 200))
    files[2].write_bytes(png(np.dstack([panorama(), panorama()[..., 0]])))
    Image.fromarray(panorama()).quantize(16).save(files[3])
    for file in files:
        with Image.open(file) as image:
            assert torch.equal(processor(image)["pixel_values"], processor(file)["pixel_values"]), file


def test_bytes_open_files_and_tensors_are_pictures_too(tmp_path: Path) -> None:
    processor = PanoLlavaImageProcessor({"type": "resize"}, (16, 16))
    expected = processor(panorama())["pixel_values"]
    data = png(panorama())
    (tmp_path / "a.png").write_bytes(data)
    with (tmp_path / "a.png").open("rb") as file:
        for given in (data, bytearray(data), memoryview(data), file, torch.from_numpy(panorama()), [data]):
            assert torch.equal(processor(given)["pixel_values"], expected)
    for open_one in (io.BytesIO, tempfile.SpooledTemporaryFile, tempfile.NamedTemporaryFile):
        with open_one() as opened:
            opened.write(data)
            for _ in range(2):  # from its beginning, wherever it stands
                assert torch.equal(processor(opened)["pixel_values"], expected)
    with (tmp_path / "a.png").open("rb", buffering=0) as unbuffered:
        assert torch.equal(processor(unbuffered)["pixel_values"], expected)
    several = torch.from_numpy(np.stack([panorama(), panorama(1)]))
    assert processor(several)["pixel_values"].shape[0] == 2
    assert torch.equal(processor(several.numpy())["pixel_values"][0], expected[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "this is a NoneType"),
        (3, "this is a int"),
        (io.StringIO("text"), "this is a str|no such file"),
        ({"a": 1}, "this is a str|no such file"),
        ([[[0, 0, 0]] * 4] * 2, "this is a list"),
        (torch.zeros(3, 64, 128), r"this is \(3, 64, 128\) float32"),
        (torch.zeros(3, 64, 128, dtype=torch.uint8), r"this is \(3, 64, 128\) uint8"),
        (np.zeros((64, 128), np.uint8), r"this is \(64, 128\) uint8"),
        (b"", r"The picture: the file is empty"),
        (b"no picture", "The picture: neither a JPEG nor a PNG"),
        (Image.new("F", (128, 64)), "PIL mode F, of no known range. Convert it to RGB"),
        (Image.new("CMYK", (128, 64)), "PIL mode CMYK, the inks of a printer"),
        (Image.fromarray(np.full((64, 128), -1, np.int32)), "PIL mode I, and values beyond 16 bits"),
        (Image.fromarray(np.full((64, 128), 200, np.int32)), "PIL mode I: .*brightest value is 200 of 65535"),
        (Image.fromarray(np.full((64, 128), 4000, np.uint16)), "PIL mode I;16: .*brightest value is 4000 of 65535"),
    ],
)
def test_what_is_no_picture_is_told(given: Any, said: str) -> None:
    processor = PanoLlavaImageProcessor({"type": "resize"}, (16, 16))
    with pytest.raises((ValueError, OSError), match=said):
        processor(given)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "YCbCr", "HSV", "I;16", "I"])
def test_every_other_mode_shows_what_it_shows_in_rgb(mode: str) -> None:
    grey = np.repeat(np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 32, 0), 64, 1)
    if mode.startswith("I"):
        image = Image.fromarray(grey.astype(np.int32 if mode == "I" else np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB" if mode == "HSV" else "L").convert(mode)
    assert image.mode == mode
    crop = Crop.from_spec({"type": "resize"}, view_size=(16, 16))
    assert (read_picture(image, crop) == grey[..., None]).all()


def test_pictures_of_a_part_of_the_sphere(tmp_path: Path) -> None:
    """The processor and the facade read them alike: as files, PIL pictures and arrays."""
    spec = {"type": "resize", "panorama_fov_deg": [180, 90]}
    processor = PanoLlavaImageProcessor(spec, (64, 64))
    Image.fromarray(panorama()).save(tmp_path / "pano.png")
    whole = np.zeros((128, 256, 3), np.uint8)
    whole[32:96, 64:192] = panorama()
    expected = PanoLlavaImageProcessor({"type": "resize"}, (64, 64))(whole)["pixel_values"]
    for given in (panorama(), Image.fromarray(panorama()), tmp_path / "pano.png"):
        assert torch.equal(processor(given)["pixel_values"], expected)
        assert torch.equal(PanoLlava.cut(SimpleNamespace(crop=processor.build_crop()), given).views[None], expected)
    with pytest.raises(ValueError, match=r"128 x 60 pixels do not cover crop\.panorama_fov_deg=\[180, 90\]"):
        processor(panorama()[:60])
    with pytest.raises(ValueError, match="128 x 60 pixels is not a whole panorama"):
        PanoLlavaImageProcessor({"type": "resize"}, (64, 64))(panorama()[:60])


def test_prompts_are_those_of_training(backbone: Backbone) -> None:
    model, processor = pair(backbone, system="Look around.")
    turns = [("what is there?", "a red cube"), ("where?", None)]
    inputs = processor(images=[panorama(), panorama(1)], text=["what is it?", turns])
    prompt = ChatPrompt(processor.tokenizer, system="Look around.")
    expected = prompt.encode(turns, image_tokens=80).ids
    assert inputs["input_ids"][1].tolist() == expected
    short = prompt.encode([("what is it?", None)], image_tokens=80).ids
    padding = len(expected) - len(short)
    assert inputs["input_ids"][0, padding:].tolist() == short
    assert inputs["attention_mask"][0].tolist() == [0] * padding + [1] * len(short)
    assert (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == [80, 80]
    assert set(inputs) == set(processor.model_input_names)


def test_transformers_messages_are_the_same_conversation(backbone: Backbone) -> None:
    _, processor = pair(backbone)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": panorama()}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a cube"}]},
        {"role": "user", "content": "where?"},
    ]
    by_messages = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    by_turns = processor(images=panorama(), text=[[("what?", "a cube"), ("where?", None)]])
    assert all(torch.equal(by_messages[name], by_turns[name]) for name in by_turns)
    with pytest.raises(ValueError, match="must end in a user message"):
        processor.apply_chat_template(messages[:2])
    with pytest.raises(ValueError, match="'system' message is not allowed here"):
        processor.apply_chat_template([{"role": "system", "content": "x"}, *messages])
    with pytest.raises(ValueError, match="never as one string"):
        processor.apply_chat_template(messages, tokenize=False)


def test_pictures_and_texts_must_agree_in_number(backbone: Backbone) -> None:
    _, processor = pair(backbone)
    with pytest.raises(ValueError, match="2 pictures and 1 texts"):
        processor(images=[panorama(), panorama()], text="what?")
    text_only = processor(text=["what?", "and where is it?"])
    assert set(text_only) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("language", ["qwen3", "llama", "mistral"])
def test_a_saved_processor_is_the_same(language: str, backbone: Backbone, tmp_path: Path) -> None:
    model, processor = pair(backbone, language, system="Look.")
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is PanoLlavaProcessor
    before, after = (one(images=panorama(), text="was ist das? 무엇?") for one in (processor, reloaded))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(AutoImageProcessor.from_pretrained(tmp_path)(panorama())["cameras"], before["cameras"])


JOINS = [("concat", 0.0, 80), ("stitch", 0.5, 80), ("stitch", 0.3, 112), ("stitch_nearest", 0.3, 64)]
OPEN = """
import sys, torch
from safetensors.torch import load_file
import panollava.model.processor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
for root in sys.argv[1:]:
    expected = load_file(root + "/expected.safetensors")
    ids, logits = expected.pop("ids"), expected.pop("logits")
    model = AutoModelForImageTextToText.from_pretrained(root + "/export")
    processor = AutoProcessor.from_pretrained(root + "/export")
    assert AutoConfig.from_pretrained(root + "/export").model_type == "panollava", root
    inputs = processor(images=root + "/pano.png", text="what is it?")
    assert all(torch.equal(inputs[name], expected[name]) for name in expected), root
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits), root
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), ids), root
"""


def test_exports_open_in_a_fresh_process_with_equal_outputs(backbone: Backbone, tmp_path: Path) -> None:
    """One process opens them all: starting it takes longer than all else."""
    roots = []
    for join, overlap, count in JOINS:
        root = tmp_path / f"{join}{overlap}"
        crop = {"type": "anyres_e2p", "overlap": overlap}
        model, tokenizer = composite(backbone("dinov2"), backbone("qwen3"), join=join, crop=crop)
        processor = PanoLlavaProcessor.of(model, tokenizer)
        model.save_pretrained(root / "export")
        processor.save_pretrained(root / "export")
        Image.fromarray(panorama()).save(root / "pano.png")
        inputs = processor(images=root / "pano.png", text="what is it?")
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == count
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            logits = model(**inputs).logits
        save_file({**inputs, "ids": ids, "logits": logits}, root / "expected.safetensors")
        roots.append(str(root))
    run = subprocess.run([sys.executable, "-c", OPEN, *roots], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("settings", [{"join": "stitch"}, {"resampler": RING}])
def test_the_pipeline_answers_in_bf16_with_exact_cameras(
    settings: dict[str, Any], backbone: Backbone, tmp_path: Path
) -> None:
    """Rounded to bfloat16, the tiles would not close the ring."""
    model, tokenizer = composite(backbone("dinov2"), backbone("qwen3"), dtype=torch.bfloat16, **settings)
    processor = PanoLlavaProcessor.of(model, tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = Image.fromarray(panorama())
    inputs = processor(images=image, text="what is it?")
    ask = pipeline("image-text-to-text", model=str(tmp_path), dtype=torch.bfloat16)
    ids = ask.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    options: Any = {"generate_kwargs": {"max_new_tokens": 8, "do_sample": False}, "return_full_text": False}
    said = ask(images=image, text="what is it?", **options)[0]["generated_text"]
    assert said == processor.tokenizer.decode(ids, skip_special_tokens=True)
    cast = processor(images=image, text="what is it?").to("cpu", torch.bfloat16)
    assert torch.equal(cast["cameras"], inputs["cameras"])
    with pytest.raises(ValueError, match=r"cameras are torch\.bfloat16"):
        model.generate(**{**inputs, "cameras": inputs["cameras"].bfloat16()}, max_new_tokens=1)


def test_the_pipeline_answers(backbone: Backbone, tmp_path: Path) -> None:
    model, processor = pair(backbone)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ask = pipeline("image-text-to-text", model=str(tmp_path))
    options: Any = {"generate_kwargs": {"max_new_tokens": 4, "do_sample": False}, "return_full_text": False}
    image = Image.fromarray(panorama())
    plain = ask(images=image, text="what is it?", **options)[0]["generated_text"]
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]
    chat = ask(text=[{"role": "user", "content": content}], **options)[0]["generated_text"]
    inputs = processor(images=image, text="what is it?")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert (plain, chat) == (expected, expected)
