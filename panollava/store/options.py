"""What the feature store can be told (``store.*``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt


@dataclass(frozen=True)
class StoreOptions:
    """Settings of the store of a frozen encoder's features.

    Attributes:
        enabled: keep features wherever the encoder is frozen and pictures are not changed at random.
        dir: folder of the stores and of what is known of pictures.
        max_gib: most that all stores may hold.
        verify: read the whole of every picture to recognise it, not only its size and times.
    """

    enabled: bool = True
    dir: str = "cache"
    max_gib: Annotated[float, Gt(0)] = 50.0
    verify: bool = False
