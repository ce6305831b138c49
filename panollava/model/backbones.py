"""Opens the backbones that a run's settings name, once, and builds models around them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from panollava.checkpoint import base_of, read_state, read_weights
from panollava.crop.crop import Crop
from panollava.model.fusion import image_token_count
from panollava.model.hub import backbone_record, load_language_model, load_tokenizer
from panollava.model.lora import add_lora, has_lora, lora_arguments
from panollava.model.trainable import load_trained
from panollava.model.vision import PanoVision, VisionTower
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.prompt import ChatPrompt
from panollava.run_folder import prompt_date, recorded_size
from panollava.stages.registry import recorded_stage
from panollava.store.identity import FileIdentity

logger = logging.getLogger(__name__)


class Backbones:
    """The encoder, the language model and its tokenizer, each opened on first use.

    Args:
        model: the ``model`` section of a config or of a run's metadata; ``crop`` likewise.
        dtype: of the backbones' weights; what is new is fp32, drawn with ``seed``.
        today: the date in prompts where the chat template writes one; None is the current date.
        weights: False builds models without weights, on the meta device, from the configurations alone; they have
            shapes, and compute nothing.
        recorded_size: see ``panollava.run_folder.recorded_size``; views of this size are not rounded to whole patches.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        crop: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        today: date | None = None,
        weights: bool = True,
        recorded_size: tuple[int, int] | None = None,
    ) -> None:
        self.weights, self.recorded_size = weights, recorded_size
        self.model, self.crop_spec, self.dtype, self.seed, self.today = model, crop, dtype, seed, today
        self._whole: PanoLlavaForConditionalGeneration | None = None

    @classmethod
    def of(
        cls, whole: PanoLlavaForConditionalGeneration, prompt: ChatPrompt, crop: Crop, section: Mapping[str, Any]
    ) -> Backbones:
        """The backbones in an open model, which a ``model`` section describes; ``composite`` gives this very model."""
        tower = whole.vision.tower
        found = cls(section, whole.config.crop or {}, dtype=tower.dtype)
        vars(found).update(tower=tower, language=whole.language_model, outline=whole.vision)
        vars(found).update(prompt=prompt, crop=crop, _whole=whole)
        return found

    def __repr__(self) -> str:
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
            weights=self.weights,
            kept_size=self.recorded_size,
        )

    @cached_property
    def language(self) -> PreTrainedModel:
        known = ("name", "attn_implementation", "load_in_4bit", "revision")  # a run of an earlier version has fewer
        settings = {key: self.model["language"][key] for key in known if key in self.model["language"]}
        return load_language_model(**settings, dtype=self.dtype, weights=self.weights)

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
        """Warns of backbones whose files differ from ``inputs`` of the metadata of a run, None where there are none."""
        if inputs is None:
            logger.info("The run does not record the content of its backbones, so changes since training go unnoticed.")
            return
        place = Path("cache", "pictures")  # where commands that keep features record file digests
        known = FileIdentity(place if place.is_dir() else None)
        for part in ("vision", "language"):
            old, new = inputs.get(part), self.record(part, known.identify)
            if old and new and ("files" in old) != ("files" in new):
                logger.info(
                    f"{part}.name={self.model[part]['name']} is a folder in place of the hub's model, or the other way "
                    "round: whether it is what the run was trained on cannot be told."
                )
            elif old and new and old != new:
                one, other = (found.get("files", found) for found in (old, new))
                changed = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
                logger.warning(
                    f"{part}.name={self.model[part]['name']} is no longer what the run was trained on "
                    f"({', '.join(changed)} differs): its answers are not the trained model's. Restore its files."
                )

    @cached_property
    def crop(self) -> Crop:
        """Cuts views of the size that the encoder takes."""
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
        if self._whole is not None:
            return self._whole.vision
        settings = {key: self.model[key] for key in ("resampler", "latent_width")}
        tower = self.tower  # opened outside of the block, as its preprocessing is read with tensors of its own
        with self.new_weights:
            return PanoVision.build(
                tower, **settings, tokens_per_side=self.model.get("tokens_per_side"), seed=self.seed
            )

    def composite(self) -> PanoLlavaForConditionalGeneration:
        """The whole model, with new components drawn from the seed."""
        if self._whole is not None:
            return self._whole
        tower, language, image_id = self.tower, self.language, self.prompt.image_id
        with self.new_weights:
            return PanoLlavaForConditionalGeneration.from_backbones(
                tower,
                language,
                **{key: self.model[key] for key in ("resampler", "position", "projector", "join", "latent_width")},
                tokens_per_side=self.model.get("tokens_per_side"),  # which runs of earlier versions do not record
                crop=self.crop_spec,
                image_token_id=image_id,
                seed=self.seed,
            )

    @property
    def new_weights(self) -> AbstractContextManager[object]:
        """Context in which new weights are made: on the meta device where there are none."""
        return nullcontext() if self.weights else torch.device("meta")


VISION = "vision."  # prefix of the names of encoder and resampler, in the checkpoints of every stage


def usable(model: Mapping[str, Any], device: str | torch.device, *, is_whole: bool) -> dict[str, Any]:
    """A run's ``model`` section without what this machine lacks, which is logged: flash attention, four bits.

    Without ``is_whole`` the language model is not opened.
    """
    result, flash = {**model}, "flash_attention_2"
    # The package kernels brings flash attention too, without which transformers takes that of flash_attn.
    has_flash = torch.device(device).type == "cuda" and any(map(find_spec, ("flash_attn", "kernels")))
    for part in ("vision", "language") if is_whole else ("vision",):
        if result[part].get("attn_implementation") == flash and not has_flash:
            logger.info("The run's %s computes with %s, which does not run here: sdpa is used.", part, flash)
            result[part] = {**result[part], "attn_implementation": "sdpa"}
    if is_whole and result["language"].get("load_in_4bit") and find_spec("bitsandbytes") is None:
        logger.warning(
            "The run's language model is in four bits, for which bitsandbytes is not installed here (pip install "
            '".[4bit]" in the repository): it is opened in full, needs more memory and answers slightly differently.'
        )
        result["language"] = {**result["language"], "load_in_4bit": False}
    return result


def open_checkpoint(
    checkpoint: Path,
    settings: Mapping[str, Any],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Backbones, Any, dict[str, Tensor]]:
    """Builds the model of a checkpoint from its run's metadata, or a changed copy, and loads its weights.

    Gives the backbones, the model in evaluation mode (a ``PanoVision`` of a stage that reads pictures alone), and the
    tensors that only the stage has, such as the head of stage 1.

    Raises ValueError for a model that is too large for the device.
    """
    is_whole, today = recorded_stage(settings).answers, prompt_date(settings)
    options: dict[str, Any] = {"dtype": dtype, "today": today, "recorded_size": recorded_size(settings)}
    backbones = Backbones(usable(settings["model"], device, is_whole=is_whole), settings["crop"], **options)
    backbones.warn_of_changes(settings.get("inputs"))
    if is_whole and today is None and (named := backbones.prompt.format.date) is not None:
        logger.warning(
            f"{checkpoint}: the chat template writes the date, and with which one this was trained is not recorded. "
            f"Prompts name {named} now."
        )
    try:
        model: Any = backbones.composite() if is_whole else backbones.vision()
        own = load_checkpoint(model, checkpoint, settings["model"])
        return backbones, model.to(device).eval(), own
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{checkpoint}: the whole model does not fit into the free memory of {device}. Open it with device=cpu. "
            "Where training ends with this, as it may after trainer.parallel=fsdp, use evaluation.enabled=false, and "
            "afterwards python -m panollava.eval <run> device=cpu."
        ) from error


def load_checkpoint(model: Any, checkpoint: Path, section: Mapping[str, Any]) -> dict[str, Tensor]:
    """Loads a checkpoint into a composite or a ``PanoVision``, and returns the tensors that only the stage has.

    A composite gets the adapter that the checkpoint has. ``section`` is ``model`` of its run's metadata.
    """
    tensors, own = read_weights(checkpoint), {}
    if (base := base_of(checkpoint)) is not None:
        tensors = {name: one for name, one in read_weights(base).items() if name.startswith(VISION)} | tensors
    if isinstance(model, PanoVision):
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(VISION)}
        tensors = {name.removeprefix(VISION): tensors[name] for name in tensors.keys() - own.keys()}
    elif read_state(checkpoint)["has_lora"] and not has_lora(model):
        add_lora(model, **lora_arguments(section["lora"]))
    load_trained(model, tensors, str(checkpoint))
    return own
