"""Resamplers, position codes and projectors: what each must offer, how a config names one, and how it is built."""

import builtins
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from panollava.component import find_component
from panollava.model.trainable import refuse_buffers

Spec = Mapping[str, Any]  # a component as configs name it: {"type": "mlp", <its keywords>}


class Resampler(Protocol):
    """Turns the patch features of each view into ``Q`` tokens.

    Every resampler is an ``nn.Module`` named ``<Type>Resampler`` in ``model/resampler/<type>.py``, or a class of
    another package (``resampler=my_package.module:Class``; likewise position codes and projectors). It is built with
    ``input_width`` (``Dv``), ``output_width`` (``Dr``) and its own typed keywords. Padding views (False in
    ``view_mask``) hold any finite values, give any finite values, and never affect another view.

    A class without weights that could change the width sets ``keeps_width = True``; both its widths are then the
    encoder's, and settings of them are ignored.
    """

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        """The grid ``(H', W')`` of a view's tokens for a patch grid, or None where the tokens have no grid."""

    def token_count(self, grid: tuple[int, int]) -> int:
        """``Q`` for a patch grid, known without running."""

    def __call__(self, features: Tensor, *, grid: tuple[int, int], view_mask: Tensor, cameras: Tensor) -> Tensor:
        """``(B, V, N, Dv)`` features, ``(B, V)`` mask, ``(B, V, C)`` cameras -> ``(B, V, Q, Dr)`` tokens."""


class Position(Protocol):
    """Adds a code of its direction to each token: ``<Type>Position`` of ``position.py``, built with ``width``."""

    def __call__(self, tokens: Tensor, cameras: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """``(B, V, Q, Dr)`` tokens, ``(B, V, C)`` cameras -> tokens of the same shape and type."""


class Projector(Protocol):
    """Maps tokens to the width of the language model: ``<Type>Projector`` of ``projector.py``."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """``(..., Dr)`` -> ``(..., Dl)``."""


_PROTOCOLS: dict[str, type] = {"resampler": Resampler, "position": Position, "projector": Projector}


def component_class(name: str, type: str) -> builtins.type[nn.Module]:
    """The class of ``model.<name>=<type>``, an ``nn.Module``; errors as for ``find_component``."""
    found = find_component(f"model.{name}", type, name.capitalize(), _PROTOCOLS[name])
    if not issubclass(found, nn.Module):
        raise ValueError(
            f"model.{name}.type={type} is no torch.nn.Module, which resamplers, position codes and projectors are."
        )
    return found


def keeps_width(resampler: type) -> bool:
    """Whether tokens of a resampler's class are as wide as the encoder's features."""
    return bool(getattr(resampler, "keeps_width", False))


def build_component(name: str, spec: Spec, *, seed: int, **widths: int) -> nn.Module:
    """Builds a resampler, position code or projector.

    Raises a ValueError if the type or a keyword does not exist, or the module has buffers.

    ``name`` is its config key, such as ``resampler``, and seeds its generator; ``widths`` are known to the model alone.
    """
    keywords = {key: value for key, value in spec.items() if key != "type"}
    component = component_class(name, spec["type"])
    allowed = [key for key in inspect.signature(component).parameters if key not in widths]
    if unknown := sorted(set(keywords) - set(allowed)):
        raise ValueError(
            f"model.{name}: {spec['type']!r} has no {', '.join(map(repr, unknown))}. "
            f"It takes: {', '.join(allowed) or 'nothing'}."
        )
    with seeded(seed, name):
        built = component(**keywords, **widths)
    refuse_buffers(built, f"model.{name}.type={spec['type']}")
    return built


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Draws from a generator of (seed, name) inside, so that one component does not change how another one starts."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield


def float_dtype(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """Type of a module's weights; ``default`` where it has none."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), default)
