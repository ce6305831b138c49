"""What the encoder families differ in: prefix tokens, position interpolation, blocks, and preprocessing.

timm and the classes of transformers take seconds to import, and a check of a config needs none of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from panollava.model.hub import hub_place

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
TIMM = "timm_wrapper"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """One architecture family."""

    blocks: str  # path of its transformer blocks in the model
    prefix_tokens: int = 0  # CLS tokens before the patches; the checkpoint's configuration has the number of registers
    asks_to_interpolate: bool = False  # its forward takes interpolate_pos_encoding (else it always interpolates)
    mean: tuple[float, ...] = IMAGENET_MEAN  # for a checkpoint that states none: its authors' own values
    std: tuple[float, ...] = IMAGENET_STD
    is_timm: bool = False  # a timm model in transformers' wrapper

    def encode(self, model: PreTrainedModel, pixels: Tensor, layer: int) -> Tensor:
        """``(n, 3, h, w)`` normalised pixels -> ``(n, N, Dv)`` features of a layer, patches only."""
        if self.is_timm:
            timm_model: Any = model.timm_model
            if layer == -1:
                return timm_model.forward_features(pixels)[:, timm_model.num_prefix_tokens :]
            indices = [len(timm_model.blocks) + layer]
            return timm_model.forward_intermediates(
                pixels, indices=indices, intermediates_only=True, output_fmt="NLC", stop_early=True
            )[0]
        arguments: dict[str, Any] = {"output_hidden_states": layer != -1}
        if self.asks_to_interpolate:
            arguments["interpolate_pos_encoding"] = tuple(pixels.shape[-2:]) != _native_size(model.config)
        output = model(pixel_values=pixels, **arguments)
        features = output.last_hidden_state if layer == -1 else output.hidden_states[layer]  # (n, prefix + N, Dv)
        return features[:, self.prefix_tokens + getattr(model.config, "num_register_tokens", 0) :]  # (n, N, Dv)


FAMILIES: dict[str, Family] = {
    "siglip_vision_model": Family("encoder.layers", asks_to_interpolate=True, mean=HALF, std=HALF),
    "clip_vision_model": Family(
        "encoder.layers", prefix_tokens=1, asks_to_interpolate=True, mean=CLIP_MEAN, std=CLIP_STD
    ),
    "dinov2": Family("encoder.layer", prefix_tokens=1),
    "dinov2_with_registers": Family("encoder.layer", prefix_tokens=1),
    TIMM: Family("timm_model.blocks", is_timm=True),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of an encoder's own configuration. Raises ValueError for one that is not supported."""
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model.vision: {config.model_type!r} is not a supported encoder. Supported are CLIP, SigLIP, SigLIP 2 "
            "(fixed size, such as google/siglip2-base-patch16-224; the naflex checkpoints are patch-packed), "
            f"DINOv2 and timm ViTs (model types {', '.join(FAMILIES)})."
        )
    return FAMILIES[config.model_type]


def vision_config(config: PreTrainedConfig, source: str) -> PreTrainedConfig:
    """The encoder's part of a checkpoint's configuration, ready to open the encoder alone; errors as ``family_of``."""
    vision = getattr(config, "vision_config", config)
    family_of(vision)
    vision.name_or_path = source
    if vision.model_type == "siglip_vision_model":
        vision.vision_use_head = False  # patch features do not depend on the pooling head
    if vision.model_type == TIMM:
        arguments = vision.model_args or {}  # the wrapper itself passes num_classes; twice is a TypeError
        vision.model_args = {key: value for key, value in arguments.items() if key != "num_classes"}
        vision.do_pooling = False
    check_architecture(vision, source)
    return vision


def check_architecture(config: PreTrainedConfig, source: str) -> None:
    """Raises ValueError for a timm encoder that is no ViT of timm's own with the weights in its safetensors.

    Its configuration names a checkpoint, or an architecture that does not exist or gives no sequence of patches
    (ConvNeXt, ResNet, Swin, …). ``source`` is its name or folder, for messages.
    """
    if config.model_type != TIMM:
        return
    import timm

    if path := (config.model_args or {}).get("checkpoint_path"):
        raise ValueError(
            f"{source}: model_args of its config.json name a checkpoint of their own ({path!r}), which timm would "
            "unpickle. Only model.safetensors is read."
        )
    if config.architecture not in timm.list_models():
        known = timm.list_models(f"*{config.architecture.split('_')[0]}*")[:5]
        raise ValueError(
            f"model.vision: timm {timm.__version__} has no architecture {config.architecture!r}. "
            f"Similar: {', '.join(known) or 'none'}; see timm.list_models()."
        )
    model = _meta_timm(config)
    if not all(hasattr(model, name) for name in ("blocks", "num_prefix_tokens", "patch_embed")):
        raise ValueError(
            f"model.vision: timm's {config.architecture} is not a ViT: it gives no sequence of patches. Choose a "
            "vit_*, deit*, eva* or beit* model."
        )
    if hasattr(model.patch_embed, "backbone"):
        raise ValueError(
            f"model.vision: timm's {config.architecture} has a convolutional network before its blocks, so its tokens "
            "are no patches of the view. Choose a model without one, such as vit_base_patch16_224."
        )


def use_image_size(
    config: PreTrainedConfig, size: tuple[int, int], kept: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Prepares a configuration for views of ``size``, and gives it, rounded to whole patches unless ``kept``.

    An encoder leaves the rest of a view out, and its patches would be taken for those of the whole view. The families
    of transformers interpolate by themselves. Raises ValueError for a timm architecture that cannot take the size.
    """
    is_timm = config.model_type == TIMM
    if size != kept:
        patch = pair(_meta_timm(config).patch_embed.patch_size if is_timm else config.patch_size)
        wanted, size = size, (size[0] // patch[0] * patch[0] or size[0], size[1] // patch[1] * patch[1] or size[1])
        if size != wanted:
            logger.info("Views have %s pixels: %s is no whole number of patches of %s.", size, wanted, patch)
    if is_timm and size != (native := _native_size(config)):
        config.model_args = {**config.model_args, "dynamic_img_size": True}
        try:
            _meta_timm(config)
        except TypeError as error:
            raise ValueError(
                f"crop.view_size={size}: timm's {config.architecture} takes views of {native} only (it has no "
                "dynamic_img_size). Leave view_size at null, or choose another encoder."
            ) from error
    return size


def preprocessing(
    source: str, config: PreTrainedConfig, revision: str | None = None
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, int]]:
    """Mean, deviation and ``(h, w)`` of the encoder's own processor.

    A checkpoint without ``preprocessor_config.json`` gets its family's published values and its native size.
    """
    family = family_of(config)
    if family.is_timm:
        from timm.data import resolve_data_config

        data = resolve_data_config(pretrained_cfg=_timm_pretrained_cfg(config))
        return tuple(data["mean"]), tuple(data["std"]), _native_size(config)
    from transformers import AutoImageProcessor

    try:
        place = hub_place(source, revision)
        processor = AutoImageProcessor.from_pretrained(source, **place, backend="pil", trust_remote_code=False)
    except OSError:
        logger.warning(
            "%s has no preprocessor_config.json: normalising with the published values of %s, mean %s and std %s.",
            source, config.model_type, family.mean, family.std,
        )  # fmt: skip
        return family.mean, family.std, _native_size(config)
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    height, width = size["height"], size["width"]
    if height is None or width is None:
        height = width = size["shortest_edge"]
    return tuple(processor.image_mean), tuple(processor.image_std), (int(height), int(width))


def patch_size(model: Any) -> tuple[int, int]:
    """``(h, w)`` of a patch in pixels."""
    return pair(model.timm_model.patch_embed.patch_size if hasattr(model, "timm_model") else model.config.patch_size)


def pair(size: Any) -> tuple[int, int]:
    """``(h, w)`` of one side or two."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _native_size(config: PreTrainedConfig) -> tuple[int, int]:
    """``(h, w)`` of the views that an encoder was trained with."""
    if config.model_type != TIMM:
        return pair(config.image_size)
    from timm.data import resolve_data_config

    size = (config.model_args or {}).get("img_size")
    return pair(
        resolve_data_config(pretrained_cfg=_timm_pretrained_cfg(config))["input_size"][-2:] if size is None else size
    )


def _timm_pretrained_cfg(config: PreTrainedConfig) -> dict[str, Any]:
    """timm's record of pretrained weights: from the checkpoint's config.json, else of the architecture."""
    import timm

    stored = getattr(config, "pretrained_cfg", None)
    if stored is not None:
        return dict(stored)
    known = timm.get_pretrained_cfg(config.architecture)
    return known.to_dict() if known is not None else {}


def _meta_timm(config: PreTrainedConfig) -> Any:
    """The architecture on the meta device, without memory for its weights."""
    import timm

    with torch.device("meta"):
        return timm.create_model(config.architecture, pretrained=False, num_classes=0, **config.model_args)
