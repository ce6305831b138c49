"""Views are made once while there is room."""

from __future__ import annotations

import torch

from panollava.data.memory import GIB, ViewMemory


def test_what_fits_is_made_once_and_the_rest_each_time() -> None:
    made: list[int] = []

    def make(index: int) -> torch.Tensor:
        made.append(index)
        return torch.full((9, 3, 8, 8), index, dtype=torch.uint8)

    memory = ViewMemory(2.5 * 9 * 3 * 64 / GIB)  # room for two panoramas
    for _ in range(2):
        for index in range(3):
            assert torch.equal(memory.get(str(index), lambda i=index: make(i)), torch.full((9, 3, 8, 8), index).byte())
    assert made == [0, 1, 2, 2]


def test_without_room_nothing_is_kept() -> None:
    memory = ViewMemory(0)
    first = memory.get("a", lambda: torch.zeros(1, dtype=torch.uint8))
    assert memory.get("a", lambda: torch.ones(1, dtype=torch.uint8)) is not first
    assert memory.used == 0
