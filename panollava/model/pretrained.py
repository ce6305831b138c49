"""What PanoLlava's model class inherits: loading without random weights, saving without LoRA, embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from panollava.model.build import float_dtype
from panollava.model.configuration import PanoLlavaConfig
from panollava.model.encoder import PanoVision
from panollava.model.hub import check_all_loaded
from panollava.model.vision import VisionTower


class PanoLlavaPreTrainedModel(PreTrainedModel):
    """The side of the model that transformers' loading and saving machinery talks to."""

    config: PanoLlavaConfig
    config_class = PanoLlavaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = [r"^vision\.resampler\.", r"^position\.", r"^projector\."]

    vision: PanoVision
    language_model: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, from safetensors only and never with weights left at random.

        Raises:
            ValueError: the folder lacks weights.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.update(use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        check_all_loaded(info, str(pretrained_model_name_or_path))
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """As in transformers: a folder that the Auto classes open.

        Raises:
            ValueError: LoRA is attached; the folder would reload without it and without the weights under it.
        """
        if hasattr(self.language_model, "peft_config"):
            raise ValueError(
                "The language model carries LoRA, which a plain Hugging Face folder cannot hold. Call "
                "merge_lora(model) first (or on a copy), or keep the adapter by save_lora(model, folder)."
            )
        super().save_pretrained(save_directory, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """The wider of the backbones' types; an export is saved and reloaded in it."""
        tower, language = self.vision.tower.dtype, float_dtype(self.language_model, torch.float32)
        return torch.promote_types(tower, language)

    @property
    def language_blocks(self) -> nn.ModuleList:
        """The language model's transformer blocks, first to last."""
        return self.language_model.get_decoder().layers

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """The language model's."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language_model.get_output_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave our components as their constructors made them; fill the buffers that meta construction lost.

        transformers would draw every Linear anew. Weights missing from a checkpoint never get here: they are
        refused by ``from_pretrained``.
        """
        if isinstance(module, VisionTower):
            module.reset_buffers()
