"""How long the texts of a data set are in a language model's tokens, what each stage's limit cuts, and odd ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from panollava.data.dataset import TextEncoder, control_texts
from panollava.data.files import FilesSource
from panollava.data.records import Source
from panollava.model.hub import load_tokenizer
from panollava.prompt import ChatPrompt

READING = ("resampler", "finetune")
"""Stages that read text."""


def text_lines(
    splits: Mapping[str, Source], language: Mapping[str, Any], stages: Mapping[str, Any], most: int | None
) -> list[str]:
    """What there is to say of the lengths, a line a split and a line a stage, and of control tokens in the texts.

    Args:
        splits: by name.
        language: the ``model.language`` section.
        stages: the ``stage`` section.
        most: records of each split to look at; None for all.

    Raises:
        FileNotFoundError: there is no such tokenizer.
        ValueError: a stage's limit is none.
    """
    limits = {name: _limit(name, stages[name]["max_text_length"]) for name in READING}
    # One token stands for the panorama, whose tokens the limits do not count.
    prompt = ChatPrompt(load_tokenizer(language["name"]), system=language["system"])
    encoder = TextEncoder(prompt, image_tokens=1)
    lengths = {name: _lengths(source, encoder, most) for name, source in splits.items()}
    lines = [_described(name, found, len(splits[name])) for name, found in lengths.items()]
    learnt = [found for name, found in lengths.items() if name != "test"]  # whose questions no limit cuts
    odd = [control_texts(source, prompt) for source in splits.values() if isinstance(source, FilesSource)]
    lines += [f"Note: {told}." for told in odd if told]
    if not learnt:
        return lines
    every = np.concatenate(learnt)
    for stage, limit in limits.items():
        cut = int((every > limit).sum())
        share = f"{cut:,} of {len(every):,} ({cut / len(every):.1%})" if cut else "none of them"
        lines.append(f"stage.{stage}.max_text_length={limit} cuts {share}")
    return lines


def _described(name: str, lengths: np.ndarray, records: int) -> str:
    middle, high, last = np.percentile(lengths, [50, 95, 100])
    part = "" if len(lengths) == records else f" of {len(lengths):,} spread evenly"
    return (
        f"{name}: {middle:,.0f} in the median, at most {high:,.0f} in 95 % of the records and {last:,.0f} in all{part}"
    )


def _lengths(source: Source, encoder: TextEncoder, most: int | None) -> np.ndarray:
    count = len(source) if most is None else min(most, len(source))
    places: Sequence[int] = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    return np.array([len(encoder.record(source.record(index, 0)).ids) - 1 for index in places])


def _limit(stage: str, limit: Any) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"stage.{stage}.max_text_length={limit!r}: allowed is a whole number from 1 on.")
    return limit
