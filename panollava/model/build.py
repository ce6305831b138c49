"""Builds the exchangeable components, each from its own random generator."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Spec = Mapping[str, Any]
"""A component as configs name it: ``{"type": "mlp", <its keywords>}``."""


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Draw from a generator of (seed, name) inside and leave the global one as it was.

    So that adding or changing one component does not change how another one starts.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield


def build_component(
    name: str, find: Callable[[str], type[nn.Module]], spec: Spec, *, seed: int, **widths: int
) -> nn.Module:
    """Build a resampler, position code or projector.

    Args:
        name: its config key and the name its generator is seeded by, such as ``resampler``.
        find: class of a type, such as ``panollava.model.components.resampler_class``.
        spec: its type and keywords.
        seed: of the run.
        **widths: what only the model knows.

    Raises:
        ValueError: the type or a keyword does not exist.
    """
    keywords = {key: value for key, value in spec.items() if key != "type"}
    component = find(spec["type"])
    allowed = [key for key in inspect.signature(component).parameters if key not in widths]
    unknown = sorted(set(keywords) - set(allowed))
    if unknown:
        raise ValueError(
            f"model.{name}: {spec['type']!r} has no {', '.join(map(repr, unknown))}. "
            f"It takes: {', '.join(allowed) or 'nothing'}."
        )
    with seeded(seed, name):
        return component(**keywords, **widths)


def float_dtype(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """Type of a module's weights; ``default`` where it has none."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), default)
