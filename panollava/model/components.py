"""What the model asks of its exchangeable parts: resampler, position code and projector."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from panollava.component import find_component


class Resampler(Protocol):
    """Turns the patch features of each view into ``Q`` tokens.

    Every resampler is an ``nn.Module`` named ``<Type>Resampler`` in ``model/resampler/<type>.py``, built
    with ``input_width`` (``Dv``), ``output_width`` (``Dr``) and its own typed keywords. Padding views (False
    in ``view_mask``) hold anything finite, come out as anything finite, and never touch another view.

    A class that has no weights to change the width with says ``keeps_width = True`` and is built with both widths
    the encoder's, whatever the settings say.
    """

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        """The grid ``(H', W')`` that the tokens of a view keep, or None where they keep none."""

    def token_count(self, grid: tuple[int, int]) -> int:
        """``Q`` for a patch grid, known without running."""

    def __call__(self, features: Tensor, *, grid: tuple[int, int], view_mask: Tensor, cameras: Tensor) -> Tensor:
        """``(B, V, N, Dv)`` features, ``(B, V)`` mask, ``(B, V, C)`` cameras -> ``(B, V, Q, Dr)`` tokens."""


class Position(Protocol):
    """Tells each token which way it looks: ``<Type>Position`` of ``position.py``, built with ``width``."""

    def __call__(self, tokens: Tensor, cameras: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """``(B, V, Q, Dr)`` tokens, ``(B, V, C)`` cameras -> tokens of the same shape and type."""


class Projector(Protocol):
    """Maps tokens to the width of the language model: ``<Type>Projector`` of ``projector.py``."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """``(..., Dr)`` -> ``(..., Dl)``."""


def resampler_class(type: str) -> type:
    """The class of ``model.resampler=<type>``."""
    return find_component("model.resampler", type, "Resampler")


def keeps_width(resampler: type) -> bool:
    """Whether tokens of a resampler's class are as wide as the encoder's features."""
    return bool(getattr(resampler, "keeps_width", False))


def position_class(type: str) -> type:
    """The class of ``model.position=<type>``."""
    return find_component("model.position", type, "Position")


def projector_class(type: str) -> type:
    """The class of ``model.projector=<type>``."""
    return find_component("model.projector", type, "Projector")
