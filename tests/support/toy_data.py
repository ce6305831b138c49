"""A source of plain panoramas, and features of two views, small enough to look at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from panollava.crop.crop import Cut
from panollava.data.source import Directions, Question, Record
from panollava.prompt import Encoded

SHAPE = (2, 3, 4)


class PlainSource:
    """Panorama `index` is grey of that value; panorama `broken` cannot be read."""

    name = "plain"

    def __init__(self, length: int, broken: int | None = None) -> None:
        self.length = length
        self.broken = broken
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def record(self, index: int, epoch: int) -> Record:
        return Record(f"plain-{index}", ((f"epoch {epoch}", "grey " * (index % 3 + 1)),))

    def directions(self, index: int) -> Directions:
        return "none"

    def rotated_record(self, index: int, epoch: int, yaw_deg: float) -> Record:
        return self.record(index, epoch)

    def image_id(self, index: int) -> str:
        return str(index)

    def panorama(self, index: int) -> np.ndarray:
        self.read.append(index)
        if index == self.broken:
            raise ValueError(f"plain-{index}.jpg: the file is empty (0 bytes).")
        return np.full((8, 16, 3), index % 256, np.uint8)

    def picture(self, index: int) -> str:
        return f"plain {index}"

    def questions(self) -> list[Question]:
        return [
            Question(f"plain-{index}-{part}", str(index), (), "what", ("grey",), "kind")
            for part in range(2)
            for index in range(self.length)
        ]

    def question_panorama(self, question: Question) -> np.ndarray:
        return self.panorama(int(question.image_id))

    def question_picture(self, question: Question) -> str:
        return self.picture(int(question.image_id))


class PlainCrop:
    """The whole panorama as `views` equal views."""

    is_adaptive = False

    def __init__(self, views: int = 1) -> None:
        self.camera_rows = torch.arange(11.0).expand(views, 11)

    def cut(self, panorama: np.ndarray) -> Cut:
        return Cut(self.views(panorama), self.camera_rows)

    def views(self, panorama: np.ndarray) -> Tensor:
        return torch.from_numpy(panorama).permute(2, 0, 1).expand(len(self.camera_rows), 3, 8, 16).contiguous()


def encode(record: Record) -> Encoded:
    """One token a word; answers are learnt."""
    words = [word for turn in record.turns for part in turn for word in part.split()]
    return Encoded([len(word) for word in words], [word == "grey" for word in words], cut=0)


def encode_question(question: Question) -> Encoded:
    """As many tokens as the number of the panorama, modulo 3, and one more."""
    count = int(question.image_id) % 3 + 1
    return Encoded([7] * count, [False] * count, cut=0)


def features(value: int) -> Tensor:
    """Features whose numbers are all `value`."""
    return torch.full(SHAPE, float(value), dtype=torch.bfloat16)
