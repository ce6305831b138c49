"""From views to tokens: pixels through the encoder (``VisionTower``) and its features through a resampler.

The second half of the path, from tokens to logits, is in ``panollava.model.vlm``. Shapes use the legend of
``panollava.batch``; ``n = B·V`` views are encoded in one call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from panollava.model import families, hub
from panollava.model.components import Spec, build_component, component_class, float_dtype, keeps_width
from panollava.model.families import family_of, patch_size  # by name, as store.identity.code_digest follows names
from panollava.model.layers import area_pool
from panollava.model.trainable import Blocks, emit_as, make_fp32

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

KEY = "model.vision.name"


class VisionTower(nn.Module):
    """A vision encoder with its normalisation inside, so that everything outside handles uint8.

    Args:
        model: the encoder alone, not a dual encoder; timm models through ``TimmWrapperModel``.
        image_size: ``(h, w)`` of the views it takes; ``grid`` ``(H', W')`` are their patches.
        mean: of RGB in 0..1, as the encoder was trained, and ``std``.
        feature_layer: -1 is the encoder's ``last_hidden_state``, -2 the output of the last block but one (without the
            final norm), and so on.

    Raises:
        ValueError: the encoder has no such layer, or a view is smaller than a patch.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        image_size: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        feature_layer: int = -1,
    ) -> None:
        super().__init__()
        self.model = model
        self.family = family_of(model.config)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.feature_layer = feature_layer
        self.normalisation = tuple(mean), tuple(std)
        self._trained_blocks: Sequence[nn.Module] | None = None
        self._back_to_frozen_type: RemovableHandle | None = None
        self.register_buffer("mean", torch.empty(1, 3, 1, 1, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.empty(1, 3, 1, 1, dtype=torch.float32), persistent=False)
        self.reset_buffers()
        patch_h, patch_w = patch_size(model)
        self.grid = (self.image_size[0] // patch_h, self.image_size[1] // patch_w)
        if not -len(self.blocks) <= feature_layer <= -1:
            raise ValueError(
                f"model.vision.feature_layer={feature_layer}: the encoder has {len(self.blocks)} blocks, so "
                f"-1 (its final output) down to -{len(self.blocks)} are possible."
            )
        if min(self.grid) < 1:
            raise ValueError(
                f"crop.view_size={self.image_size} is smaller than one patch of {(patch_h, patch_w)} pixels."
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        image_size: int | tuple[int, int] | None = None,
        feature_layer: int = -1,
        dtype: torch.dtype = torch.float32,
        attn_implementation: hub.Attention = "sdpa",
        revision: str | None = None,
        weights: bool = True,
        kept_size: tuple[int, int] | None = None,
    ) -> VisionTower:
        """Opens an encoder.

        Args:
            name_or_path: hub name (``google/siglip-base-patch16-224``, ``timm/...``), folder, or a safetensors file.
            image_size: side, or ``(h, w)``, of the views, for which positions are interpolated; None is the encoder's.
                It is rounded down to whole patches, as the encoder does not see the rest.
            dtype: type of the weights; normalisation is always fp32.
            revision: commit, branch or tag of a hub model; None for the newest.
            weights: False opens the configuration alone; the tower is on the meta device and computes nothing.
            kept_size: a size that is not rounded: that of a run of an earlier version.

        Raises:
            FileNotFoundError: no such model, or no safetensors weights.
            ValueError: the family is not supported, or the size is not possible.
        """
        from transformers import AutoModel

        source = hub.resolve_source(name_or_path, KEY)
        config = families.vision_config(hub.read_config(source, KEY, revision), source)
        mean, std, own_size = families.preprocessing(source, config, revision)
        size = own_size if image_size is None else families.pair(image_size)
        size = families.use_image_size(config, size, kept_size)
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
        if weights:
            model = hub.load_pretrained(AutoModel, source, KEY, config=config, revision=revision, **options)
        else:
            model = hub.without_weights(AutoModel, config, **options)
        with model.device:
            return cls(model, image_size=size, mean=mean, std=std, feature_layer=feature_layer)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **settings: Any) -> VisionTower:
        """The tower with random weights, to be filled from an export; ``settings`` as for the class."""
        from transformers import AutoModel

        families.check_architecture(config, str(config.name_or_path or "an export"))
        return cls(AutoModel.from_config(config), **settings)

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def width(self) -> int:
        """``Dv``."""
        if self.family.is_timm:
            return int(self.model.timm_model.num_features)  # type: ignore[union-attr, arg-type]
        return int(self.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the encoder's weights and of the features."""
        return self.model.dtype

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, first to last."""
        return self.model.get_submodule(self.family.blocks)  # type: ignore[return-value]

    def reset_buffers(self) -> None:
        """Fills the buffers; again after construction on the meta device, which leaves them undefined."""
        with torch.no_grad():
            for buffer, values in zip((self.mean, self.std), self.normalisation, strict=True):
                buffer.copy_(torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Mean and standard deviation stay fp32 where the module is cast to another type."""
        super()._apply(fn, recurse)
        self.mean, self.std = self.mean.float(), self.std.float()
        self.reset_buffers()
        return self

    def normalise(self, pixels: Tensor) -> Tensor:
        """``(n, 3, h, w)`` uint8 or float in 0..1 -> normalised, in fp32."""
        scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        return (scaled - self.mean.float()) / self.std.float()

    def forward(self, pixels: Tensor) -> Tensor:
        """``(n, 3, h, w)`` views, uint8 or float in 0..1 -> ``(n, N, Dv)`` features, one for each patch, row by row."""
        if tuple(pixels.shape[-2:]) != self.image_size or pixels.shape[1] != 3:
            raise ValueError(
                f"Views of shape {tuple(pixels.shape[1:])} do not fit this encoder, which takes "
                f"{(3, *self.image_size)}. Cut views of that size, or open the encoder with image_size="
                f"{tuple(pixels.shape[-2:])}."
            )
        normalised = self.normalise(pixels).to(self.dtype)  # (n, 3, h, w)
        return self.family.encode(self.model, normalised, self.feature_layer)  # (n, N, Dv)

    def train(self, mode: bool = True) -> VisionTower:
        """Training mode for what trains; blocks that ``train_only`` froze stay in inference mode."""
        if self._trained_blocks is None:
            return super().train(mode)
        super().train(False)
        for block in self._trained_blocks:
            block.train(mode)
            for part in block.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()  # checkpoints hold parameters, and its running statistics are buffers
        return self

    def train_only(self, blocks: Blocks) -> None:
        """Freezes everything but the last blocks before ``feature_layer``; what trains becomes fp32.

        ``"all"`` trains every weight that the features depend on (a pooling head or a mask token is not).
        """
        if self._back_to_frozen_type is not None:
            self._back_to_frozen_type.remove()
        if blocks == "all":
            reached = self._reached()
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name in reached)
            self._trained_blocks = list(self.blocks)
            make_fp32(self.model.parameters())
            return
        self.check_blocks(blocks)
        used = self._used_blocks
        self.model.requires_grad_(False)
        self._trained_blocks = used[len(used) - blocks :]
        if self._trained_blocks:
            self._back_to_frozen_type = emit_as(self._trained_blocks[-1], self.dtype)
        for block in self._trained_blocks:
            block.requires_grad_(True)
            make_fp32(block.parameters())

    def check_blocks(self, blocks: Blocks) -> None:
        """Raises ValueError if more blocks are to train than there are."""
        count = len(self._used_blocks)
        if blocks != "all" and not 0 <= blocks <= count:
            raise ValueError(
                f"vision_trainable_blocks={blocks}: features of layer {self.feature_layer} pass through {count} "
                f"blocks, so 0 to {count} or all are possible."
            )

    def checkpoint_activations(self) -> None:
        """Recomputes activations of the blocks that train in the backward pass; ValueError if the encoder cannot."""
        if not any(weight.requires_grad for weight in self.parameters()):
            return
        if not self.model.supports_gradient_checkpointing:
            raise ValueError(
                f"trainer.checkpoint_activations=true: the encoder {type(self.model).__name__} cannot recompute its "
                "activations. Set it to false and lower the stage's batch_size, or freeze the encoder."
            )
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    @property
    def _used_blocks(self) -> list[nn.Module]:
        return list(self.blocks)[: len(self.blocks) + 1 + self.feature_layer]

    def _reached(self) -> set[str]:
        """Names of the weights that the features of a grey view have a gradient for."""
        named = dict(self.model.named_parameters())
        before = {name: parameter.requires_grad for name, parameter in named.items()}
        self.model.requires_grad_(True)
        try:
            with torch.enable_grad():
                features = self(torch.full((1, 3, *self.image_size), 0.5, device=self.mean.device))
            gradients = torch.autograd.grad(features.float().sum(), list(named.values()), allow_unused=True)
        finally:
            for name, parameter in named.items():
                parameter.requires_grad_(before[name])
        return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


class PanoVision(nn.Module):
    """Encodes the views of panoramas into ``Q`` tokens a view, of width ``Dr``.

    Args:
        tower: a loaded encoder.
        resampler: built for its width.
        width: ``Dr``.
        tokens_per_side: the resampler's tokens are averaged over so many rows and columns of a view (``area_pool``),
            which gives crops with other numbers of views the same number of image tokens. None: they stay as they are.

    Raises:
        ValueError: the resampler's tokens have no grid, or a coarser one.
    """

    def __init__(
        self, tower: VisionTower, resampler: nn.Module, *, width: int, tokens_per_side: int | None = None
    ) -> None:
        super().__init__()
        self.tower, self.width, self.tokens_per_side = tower, width, tokens_per_side
        self.resampler: Any = resampler
        if tokens_per_side is not None:
            self._check_pooling(tokens_per_side)

    @classmethod
    def build(
        cls,
        tower: VisionTower,
        *,
        resampler: Spec,
        latent_width: int = 768,
        tokens_per_side: int | None = None,
        seed: int = 0,
    ) -> PanoVision:
        """A tower with a new resampler; ``latent_width`` is ``Dr`` unless the resampler keeps the features' width."""
        width = tower.width if keeps_width(component_class("resampler", resampler["type"])) else latent_width
        widths = {"input_width": tower.width, "output_width": width}
        built = build_component("resampler", resampler, seed=seed, **widths)
        return cls(tower, built, width=width, tokens_per_side=tokens_per_side)

    @property
    def tokens_per_view(self) -> int:
        """``Q``."""
        return self.resampled_per_view if self.tokens_per_side is None else self.tokens_per_side**2

    @property
    def token_grid(self) -> tuple[int, int] | None:
        """Grid ``(H', W')`` of the tokens of a view, None where the resampler keeps none."""
        side = self.tokens_per_side
        return self.resampled_grid if side is None else (side, side)

    @property
    def resampled_per_view(self) -> int:
        """Tokens of a view before ``tokens_per_side``."""
        return self.resampler.token_count(self.tower.grid)

    @property
    def resampled_grid(self) -> tuple[int, int] | None:
        """``token_grid`` before ``tokens_per_side``."""
        return self.resampler.token_grid(self.tower.grid)

    def features(self, pixel_values: Tensor) -> Tensor:
        """``(B, V, 3, h, w)`` views -> ``(B, V, N, Dv)`` features, all views in one call of the tower."""
        return self.tower(pixel_values.flatten(0, 1)).unflatten(0, pixel_values.shape[:2])

    def forward(
        self,
        pixel_values: Tensor | None = None,
        *,
        cameras: Tensor,
        view_mask: Tensor | None = None,
        vision_features: Tensor | None = None,
        is_pooled: bool = True,
    ) -> Tensor:
        """Encodes panoramas into tokens ``(B, V, Q, Dr)``.

        Args:
            pixel_values: ``(B, V, 3, h, w)`` uint8, or float in 0..1.
            cameras: ``(B, V, C)``.
            view_mask: ``(B, V)`` bool, False where a view only pads; None means all are real.
            vision_features: ``(B, V, N, Dv)`` ready features of the tower in place of ``pixel_values``.
            is_pooled: False for the resampler's own tokens, ``resampled_per_view`` of each view.
        """
        if (pixel_values is None) == (vision_features is None):
            raise ValueError("Give exactly one of pixel_values and vision_features.")
        features = vision_features if pixel_values is None else self.features(pixel_values)  # (B, V, N, Dv)
        assert features is not None
        height, width = self.tower.grid
        if features.shape[2:] != (height * width, self.tower.width):
            raise ValueError(
                f"vision_features of shape {tuple(features.shape)} do not fit this encoder: expected "
                f"(B, V, {height * width}, {self.tower.width}). They come from another encoder or image size."
            )
        if view_mask is None:
            view_mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)  # (B, V)
        features = features.to(float_dtype(self.resampler, torch.float32))
        tokens = self.resampler(features, grid=self.tower.grid, view_mask=view_mask, cameras=cameras)
        grid, pooled = self.resampled_grid, self.token_grid
        if not is_pooled or grid is None or pooled is None or pooled == grid:
            return tokens
        return area_pool(tokens, grid, pooled)

    def _check_pooling(self, side: int) -> None:
        grid = self.resampled_grid
        if grid is None:
            raise ValueError(
                f"model.tokens_per_side={side} averages neighbouring tokens, and the resampler's have no grid. Set "
                "their number itself (model.resampler.queries of qformer, model.resampler.latents of perceiver) and "
                "model.tokens_per_side=null, or model.resampler.shortcut=true where it has one."
            )
        if not 1 <= side <= min(grid):
            raise ValueError(
                f"model.tokens_per_side={side}: the resampler gives {grid[0]} x {grid[1]} tokens a view, so 1 to "
                f"{min(grid)} are possible, and null for all of them."
            )


# Keys of a configuration that do not change what the encoder computes; the type of its weights is stated apart.
_NOT_PART = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")


class Encoding:
    """Computes the features that a store keeps: one panorama per call, in the encoder's type, without autocast.

    The bits of the features then depend on nothing but the panorama's views and ``signature``. The encoder is frozen
    and runs on the device where it is.
    """

    def __init__(self, tower: VisionTower) -> None:
        self.tower = tower

    def __call__(self, views: Tensor) -> Tensor:
        """``(V, 3, h, w)`` uint8 views of a panorama -> ``(V, N, Dv)`` features on the encoder's device."""
        device = self.tower.mean.device
        self.tower.eval()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.tower(views.to(device, non_blocking=True))

    def signature(self) -> dict[str, Any]:
        """All that features depend on beside the views; plain values."""
        tower = self.tower
        weights = hashlib.sha256()
        for name, tensor in sorted(tower.model.state_dict().items()):
            weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        config = {key: value for key, value in tower.config.to_dict().items() if key not in _NOT_PART}
        return {
            "weights": weights.hexdigest(),
            "config": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
            "normalisation": [list(values) for values in tower.normalisation],
            "feature_layer": tower.feature_layer,
            "type": str(tower.dtype).removeprefix("torch."),
            "attention": tower.config._attn_implementation,
            "matmul": torch.get_float32_matmul_precision(),
            "device": device_kind(tower.mean.device),
            # By their records, not by an import: that of timm takes seconds, and few encoders are its own.
            "libraries": {"torch": torch.__version__, **{name: version(name) for name in ("timm", "transformers")}},
        }


def device_kind(device: torch.device) -> str:
    """What chooses the kernels: a GPU's model; a CPU's instructions and its number of threads."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return device.type
