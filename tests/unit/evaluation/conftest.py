"""Predictions made by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from panollava.evaluation.predictions import Prediction


@pytest.fixture
def answer() -> Callable[..., Prediction]:
    """Makes a prediction; each gets a sample id of its own."""
    made = []

    def make(prediction: str, *references: str, kind: str = "color", sample_id: str = "", **more) -> Prediction:
        made.append(None)
        defaults = {"image_id": "scene", "question": "What color is the ball?", "latency_s": 0.5}
        return Prediction(
            sample_id=sample_id or f"s{len(made)}",
            kind=kind,
            prediction=prediction,
            references=references,
            **{**defaults, **more},
        )

    return make
