"""What a data set is made of: training records, evaluation questions, and the protocol of a source of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

FREE_TEXT = "text"
"""Kind of questions whose answers are whole sentences: a match to the letter says little of them."""

Directions = Literal["unknown", "none", "words", "fixed"]
"""How texts name directions: nobody says; not at all; by the eight words of ``scenes.scene.SECTORS``, which can be
turned along; or in other ways, so that the panorama must stay as it is."""


@dataclass(frozen=True)
class Record:
    """One sample for training and for the validation loss."""

    sample_id: str
    turns: tuple[tuple[str, str], ...]
    """(question, answer) pairs in the order of the conversation."""


@dataclass(frozen=True)
class Question:
    """One question for evaluation, with every reference answer to it."""

    sample_id: str
    image_id: str
    history: tuple[tuple[str, str], ...]
    """(question, answer) pairs that come before the question."""
    question: str
    references: tuple[str, ...]
    kind: str
    """Question type, by which scores are also reported."""


class DataSource(Protocol):
    """One split of a data set.

    A class of ours, or of another package (``data=my_package.module:Class``), is built with its own typed keywords,
    which are keys of ``data``: ``data.train_scenes`` is ``scenes`` of the training split, ``data.seed`` is ``seed`` of
    each. Of these it is given what it takes:

    * ``split``: ``train``, ``val`` or ``test``;
    * ``name``: the data set's with the split's, for logs;
    * ``dir``: ``data.dir``, None where there is none;
    * ``reader``: reads a picture file, as the crop needs it: ``Path`` -> ``(H, W, 3)`` uint8 RGB;
    * ``check``: refuses a picture file that could not be read, without decoding it.

    Objects are sent to loader workers, so they can be pickled.
    """

    name: str

    def __len__(self) -> int:
        """Number of training records."""
        ...

    def record(self, index: int, epoch: int) -> Record:
        """Record `index` as epoch `epoch` sees it: a function of (seed, epoch, index) and nothing else."""
        ...

    def directions(self, index: int) -> Directions:
        """How the texts of record `index` name directions."""
        ...

    def turned_record(self, index: int, epoch: int, turn_deg: float) -> Record:
        """Record `index` as it is when its panorama is turned to the right by an angle that its directions allow."""
        ...

    def image_id(self, index: int) -> str:
        """Names the picture of training record `index`; records about one picture share it."""
        ...

    def panorama(self, index: int) -> np.ndarray:
        """Panorama of record `index`: (H, W, 3) uint8 RGB."""
        ...

    def picture(self, index: int) -> Path | str:
        """What the panorama of record `index` is made from, and nothing else: a file, or a text if it is drawn."""
        ...

    def questions(self) -> list[Question]:
        """Each (image, question) once, in a stable order."""
        ...

    def question_panorama(self, question: Question) -> np.ndarray:
        """Panorama that `question` asks about: (H, W, 3) uint8 RGB."""
        ...

    def question_picture(self, question: Question) -> Path | str:
        """What that panorama is made from, as `picture` says it."""
        ...
