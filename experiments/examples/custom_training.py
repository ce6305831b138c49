"""Train by hand, without a config: python experiments/examples/custom_training.py [folder]

The model, the data, the stage and the loop are plain classes; take out any and put in your own.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch

from panollava import PanoLlava
from panollava.crop.crop import Crop
from panollava.data.dataset import PanoDataset, TextEncoder
from panollava.data.loader import Collate, StageLoader
from panollava.data.world import WorldSource
from panollava.logs import configure_console
from panollava.model.hub import load_language_model, load_tokenizer
from panollava.model.lora import add_lora
from panollava.model.vision import VisionTower
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.prompt import ChatPrompt
from panollava.stages.language import InstructStage
from panollava.stages.protocol import StageSetup
from panollava.training.checkpointer import Checkpointer
from panollava.training.loop import fit
from panollava.training.options import OptimOptions, StageOptions, make_optimizer
from panollava.training.precision import choose_compute

logger = logging.getLogger("panollava.example")


def main(folder: str = "runs/by_hand", *, scenes: int = 200, epochs: int = 2) -> None:
    torch.manual_seed(0)
    compute, optim = choose_compute("auto", "fp32"), OptimOptions()
    options = StageOptions(epochs, batch_size=8, accumulate=1, lr=1e-3, max_text_length=128)

    prompt = ChatPrompt(load_tokenizer("panollava/tiny-qwen3"))
    model = PanoLlavaForConditionalGeneration.from_backbones(
        VisionTower.from_pretrained("panollava/tiny-siglip"),
        load_language_model("panollava/tiny-qwen3"),
        resampler={"type": "mlp"},
        position={"type": "yaw_pitch"},
        projector={"type": "mlp"},
        crop={"type": "e2p", "overlap": 0.0},
        image_token_id=prompt.image_id,
        latent_width=128,
    )
    add_lora(model, rank=8, alpha=16)
    crop = Crop.from_spec(model.config.crop, view_size=tuple(model.config.image_size))
    pano = PanoLlava(model, prompt, crop)

    encode = TextEncoder(prompt, pano.image_tokens, options.max_text_length).record
    train = PanoDataset(WorldSource(split="train", scenes=scenes), crop, encode)
    val = PanoDataset(WorldSource(split="val", scenes=scenes // 4), crop, encode)
    data = StageLoader(train, val, Collate(prompt.tokenizer.pad_token_id), batch_size=options.batch_size)

    stage = InstructStage(model, StageSetup("finetune")).to(compute.device)
    trained = stage.trained()
    learning = {"optimizer": make_optimizer(trained, optim, options.lr), "scaler": compute.scaler()}
    keeper = Checkpointer(Path(folder), prefix="by_hand", stage_name=stage.name, parameters=trained, **learning)
    result = fit(stage, data, optim=optim, options=options, compute=compute, checkpointer=keeper, **learning)
    logger.info("Validation loss %.4f after %.0f s.", result.metrics["loss"], result.progress.seconds)

    model.eval()
    test = WorldSource(split="test", scenes=1)
    asked = test.questions()[0]
    answer = pano.generate(test.panorama(0), asked.question)
    logger.info("%s %s (right: %s)", asked.question, answer, asked.references[0])
    pano.merge_lora_weights()
    pano.save_pretrained(Path(folder) / "export")


if __name__ == "__main__":
    configure_console()
    main(*sys.argv[1:])
