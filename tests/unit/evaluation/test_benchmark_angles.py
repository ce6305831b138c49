"""Directions and boxes of benchmarks in this package's convention."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from panollava.evaluation.benchmarks.angles import angle_between, as_box, unit


@given(st.floats(-720, 720), st.floats(-90, 90), st.floats(0.1, 180), st.floats(0.1, 180))
@example(359.9999, 90.0, 12.0, 9.0)
@example(-1e-15, -90.0, 12.0, 9.0)
def test_a_box_is_the_same_in_ours(yaw: float, pitch: float, horizontal: float, vertical: float) -> None:
    ours = as_box((yaw, pitch, horizontal, vertical))
    assert -180 <= ours[0] < 180
    assert ours[1:].tolist() == [pitch, horizontal, vertical, 0]
    assert angle_between(unit(ours[0], 0), unit(yaw, 0)) < 1e-8


def test_angles_are_exact_when_small_and_when_opposite() -> None:
    assert angle_between(unit(0, 0), unit(1e-7, 0)) == pytest.approx(1e-7, rel=1e-6)
    assert angle_between(unit(0, 90), unit(77, -90)) == pytest.approx(180)
    assert np.allclose(unit(30, 100), unit(210, 80))
