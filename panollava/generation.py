"""Decoding options of the ``generation`` config group, the same in every command in which a model answers."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args, get_type_hints

from annotated_types import Interval

KEY = "generation"

COLDEST = 1e-3
"""Lowest temperature above 0."""

_SAMPLING = ("top_k", "top_p", "seed")
_LIMITS = {"gt": (">", operator.gt), "ge": (">=", operator.ge), "lt": ("<", operator.lt), "le": ("<=", operator.le)}


@dataclass(frozen=True)
class GenerationOptions:
    """Decoding options (``generation.*``); greedy by default.

    ``repetition_penalty`` and ``no_repeat_ngram_size`` count the answer so far, neither the question nor the image.
    Sampled answers depend on the seed, the picture and the question, not on the batch. Source of the repetition
    penalty: Keskar et al. 2019, arXiv:1909.05858, section 4.1.

    Raises:
        ValueError: a value is out of range, or has no effect beside the others; the message names the key.
    """

    max_new_tokens: Annotated[int, Interval(ge=1)] = 64
    num_beams: Annotated[int, Interval(ge=1)] = 1  # width of the beam search; 1 is no beam search
    length_penalty: float = 1.0  # beam search divides scores by this power of the length; above 0 favours long answers
    repetition_penalty: Annotated[float, Interval(gt=0)] = 1.0  # divides the logits of tokens of the answer
    no_repeat_ngram_size: Annotated[int, Interval(ge=0)] = 0  # n-grams of this size occur once in an answer; 0: any
    temperature: Annotated[float, Interval(ge=0)] = 0.0  # 0 takes the most likely token; above, tokens are sampled
    top_k: Annotated[int, Interval(ge=0)] = 0  # sample among the k most likely tokens; 0 among all
    top_p: Annotated[float, Interval(gt=0, le=1)] = (
        1.0  # sample among the likeliest that hold this share of probability
    )
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(GenerationOptions, include_extras=True).items():
            kind, interval = get_args(hint) or (hint, Interval())
            _check_range(f"{KEY}.{name}", getattr(self, name), kind, interval)
        if self.temperature > 0 and self.num_beams > 1:
            raise ValueError(
                f"{KEY}.temperature={self.temperature} and {KEY}.num_beams={self.num_beams}: answers are either "
                f"sampled or found by beam search. Set {KEY}.temperature=0.0 or {KEY}.num_beams=1."
            )
        if 0 < self.temperature < COLDEST:
            raise ValueError(
                f"{KEY}.temperature={self.temperature}: logits divided by less than {COLDEST} may overflow. Set "
                f"{KEY}.temperature=0.0 for the most likely token."
            )
        unused = [name for name in _SAMPLING if getattr(self, name) != getattr(GenerationOptions, name)]
        if unused and self.temperature == 0:
            raise ValueError(
                f"{KEY}.{unused[0]}={getattr(self, unused[0])} is for sampling, and {KEY}.temperature=0.0 samples "
                f"nothing. Set {KEY}.temperature above 0, such as 0.7, or leave {KEY}.{unused[0]} out."
            )
        if self.length_penalty != GenerationOptions.length_penalty and self.num_beams == 1:
            raise ValueError(
                f"{KEY}.length_penalty={self.length_penalty} is for beam search, and {KEY}.num_beams=1 searches none. "
                f"Set {KEY}.num_beams above 1, or leave {KEY}.length_penalty out."
            )

    def changed(self, section: Mapping[str, Any]) -> GenerationOptions:
        """These options with those keys of a section that are not None."""
        return replace(self, **{key: value for key, value in section.items() if value is not None})

    @property
    def without_sampling(self) -> GenerationOptions:
        """These options without the sampling."""
        return replace(self, **{name: getattr(GenerationOptions, name) for name in (*_SAMPLING, "temperature")})

    @property
    def summary(self) -> str:
        """The options in a few words: the decoding method, the longest answer, and options not at their default."""
        sampled = f"sampled at temperature {self.temperature:g}"
        method = sampled if self.temperature else f"{self.num_beams} beams" if self.num_beams > 1 else "greedy"
        shown = ("max_new_tokens", "num_beams", "temperature")
        rest = {name: value for name, value in vars(self).items() if name not in shown}
        others = [f"{name} {value:g}" for name, value in rest.items() if value != getattr(GenerationOptions, name)]
        return ", ".join([method, f"at most {self.max_new_tokens} new tokens", *others])


def recorded_generation(settings: Mapping[str, Any]) -> GenerationOptions:
    """The options of a run's metadata; in older runs without them, greedy with the recorded answer length."""
    section = settings.get(KEY)
    if section is None:
        length = (settings.get("evaluation") or {}).get("max_new_tokens")
        section = {} if length is None else {"max_new_tokens": length}
    try:
        return GenerationOptions(**section)
    except TypeError as error:
        raise ValueError(f"The metadata's {KEY} section is not of this panollava ({error}).") from error


def _check_range(key: str, value: Any, kind: type, interval: Interval) -> None:
    limits = [
        (f"{sign} {limit:g}", holds, limit)
        for name, (sign, holds) in _LIMITS.items()
        if (limit := getattr(interval, name)) is not None
    ]
    kinds = (int,) if kind is int else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not all(holds(value, limit) for _, holds, limit in limits):
        number = "whole number" if kind is int else "number"
        raise ValueError(
            f"{key}={value!r}: allowed is a {number} {' and '.join(text for text, _, _ in limits)}".strip() + "."
        )
