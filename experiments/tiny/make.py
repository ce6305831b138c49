"""Makes the shipped miniature backbones: ``python -m experiments.tiny.make --work build/tiny``.

Trains the image encoder and the language models on scenes of their own (split ``backbones``), writes them as
ordinary Hugging Face folders, and measures the written folders. ``--only language-boxes`` makes the second language
model, which knows boxes in words, out of the shipped first one. Takes many minutes on two cores; run it again with the
same ``--work`` to resume.

The shipped weights are the result of several resumed runs of this code while the world, the rotary base and the share
of each question type were still changing; a single run gives different weights of similar quality.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3ForCausalLM, SiglipImageProcessor, SiglipVisionModel

from experiments.tiny.boxes import BoxCurriculum, BoxReader, add_numbers, measure_boxes
from experiments.tiny.reading import Reader
from experiments.tiny.seeing import VIEW_SIZE
from experiments.tiny.tokenizer import make_tokenizer
from experiments.tiny.train_language import (
    Curriculum,
    make_language_model,
    measure_language_model,
    train_language_model,
)
from experiments.tiny.train_vision import PatchReader, make_encoder, measure_encoder, train_encoder
from panollava.data.scenes.questions import BOX

logger = logging.getLogger(__name__)

HERE = Path(__file__).parents[2] / "panollava" / "tiny"
VISION_FOLDER = HERE / "vision"
LANGUAGE_FOLDER = HERE / "language"
BOXES_FOLDER = HERE / "language_boxes"
PROBE = "probe.safetensors"
QUALITY = "quality.json"
SEED = 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for training states")
    parser.add_argument("--only", choices=("vision", "language", "language-boxes"), help="make one of them")
    parser.add_argument("--vision-steps", type=int, default=1600)
    parser.add_argument("--language-steps", type=int, default=2400)
    parser.add_argument("--box-steps", type=int, default=1300, help="of the language model that knows boxes")
    parser.add_argument("--scenes", type=int, default=200, help="held-out scenes for the measurement")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if chosen.only in (None, "vision"):
        make_vision(chosen.work / "vision", chosen.vision_steps, chosen.scenes)
    if chosen.only in (None, "language"):
        make_language(chosen.work / "language", chosen.language_steps, chosen.scenes)
    if chosen.only in (None, "language-boxes"):
        make_language_boxes(chosen.work / "language-boxes", chosen.box_steps, chosen.scenes)


def make_vision(work: Path, steps: int, scenes: int) -> None:
    """Trains, writes and measures the image encoder."""
    torch.manual_seed(SEED)
    reader = PatchReader(make_encoder())
    train_encoder(reader, steps=steps, folder=work)
    reader.encoder.save_pretrained(VISION_FOLDER)
    SiglipImageProcessor(
        size={"height": VIEW_SIZE, "width": VIEW_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(VISION_FOLDER)
    heads = {name: value for name, value in reader.state_dict().items() if not name.startswith("encoder.")}
    save_file(heads, VISION_FOLDER / PROBE)
    quality = {"held_out_scenes": scenes, **measure_encoder(open_probe(), scenes=scenes)}
    _write_quality(VISION_FOLDER, quality)


def make_language(work: Path, steps: int, scenes: int) -> None:
    """Trains, writes and measures the language model and its tokenizer."""
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    model = make_language_model(tokenizer)
    reader = Reader(tokenizer)
    train_language_model(model, lambda scene: Curriculum(reader, first_scene=scene), steps=steps, folder=work)
    tokenizer.save_pretrained(LANGUAGE_FOLDER)
    model.save_pretrained(LANGUAGE_FOLDER)
    written = Qwen3ForCausalLM.from_pretrained(LANGUAGE_FOLDER, dtype=torch.float32)
    reader = Reader(AutoTokenizer.from_pretrained(LANGUAGE_FOLDER))
    measured = {
        form: measure_language_model(written, reader, form=form, scenes=scenes) for form in ("written", "views")
    }
    _write_quality(LANGUAGE_FOLDER, {"held_out_scenes": scenes, **measured})


def make_language_boxes(work: Path, steps: int, scenes: int) -> None:
    """Trains the shipped language model further to read and write boxes; writes and measures it."""
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(LANGUAGE_FOLDER)
    model = Qwen3ForCausalLM.from_pretrained(LANGUAGE_FOLDER, dtype=torch.float32)
    model.set_attn_implementation("eager")
    add_numbers(tokenizer, model)
    box_reader = BoxReader(tokenizer)
    train_language_model(
        model,
        lambda scene: BoxCurriculum(box_reader, first_scene=scene, written_share=0.15),
        steps=steps,
        folder=work,
        learning_rate=2e-3,
        short_share=0.6,
    )
    for key in ("is_local", "local_files_only"):  # of the folder it was read from
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(BOXES_FOLDER)
    model.half().save_pretrained(BOXES_FOLDER)
    written = Qwen3ForCausalLM.from_pretrained(BOXES_FOLDER, dtype=torch.float32)
    reader = BoxReader(AutoTokenizer.from_pretrained(BOXES_FOLDER), numbers_chance=1.0)
    measured = {
        form: {
            **measure_language_model(written, reader, form=form, scenes=scenes),
            BOX: measure_boxes(written, reader, form=form, scenes=scenes),
        }
        for form in ("written", "views")
    }
    _write_quality(BOXES_FOLDER, {"held_out_scenes": scenes, **measured})


def open_probe(folder: Path = VISION_FOLDER) -> PatchReader:
    """The shipped encoder under the linear heads it was trained with."""
    reader = PatchReader(SiglipVisionModel.from_pretrained(folder, dtype=torch.float32))
    reader.load_state_dict(load_file(folder / PROBE), strict=False)
    return reader


def _write_quality(folder: Path, quality: Mapping[str, object]) -> None:
    text = json.dumps(quality, indent=2, default=float)
    (folder / QUALITY).write_text(text + "\n", encoding="utf-8")
    logger.info("%s %s", folder.name, text)


if __name__ == "__main__":
    main()
