"""PanoLlavaConfig: everything an exported folder needs to be rebuilt, with no Hydra."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from panollava.run_folder import FORM, upgraded


class PanoLlavaConfig(PreTrainedConfig):
    """Configuration of ``PanoLlavaForConditionalGeneration``.

    Attributes:
        vision_config: of the encoder (a transformers or a timm-wrapper configuration).
        text_config: of the causal language model.
        resampler: ``{"type": ..., <keywords>}``; likewise ``position`` and ``projector``.
        crop: ``{"type": ..., <keywords>}`` of the views the model was trained on.
        join: how views join (see ``panollava.model.fusion``).
        latent_width: ``Dr``.
        image_size: ``[h, w]`` of a view.
        image_mean: what views are normalised with, and ``image_std``.
        feature_layer: see ``VisionTower``.
        image_token_id: id of the placeholder; may lie outside the vocabulary.
        form: of this configuration (see ``panollava.run_folder.upgraded``); 1 where a folder does not say.
        vision_name: hub name or folder of the encoder the training started from, and ``language_name``.
    """

    model_type = "panollava"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="siglip_vision_model"),
        "text_config": SubConfigSpec(AutoConfig, model_type="qwen2"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    resampler: dict[str, Any] | None = None
    position: dict[str, Any] | None = None
    projector: dict[str, Any] | None = None
    crop: dict[str, Any] | None = None
    join: str = "concat"
    latent_width: int = 768
    image_size: list[int] | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    feature_layer: int = -1
    image_token_id: int | None = None
    vision_name: str = ""
    language_name: str = ""
    form: int = 1
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill what was left out, so that a configuration made from nothing is a whole one."""
        super().__post_init__(**kwargs)
        model = {"join": self.join, "resampler": dict(self.resampler or {"type": "mlp"})}
        model, self.form = upgraded({"form": self.form, "model": model})["model"], FORM
        self.join, self.resampler = model["join"], model["resampler"]
        self.position = dict(self.position or {"type": "yaw_pitch"})
        self.projector = dict(self.projector or {"type": "mlp"})
        self.crop = dict(self.crop or {"type": "anyres_e2p"})
        self.image_size = list(self.image_size or [224, 224])
        self.image_mean = list(self.image_mean or [0.5, 0.5, 0.5])
        self.image_std = list(self.image_std or [0.5, 0.5, 0.5])
        if self.image_token_id is None:
            self.image_token_id = self.text_config.vocab_size  # type: ignore[union-attr]
