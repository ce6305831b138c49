"""PanoVision: vision tower and resampler, all of the model that stage 1 needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from panollava.model.build import Spec, build_component, float_dtype
from panollava.model.components import keeps_width, resampler_class
from panollava.model.vision import VisionTower


class PanoVision(nn.Module):
    """Encodes the views of panoramas into ``Q`` tokens a view."""

    def __init__(self, tower: VisionTower, resampler: nn.Module, *, width: int) -> None:
        """Join a tower and a resampler whose input width is the tower's.

        Args:
            tower: encoder of single views.
            resampler: see ``panollava.model.components.Resampler``.
            width: ``Dr``, the resampler's output width.
        """
        super().__init__()
        self.tower = tower
        self.resampler = resampler
        self.width = width

    @classmethod
    def build(cls, tower: VisionTower, *, resampler: Spec, latent_width: int = 768, seed: int = 0) -> PanoVision:
        """A tower with a new resampler.

        Args:
            tower: encoder of single views.
            resampler: its type and keywords.
            latent_width: ``Dr``; a resampler that keeps the width of the features does so all the same.
            seed: of the run; the resampler draws from its own generator.
        """
        width = tower.width if keeps_width(resampler_class(resampler["type"])) else latent_width
        module = build_component(
            "resampler",
            resampler_class,
            resampler,
            seed=seed,
            input_width=tower.width,
            output_width=width,
        )
        return cls(tower, module, width=width)

    @property
    def tokens_per_view(self) -> int:
        """``Q``."""
        return self._resampler.token_count(self.tower.grid)

    @property
    def token_grid(self) -> tuple[int, int] | None:
        """Grid ``(H', W')`` of the tokens of a view, None where the resampler keeps none."""
        return self._resampler.token_grid(self.tower.grid)

    @property
    def _resampler(self) -> Any:
        return self.resampler

    def features(self, pixel_values: Tensor) -> Tensor:
        """``(B, V, 3, h, w)`` views -> ``(B, V, N, Dv)`` features, all views in one call of the tower."""
        flat = self.tower(pixel_values.flatten(0, 1))
        return flat.unflatten(0, pixel_values.shape[:2])

    def forward(
        self,
        pixel_values: Tensor | None = None,
        *,
        cameras: Tensor,
        view_mask: Tensor | None = None,
        vision_features: Tensor | None = None,
    ) -> Tensor:
        """Encode panoramas.

        Args:
            pixel_values: ``(B, V, 3, h, w)`` uint8, or float in 0..1.
            cameras: ``(B, V, C)``.
            view_mask: ``(B, V)`` bool, False where a view only pads; None means all are real.
            vision_features: ``(B, V, N, Dv)`` ready features of the tower in place of ``pixel_values``.

        Returns:
            ``(B, V, Q, Dr)``.

        Raises:
            ValueError: neither or both of pixels and features, or features of another grid.
        """
        if (pixel_values is None) == (vision_features is None):
            raise ValueError("Give exactly one of pixel_values and vision_features.")
        features = vision_features if pixel_values is None else self.features(pixel_values)
        assert features is not None
        height, width = self.tower.grid
        if features.shape[2:] != (height * width, self.tower.width):
            raise ValueError(
                f"vision_features of shape {tuple(features.shape)} do not fit this encoder: expected "
                f"(B, V, {height * width}, {self.tower.width}). They come from another encoder or image size."
            )
        if view_mask is None:
            view_mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        features = features.to(float_dtype(self.resampler, torch.float32))
        return self.resampler(features, grid=self.tower.grid, view_mask=view_mask, cameras=cameras)
