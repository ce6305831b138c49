"""What PanoLlava's model class inherits: loading without random weights, saving without LoRA, embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from panollava.model.adapter_files import CONFIG, WEIGHTS
from panollava.model.build import float_dtype
from panollava.model.configuration import PanoLlavaConfig
from panollava.model.encoder import PanoVision
from panollava.model.hub import check_all_loaded, refuse_pickles
from panollava.model.lora import LORA, load_lora
from panollava.model.vision import VisionTower

WAY_OUT = (
    "It is damaged, or a pickle under another name, and pickles are never opened. Export the run again with python -m "
    "panollava.export, or download the folder again."
)


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
        """As in transformers, from safetensors only, never with weights left at random, with the adapter beside them.

        Raises:
            ValueError: the folder lacks weights, or holds some that are no safetensors, or its adapter is of another
                model.
        """
        source = pretrained_model_name_or_path
        if source is not None:
            where = {**_place(kwargs), "subfolder": kwargs.get("subfolder", "")}
            refuse_pickles(str(source), str(source), WAY_OUT, **where)
        adapter = _adapter(source, kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.update(use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True)
        try:
            loaded: Any = super().from_pretrained(source, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"{source}: a file of its weights is not safetensors ({error}). {WAY_OUT}") from error
        model, info = loaded
        check_all_loaded(info, str(source))
        if adapter is not None:
            load_lora(model, adapter)
            model.eval()
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """As in transformers: a folder that the Auto classes open.

        Raises:
            ValueError: LoRA is attached, without which the folder would reload and without the weights under it; or
                the folder holds an adapter, which would be attached to these weights.
        """
        if hasattr(self.language_model, "peft_config"):
            raise ValueError(
                "The language model carries LoRA, which a plain Hugging Face folder cannot hold. Call "
                "pano.merge_lora_weights() first, or keep the adapter beside it: pano.save_pretrained(folder, "
                "keep_lora=True)."
            )
        if (Path(save_directory) / LORA).exists():
            raise ValueError(
                f"{save_directory} holds {LORA} of another model, which would be attached to this one when the folder "
                "is opened. Save into another folder, or remove it."
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


def _adapter(source: Any, options: Mapping[str, Any]) -> Path | None:
    """Folder of the adapter that lies beside a model, in a local folder or on the hub; None where there is none."""
    if source is None:
        return None
    subfolder = f"{options.get('subfolder', '')}/{LORA}".strip("/")
    found = [
        cached_file(source, name, subfolder=subfolder, _raise_exceptions_for_missing_entries=False, **_place(options))
        for name in (CONFIG, WEIGHTS)
    ]
    return None if found[0] is None else Path(found[0]).parent


def _place(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of the options says where a model lies on the hub or in its cache."""
    known = ("cache_dir", "force_download", "local_files_only", "revision", "token")
    return {key: options[key] for key in known if key in options}
