"""From tokens to logits: add directions, project, insert into the text, and run the language model.

``PanoLlavaForConditionalGeneration`` is a transformers model. The first half of the path, from views to tokens, is in
``panollava.model.vision``. Shapes use the legend of ``panollava.batch``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.generation import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

from panollava.batch import IGNORE_INDEX
from panollava.component import allow, check_packages, outside_packages
from panollava.model.components import Spec, build_component, float_dtype
from panollava.model.decoding import AnswerProcessors, stop_ids
from panollava.model.fusion import fuse, insert_image_tokens
from panollava.model.hub import check_all_loaded, public_name, refuse_pickles
from panollava.model.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LORA, load_lora
from panollava.model.shared_prefix import PICTURE_INPUTS, mask_for, repeat_last
from panollava.model.vision import PanoVision, VisionTower
from panollava.prompt import Limits
from panollava.run_folder import FORM, upgraded


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Switches a transformers model to the eager kernel, which returns weights and runs on any device, and back."""
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


class PanoLlavaConfig(PreTrainedConfig):
    """Configuration of ``PanoLlavaForConditionalGeneration``."""

    model_type = "panollava"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="siglip_vision_model"),
        "text_config": SubConfigSpec(AutoConfig, model_type="qwen2"),
    }

    vision_config: dict | PreTrainedConfig | None = None  # of transformers, or of timm's wrapper
    text_config: dict | PreTrainedConfig | None = None
    resampler: dict[str, Any] | None = None  # {"type": ..., <keywords>}, as the three below
    position: dict[str, Any] | None = None
    projector: dict[str, Any] | None = None
    crop: dict[str, Any] | None = None
    join: str = "concat"  # see panollava.model.fusion
    latent_width: int = 768  # Dr
    tokens_per_side: int | None = None  # see PanoVision
    image_size: list[int] | None = None  # [h, w] of a view
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    feature_layer: int = -1  # see VisionTower
    image_token_id: int | None = None  # may lie outside the vocabulary
    vision_name: str = ""  # hub name or folder that training started from
    language_name: str = ""
    form: int = 1  # see panollava.run_folder.upgraded; 1 where a folder does not state it
    packages: dict[str, str] | None = None  # see outside_packages
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills what was left out, so that every configuration is complete."""
        super().__post_init__(**kwargs)
        model = {"join": self.join, "resampler": dict(self.resampler or {"type": "mlp"})}
        model, self.form = upgraded({"form": self.form, "model": model})["model"], FORM
        check_packages(self.packages or {})
        self.join, self.resampler = model["join"], model["resampler"]
        self.position = dict(self.position or {"type": "yaw_pitch"})
        self.projector = dict(self.projector or {"type": "mlp"})
        self.crop = dict(self.crop or {"type": "anyres_e2p"})
        self.image_size = list(self.image_size or [224, 224])
        self.image_mean = list(self.image_mean or [0.5, 0.5, 0.5])
        self.image_std = list(self.image_std or [0.5, 0.5, 0.5])
        if self.image_token_id is None:
            self.image_token_id = self.text_config.vocab_size  # type: ignore[union-attr]


logger = logging.getLogger(__name__)

ANY_ID = 0  # is embedded where the embedding is then replaced by an image token or masked
_WAY_OUT = (
    "It is damaged, or a pickle under another name, and pickles are never opened. Export the run again with python -m "
    "panollava.export, or download the folder again."
)


class PanoLlavaPreTrainedModel(PreTrainedModel):
    """What transformers needs to load and save the model."""

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
        """As in transformers, but all weights must be there, in safetensors; attaches an adapter beside them.

        ``allow=my_package``, or a list, names packages whose classes the model may be made of: their code is run.
        """
        allow(kwargs.pop("allow", ()))
        source = pretrained_model_name_or_path
        if source is not None:
            where = {**_place(kwargs), "subfolder": kwargs.get("subfolder", "")}
            refuse_pickles(str(source), str(source), _WAY_OUT, **where)
        adapter = None if source is None else _find_adapter(source, kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.update(use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True)
        try:
            loaded: Any = super().from_pretrained(source, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"{source}: a file of its weights is not safetensors ({error}). {_WAY_OUT}") from error
        model, info = loaded
        check_all_loaded(info, str(source))
        if adapter is not None:
            load_lora(model, adapter)
            model.eval()
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """As in transformers: a folder that the Auto classes open, which names no folder of this machine.

        Raises:
            ValueError: LoRA is attached or in the folder, or weights are in four bits: a file keeps them without their
                scales.
        """
        if self.is_4bit:
            raise ValueError(
                "The language model is in four bits, which a plain Hugging Face folder cannot hold. Open the run with "
                "PanoLlava.from_pretrained(run, in_4bit=False), and save that."
            )
        if hasattr(self.language_model, "peft_config"):
            raise ValueError(
                "The language model has LoRA, which a plain Hugging Face folder cannot hold. Call "
                "pano.merge_lora_weights() first, or keep the adapter beside it: pano.save_pretrained(folder, "
                "keep_lora=True)."
            )
        if (Path(save_directory) / LORA).exists():
            raise ValueError(
                f"{save_directory} holds {LORA} of another model, which would be attached to this one when the folder "
                "is opened. Save into another folder, or remove it."
            )
        with _public_names(self.config):
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
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """Fills buffers that meta construction lost, and no more: transformers would draw every Linear anew."""
        if isinstance(module, VisionTower):
            module.reset_buffers()


@contextmanager
def _public_names(config: PanoLlavaConfig) -> Iterator[None]:
    """States backbones by ``public_name`` inside, so that what is written names no folder of this machine."""
    parts: list[Any] = [config.vision_config, config.text_config]
    before = config.vision_name, config.language_name, [part.name_or_path for part in parts]
    config.vision_name, config.language_name = public_name(config.vision_name), public_name(config.language_name)
    for part in parts:
        part.name_or_path = public_name(part.name_or_path)
    try:
        yield
    finally:
        config.vision_name, config.language_name, names = before
        for part, name in zip(parts, names, strict=True):
            part.name_or_path = name


def _find_adapter(source: Any, options: Mapping[str, Any]) -> Path | None:
    """Folder of the adapter beside a model, in a local folder or on the hub; None where there is none."""
    subfolder = f"{options.get('subfolder', '')}/{LORA}".strip("/")
    place = {**_place(options), "subfolder": subfolder, "_raise_exceptions_for_missing_entries": False}
    found, _ = (cached_file(source, name, **place) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    return None if found is None else Path(found).parent


def _place(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that say where a model is on the hub or in its cache."""
    known = ("cache_dir", "force_download", "local_files_only", "revision", "token")
    return {key: options[key] for key in known if key in options}


class PanoLlavaForConditionalGeneration(PanoLlavaPreTrainedModel, GenerationMixin):
    """Panoramas and text in, text out.

    Args:
        vision_tower: a loaded encoder; None builds one from the configuration with random weights.
        language_model: a loaded causal language model, likewise; later LoRA-wrapped or not.
        seed: new components draw from generators of (seed, name).
    """

    # The loss is the mean of its own batch: transformers' Trainer then divides by the number of accumulated batches.
    accepts_loss_kwargs = False

    def __init__(
        self,
        config: PanoLlavaConfig,
        *,
        vision_tower: VisionTower | None = None,
        language_model: PreTrainedModel | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(config)
        if vision_tower is None:
            encoder: Any = config.vision_config
            settings = {"image_size": config.image_size, "mean": config.image_mean, "std": config.image_std}
            vision_tower = VisionTower.from_config(encoder, **settings, feature_layer=config.feature_layer)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        parts: list[Any] = [config.resampler, config.position, config.projector]
        sizes: dict[str, Any] = {"latent_width": config.latent_width, "tokens_per_side": config.tokens_per_side}
        self.vision = PanoVision.build(vision_tower, resampler=parts[0], **sizes, seed=seed)
        width, text_width = self.vision.width, language_model.config.hidden_size
        config.latent_width = width  # the encoder's where the resampler has no weights
        self.position = build_component("position", parts[1], seed=seed, width=width)
        self.projector = build_component("projector", parts[2], seed=seed, input_width=width, output_width=text_width)
        self.language_model = language_model
        self.post_init()

    @classmethod
    def from_backbones(
        cls,
        vision_tower: VisionTower,
        language_model: PreTrainedModel,
        *,
        resampler: Spec,
        position: Spec,
        projector: Spec,
        crop: Spec,
        image_token_id: int,
        join: str = "concat",
        latent_width: int = 768,
        tokens_per_side: int | None = None,
        seed: int = 0,
    ) -> PanoLlavaForConditionalGeneration:
        """The model to train, around loaded backbones; arguments as for ``PanoLlavaConfig`` and the class."""
        mean, std = vision_tower.normalisation
        # Copies, as a composite resets the attention kind of its configurations: the backbones would then run without
        # a causal mask.
        config = PanoLlavaConfig(
            vision_config=copy.deepcopy(vision_tower.config),
            text_config=copy.deepcopy(language_model.config),
            resampler=dict(resampler),
            position=dict(position),
            projector=dict(projector),
            crop=dict(crop),
            join=join,
            form=FORM,
            latent_width=latent_width,
            tokens_per_side=tokens_per_side,
            image_size=list(vision_tower.image_size),
            image_mean=list(mean),
            image_std=list(std),
            feature_layer=vision_tower.feature_layer,
            image_token_id=image_token_id,
            vision_name=vision_tower.config.name_or_path or "",
            language_name=language_model.config.name_or_path or "",
            packages=outside_packages({"parts": [resampler, position, projector, crop]}) or None,
        )
        model = cls(config, vision_tower=vision_tower, language_model=language_model, seed=seed)
        # Of the language model's own decoding settings only the stop tokens; ``generation.*`` states all others.
        model.generation_config = GenerationConfig(eos_token_id=stop_ids(language_model) or None)
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        cameras: Tensor | None = None,
        view_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        picture_index: Tensor | None = None,
        segments: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits ``(B, kept, vocabulary)``, and with labels the mean loss of what kept positions predict.

        Args:
            input_ids: ``(B, T)``, image placeholders expanded.
            attention_mask: ``(B, T)``, or longer by what the cache holds; 1 on real tokens.
            position_ids: ``(B, T)``; None takes them from the mask, so that padding on either side is right.
            inputs_embeds: ``(B, T, Dl)`` already fused, in place of ``input_ids``.
            pixel_values, vision_features, cameras, view_mask: as for ``PanoVision``; none for text alone.
            labels: ``(B, T)``, ``IGNORE_INDEX`` where a token is no target.
            logits_to_keep: compute logits only for the last n positions, or for a 1-D tensor of positions; 0 is all.
            picture_index: ``(B,)``, the panorama of each row, where there are fewer; None: each row has its own.
            segments: ``(B, T)``, parts of rows with several texts, see ``panollava.model.shared_prefix``; with
                ``position_ids`` and without a cache.

        Raises:
            ValueError: placeholders and image tokens differ in number, an input is missing, or the text is too long.
        """
        prepared = self._language_inputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            vision_features=vision_features,
            cameras=cameras,
            view_mask=view_mask,
            picture_index=picture_index,
            segments=segments,
        )
        output = self.language_model(  # logits (B, kept, vocabulary)
            **prepared, past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep, **kwargs
        )
        if labels is not None:
            output.loss = _next_token_loss(output.logits, labels, logits_to_keep)
        return output

    def states(self, positions: Tensor, **inputs: Any) -> Tensor:
        """States ``(B, kept, Dl)`` at 1-D ``positions`` that the language model's head reads.

        Inputs are those of ``forward`` but for labels and the cache.
        """
        decoder = self.language_model.get_decoder()
        return decoder(**self._language_inputs(**inputs), use_cache=False).last_hidden_state[:, positions]

    @property
    def is_4bit(self) -> bool:
        """Whether the language model is in four bits."""
        return any(weight.dtype is torch.uint8 for weight in self.language_model.parameters())

    @torch.no_grad()
    def is_head_linear(self) -> bool:
        """Whether logits are what the head makes of the states; some families scale them or bound them by a tanh.

        It is measured with one token, since each family names such keys in its own way. A model without weights
        measures nothing, and is taken for linear, as most are.
        """
        language, was_training = self.language_model, self.language_model.training
        if language.get_input_embeddings().weight.is_meta:
            return True
        language.eval()
        embedding = language.get_input_embeddings().weight
        ramp = torch.linspace(-1, 1, embedding.shape[1], dtype=embedding.dtype, device=embedding.device)
        inputs = {"inputs_embeds": ramp[None, None]}  # no token's embedding: that of padding may be 0
        with plain_attention(language):  # the model may still be on the CPU, where flash attention does not run
            states = language.get_decoder()(**inputs, use_cache=False).last_hidden_state
            logits = language(**inputs, use_cache=False).logits
        language.train(was_training)
        return torch.equal(language.get_output_embeddings()(states).float(), logits.float())

    def _language_inputs(
        self,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        picture_index: Tensor | None = None,
        segments: Tensor | None = None,
        **pictures: Tensor | None,
    ) -> dict[str, Any]:
        """Embeddings ``(B, T, Dl)``, mask and positions for the language model; arguments and errors as ``forward``."""
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("Give input_ids or inputs_embeds.")
            width = input_ids.shape[1]
            if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
                # A pad may have any id, even one that has no embedding.
                input_ids = input_ids.masked_fill(attention_mask[:, -width:] == 0, ANY_ID)  # (B, T)
                width = attention_mask.shape[1]
            if segments is None:
                self._check_length(width)
            inputs_embeds = self._embed(input_ids, picture_index=picture_index, segments=segments, **pictures)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]  # (B, T)
        if segments is not None:
            attention_mask = mask_for(self.language_model, segments, inputs_embeds.dtype)
        return {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}

    def _embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        cameras: Tensor | None = None,
        view_mask: Tensor | None = None,
        picture_index: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """``(B, T)`` ids -> ``(B, T, Dl)``, view tokens in place of the placeholders."""
        is_image = input_ids.eq(self._placeholder)  # (B, T)
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_image, ANY_ID))  # (B, T, Dl)
        if pixel_values is None and vision_features is None:
            if bool(is_image.any()):
                raise ValueError(
                    f"The texts have {is_image.sum(dim=1).tolist()} image placeholders and no panorama was given. Pass "
                    "pixel_values or vision_features, with cameras."
                )
            return embeddings
        if cameras is None:
            raise ValueError("cameras are missing: pass what the crop gave with the views.")
        if view_mask is None:
            view_mask = torch.ones(cameras.shape[:2], dtype=torch.bool, device=cameras.device)
        tokens = self.encode_views(
            pixel_values, cameras=cameras, view_mask=view_mask, vision_features=vision_features
        )  # (B, V, Q, Dl)
        if picture_index is not None:
            tokens, view_mask, cameras = (each[picture_index] for each in (tokens, view_mask, cameras))
        grid = self.vision.token_grid
        image_tokens, counts = fuse(tokens, view_mask, self.config.join, cameras, grid)  # (all counts, Dl), (B,)
        if segments is not None:
            image_tokens, counts = repeat_last(image_tokens, counts, segments.amax(dim=1) - 1)
        return insert_image_tokens(embeddings, is_image, image_tokens, counts)  # (B, T, Dl)

    def encode_views(
        self,
        pixel_values: Tensor | None = None,
        *,
        cameras: Tensor,
        view_mask: Tensor | None = None,
        vision_features: Tensor | None = None,
    ) -> Tensor:
        """Views ``(B, V, 3, h, w)``, or ready features of them -> ``(B, V, Q, Dl)`` tokens for the language model.

        Raises ValueError for cameras in less than float32.
        """
        if cameras.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"The cameras are {cameras.dtype}, in which directions are off by up to a degree. Leave them float32 "
                "when inputs are cast; those of PanoLlavaProcessor stay so in inputs.to(...)."
            )
        tokens = self.vision(
            pixel_values, cameras=cameras, view_mask=view_mask, vision_features=vision_features
        )  # (B, V, Q, Dr)
        tokens = self.position(tokens, cameras, self.vision.token_grid)  # (B, V, Q, Dr)
        return self.projector(tokens.to(float_dtype(self.projector, tokens.dtype)))  # (B, V, Q, Dl)

    @property
    def _placeholder(self) -> int:
        placeholder = self.config.image_token_id
        assert placeholder is not None  # PanoLlavaConfig fills it
        return placeholder

    def _check_length(self, length: int) -> None:
        positions = Limits.of(self).positions
        if length > positions:
            raise ValueError(
                f"A sequence of {length} tokens, those of the panorama and of the answer included, is more than the "
                f"language model's {positions} positions. Shorten the text, lower max_new_tokens, or use a crop with "
                "fewer views."
            )

    def checkpoint_activations(self) -> None:
        """Recomputes activations of the language model, and of a tower that trains, in blocks in training mode."""
        arguments = {"use_reentrant": False}
        self.language_model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
        self.vision.tower.checkpoint_activations()

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Drops the panorama after the prefill, when its tokens are in the cache."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if not kwargs.get("is_first_iteration", False) and kwargs.get("use_cache", True):
            for name in PICTURE_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Those of transformers, corrected by ``AnswerProcessors``."""
        processors = super()._get_logits_processor(*args, **kwargs)  # type: ignore[misc]
        length = kwargs.get("input_ids_seq_length") or 0
        return LogitsProcessorList([AnswerProcessors(processors, length, self._placeholder)])


def _next_token_loss(logits: Tensor, labels: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Mean cross-entropy in fp32 of the targets that the kept positions predict."""
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # (B, T), of the next position
    if isinstance(logits_to_keep, Tensor):
        targets = targets[:, logits_to_keep]
    elif logits_to_keep > 0:
        targets = targets[:, -logits_to_keep:]
    if not targets.ne(IGNORE_INDEX).any():
        logger.warning("All labels are %d, so there is nothing to learn: the loss is 0.", IGNORE_INDEX)
        return logits.float().sum() * 0
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)
