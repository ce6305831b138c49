"""Opens the backbones that a run's settings name, once, and builds models around them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from panollava.crop.crop import Crop
from panollava.model.fusion import image_token_count
from panollava.model.hub import backbone_record, load_language_model, load_tokenizer
from panollava.model.vision import PanoVision, VisionTower
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.prompt import ChatPrompt
from panollava.store.identity import FileIdentity

logger = logging.getLogger(__name__)


class Backbones:
    """The encoder, the language model and its tokenizer, each opened on first use.

    Args:
        model: the ``model`` section of a config or of a run's metadata.
        crop: the ``crop`` section.
        dtype: of the backbones' weights; what is new is fp32.
        seed: of the new components.
        today: the date in prompts where the chat template writes one; None is the current date.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        crop: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        today: date | None = None,
    ) -> None:
        self.model, self.crop_spec, self.dtype, self.seed, self.today = model, crop, dtype, seed, today

    def __repr__(self) -> str:
        """The parts that the settings name."""
        model = self.model
        names = (model["vision"]["name"], model["language"]["name"], model["resampler"]["type"], self.crop_spec["type"])
        return "Backbones(vision={}, language={}, resampler={}, crop={})".format(*names)

    @cached_property
    def tower(self) -> VisionTower:
        """The vision encoder, for views of ``crop.view_size``, or of its own size."""
        vision = self.model["vision"]
        return VisionTower.from_pretrained(
            vision["name"],
            image_size=self.crop_spec.get("view_size"),
            feature_layer=vision["feature_layer"],
            attn_implementation=vision["attn_implementation"],
            dtype=self.dtype,
            revision=vision.get("revision"),
        )

    @cached_property
    def language(self) -> PreTrainedModel:
        """The causal language model."""
        language = self.model["language"]
        return load_language_model(
            language["name"],
            dtype=self.dtype,
            attn_implementation=language["attn_implementation"],
            load_in_4bit=language.get("load_in_4bit", False),
            revision=language.get("revision"),
        )

    @cached_property
    def prompt(self) -> ChatPrompt:
        """Writes conversations for the language model; reads only its tokenizer."""
        language = self.model["language"]
        tokenizer = load_tokenizer(language["name"], language.get("revision"))
        return ChatPrompt(tokenizer, system=language["system"], today=self.today)

    def record(self, part: str, digest: Callable[[Path], str]) -> dict[str, Any] | None:
        """The files of ``vision`` or ``language`` (see ``backbone_record``); opens no weights."""
        section = self.model[part]
        return backbone_record(section["name"], section.get("revision"), digest)

    def warn_of_changes(self, inputs: Mapping[str, Any] | None) -> None:
        """Warns of backbones whose files have changed since a run was trained.

        Args:
            inputs: of the run's metadata; None where there are none.
        """
        if inputs is None:
            logger.info("The run does not record the content of its backbones, so changes since training go unnoticed.")
            return
        place = Path("cache", "pictures")  # where commands that keep features record file digests
        known = FileIdentity(place if place.is_dir() else None)
        for part in ("vision", "language"):
            old, new = inputs.get(part), self.record(part, known.identify)
            if old and new and old != new:
                one, other = (found.get("files", found) for found in (old, new))
                changed = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
                logger.warning(
                    "%s.name=%s is no longer what the run was trained on (%s differs): its answers are not the trained "
                    "model's. Put back what it was.",
                    part, self.model[part]["name"], ", ".join(changed),
                )  # fmt: skip

    @cached_property
    def crop(self) -> Crop:
        """Cuts views of the size the encoder takes."""
        return Crop.from_spec(self.crop_spec, view_size=self.tower.image_size)

    @cached_property
    def outline(self) -> PanoVision:
        """Encoder and resampler without the resampler's weights, for the number of tokens."""
        with torch.device("meta"):
            return self.vision()

    def forget(self) -> None:
        """Opens the weights again on next use, as a model has taken and changed those that were opened."""
        for name in ("tower", "language", "outline"):
            self.__dict__.pop(name, None)

    @property
    def image_tokens(self) -> int:
        """Tokens that one panorama takes in the language model."""
        vision = self.outline
        return image_token_count(self.crop.camera_rows, vision.tokens_per_view, self.model["join"], vision.token_grid)

    def vision(self) -> PanoVision:
        """Encoder and a new resampler."""
        return PanoVision.build(
            self.tower, resampler=self.model["resampler"], latent_width=self.model["latent_width"], seed=self.seed
        )

    def composite(self) -> PanoLlavaForConditionalGeneration:
        """The whole model, with new components drawn from the seed."""
        return PanoLlavaForConditionalGeneration.from_backbones(
            self.tower,
            self.language,
            **{key: self.model[key] for key in ("resampler", "position", "projector", "join", "latent_width")},
            crop=self.crop_spec,
            image_token_id=self.prompt.image_id,
            seed=self.seed,
        )
