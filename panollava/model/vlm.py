"""PanoLlavaForConditionalGeneration: encode views, code their directions, project, fuse with text, decode."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from panollava.batch import IGNORE_INDEX
from panollava.model.build import Spec, build_component, float_dtype
from panollava.model.components import position_class, projector_class
from panollava.model.configuration import PanoLlavaConfig
from panollava.model.decoding import AnswerProcessors, stop_ids
from panollava.model.encoder import PanoVision
from panollava.model.fusion import fuse, insert_image_tokens
from panollava.model.pretrained import PanoLlavaPreTrainedModel
from panollava.model.vision import VisionTower
from panollava.prompt import Limits
from panollava.run_folder import FORM

logger = logging.getLogger(__name__)

VISION_INPUTS = ("pixel_values", "vision_features", "cameras", "view_mask")
ANY_ID = 0
"""Is embedded where the embedding gives way to an image token or is masked."""


class PanoLlavaForConditionalGeneration(PanoLlavaPreTrainedModel, GenerationMixin):
    """Panoramas and text in, text out.

    Attributes:
        vision: ``PanoVision``.
        position: position code of the view tokens.
        projector: from ``Dr`` to ``Dl``.
        language_model: a transformers causal language model, LoRA-wrapped or not.
    """

    def __init__(
        self,
        config: PanoLlavaConfig,
        *,
        vision_tower: VisionTower | None = None,
        language_model: PreTrainedModel | None = None,
        seed: int = 0,
    ) -> None:
        """Build the model; backbones that are not given are built from the configuration with random weights.

        Args:
            config: everything else.
            vision_tower: a loaded encoder to use.
            language_model: a loaded causal language model to use.
            seed: new components draw from generators of (seed, name).
        """
        super().__init__(config)
        if vision_tower is None:
            vision_tower = VisionTower.from_config(
                config.vision_config,  # type: ignore[arg-type]
                image_size=config.image_size or (),
                mean=config.image_mean or (),
                std=config.image_std or (),
                feature_layer=config.feature_layer,
            )
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        resampler, position, projector = config.resampler, config.position, config.projector
        assert resampler is not None
        assert position is not None
        assert projector is not None
        self.vision = PanoVision.build(vision_tower, resampler=resampler, latent_width=config.latent_width, seed=seed)
        width, text_width = self.vision.width, language_model.config.hidden_size
        config.latent_width = width  # which is the encoder's where the resampler has no weights
        self.position = build_component("position", position_class, position, seed=seed, width=width)
        self.projector = build_component(
            "projector", projector_class, projector, seed=seed, input_width=width, output_width=text_width
        )
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
        seed: int = 0,
    ) -> PanoLlavaForConditionalGeneration:
        """The model to train, around loaded backbones, which it uses as they are.

        Args:
            vision_tower: see ``VisionTower.from_pretrained``.
            language_model: see ``panollava.model.hub.load_language_model``.
            resampler: type and keywords; likewise ``position``, ``projector`` and ``crop``.
            position: of the position code.
            projector: of the projector.
            crop: of the crop; kept for the processor of an export.
            image_token_id: see ``panollava.prompt.add_image_token``.
            join: how views join.
            latent_width: ``Dr``.
            seed: of the run.
        """
        mean, std = vision_tower.normalisation
        # Copies: a composite resets the attention kind of the configurations it is given, and the backbones
        # would then run without a causal mask.
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
            image_size=list(vision_tower.image_size),
            image_mean=list(mean),
            image_std=list(std),
            feature_layer=vision_tower.feature_layer,
            image_token_id=image_token_id,
            vision_name=vision_tower.config.name_or_path or "",
            language_name=language_model.config.name_or_path or "",
        )
        model = cls(config, vision_tower=vision_tower, language_model=language_model, seed=seed)
        # Of the language model's own decoding settings only the stop tokens: the others are a stranger's.
        model.generation_config = GenerationConfig(eos_token_id=stop_ids(language_model) or None)
        return model

    def checkpoint_activations(self) -> None:
        """Trade time for memory: recompute activations of the language model, and of a tower that trains.

        Takes effect on blocks in training mode, as in transformers.
        """
        arguments = {"use_reentrant": False}
        self.language_model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
        self.vision.tower.checkpoint_activations()

    def encode_views(
        self,
        pixel_values: Tensor | None = None,
        *,
        cameras: Tensor,
        view_mask: Tensor | None = None,
        vision_features: Tensor | None = None,
    ) -> Tensor:
        """Views, or ready features of them -> ``(B, V, Q, Dl)`` tokens for the language model."""
        tokens = self.vision(
            pixel_values, cameras=cameras, view_mask=view_mask, vision_features=vision_features
        )  # (B, V, Q, Dr)
        tokens = self.position(tokens, cameras, self.vision.token_grid)
        return self.projector(tokens.to(float_dtype(self.projector, tokens.dtype)))

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
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and their loss where labels are given.

        Args:
            input_ids: ``(B, T)``, image placeholders expanded.
            attention_mask: ``(B, T)``, or longer by what the cache holds; 1 on real tokens.
            position_ids: ``(B, T)``; None takes them from the mask, so that padding on either side is right.
            past_key_values: cache of a generation.
            inputs_embeds: ``(B, T, Dl)`` already fused, in place of ``input_ids``.
            pixel_values: ``(B, V, 3, h, w)`` views.
            vision_features: ``(B, V, N, Dv)`` in place of ``pixel_values``.
            cameras: ``(B, V, C)``, with either of them.
            view_mask: ``(B, V)`` bool; None means all views are real.
            labels: ``(B, T)``, ``IGNORE_INDEX`` where a token is no target.
            use_cache: as in transformers.
            logits_to_keep: the last n positions, or a 1-D tensor of positions, that pay the vocabulary
                matrix; 0 is all of them.
            **kwargs: passed on to the language model.

        Returns:
            ``logits`` ``(B, kept, vocabulary)`` and ``loss``, the fp32 mean over the targets that the kept
            positions predict.

        Raises:
            ValueError: placeholders and image tokens differ in number, an input is missing, or the sequence is longer
                than the language model's positions.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("Give input_ids or inputs_embeds.")
            width = input_ids.shape[1]
            if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
                # The id of a pad may be any, also one that has no embedding.
                input_ids = input_ids.masked_fill(attention_mask[:, -width:] == 0, ANY_ID)
                width = attention_mask.shape[1]
            self._check_length(width)
            inputs_embeds = self._embed(input_ids, pixel_values, vision_features, cameras, view_mask)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        if labels is not None:
            output.loss = _next_token_loss(output.logits, labels, logits_to_keep)
        return output

    def _embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        vision_features: Tensor | None,
        cameras: Tensor | None,
        view_mask: Tensor | None,
    ) -> Tensor:
        """``(B, T)`` ids -> ``(B, T, Dl)`` with view tokens in the place of the placeholders."""
        placeholder = self.config.image_token_id
        assert placeholder is not None
        is_image = input_ids.eq(placeholder)
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_image, ANY_ID))
        if pixel_values is None and vision_features is None:
            if bool(is_image.any()):
                raise ValueError(
                    f"The texts have {is_image.sum(dim=1).tolist()} image placeholders and no panorama was "
                    "given. "
                    "Pass pixel_values or vision_features, with cameras."
                )
            return embeddings
        if cameras is None:
            raise ValueError("cameras are missing: pass what the crop gave with the views.")
        if view_mask is None:
            view_mask = torch.ones(cameras.shape[:2], dtype=torch.bool, device=cameras.device)
        tokens = self.encode_views(
            pixel_values, cameras=cameras, view_mask=view_mask, vision_features=vision_features
        )  # (B, V, Q, Dl)
        image_tokens, counts = fuse(tokens, view_mask, self.config.join, cameras, self.vision.token_grid)
        return insert_image_tokens(embeddings, is_image, image_tokens, counts)

    def _check_length(self, length: int) -> None:
        positions = Limits.of(self).positions
        if length > positions:
            raise ValueError(
                f"A sequence of {length} tokens, those of the panorama and of the answer included, is more than the "
                f"language model's {positions} positions. Shorten the text, lower max_new_tokens, or use a crop with "
                "fewer views."
            )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Drop the panorama after the prefill: its tokens are in the cache."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if not kwargs.get("is_first_iteration", False) and kwargs.get("use_cache", True):
            for name in VISION_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Those of transformers, as they apply to an answer about a panorama."""
        processors = super()._get_logits_processor(*args, **kwargs)  # type: ignore[misc]
        placeholder = self.config.image_token_id
        assert placeholder is not None
        length = kwargs.get("input_ids_seq_length") or 0
        return LogitsProcessorList([AnswerProcessors(processors, length, placeholder)])


def _next_token_loss(logits: Tensor, labels: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Mean cross-entropy in fp32 of the targets that the kept positions predict."""
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    if isinstance(logits_to_keep, Tensor):
        targets = targets[:, logits_to_keep]
    elif logits_to_keep > 0:
        targets = targets[:, -logits_to_keep:]
    if not targets.ne(IGNORE_INDEX).any():
        logger.warning("All labels are %d, so there is nothing to learn: the loss is 0.", IGNORE_INDEX)
        return logits.float().sum() * 0
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)
