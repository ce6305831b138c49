"""What tests of the built-in world are made for."""

import pytest

from panollava.data.scenes.scene import LEVELS


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> int:
    """A level of the built-in world."""
    return int(request.param)
