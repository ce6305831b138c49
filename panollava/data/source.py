"""The protocol of a data source, and the records and questions that it gives."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from panollava.crop.boxes import PictureBoxes, Places
from panollava.store.identity import class_digest, is_ours

FREE_TEXT = "text"
"""Question type whose answers are whole sentences, for which an exact match means little."""

Directions = Literal["unknown", "none", "words", "fixed"]
"""How texts name directions: not stated; not at all; by the eight words of ``scenes.scene.SECTORS``, which can be
rotated with the panorama; or in other ways, so that the panorama must not be rotated."""


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
    question_type: str
    """Scores are also reported by type."""
    groups: tuple[tuple[str, str], ...] = ()
    """Columns of ``data.score_by`` with the question's values, by which scores are reported too."""


class DataSource(Protocol):
    """One split of a data set. A class that derives from this one needs the first four methods and a ``name``.

    A class of ours, or of another package (``data=my_package.module:Class``), has typed keywords, which are keys of
    ``data``: ``data.train_scenes`` is ``scenes`` of the training split, ``data.seed`` is ``seed`` of each split. It
    may also take these:

    * ``split``: ``train``, ``val`` or ``test``;
    * ``name``: of the data set and the split, for logs;
    * ``dir``: ``data.dir`` or None;
    * ``reader``: reads a picture file at the resolution that the crop needs: ``Path`` -> ``(H, W, 3)`` uint8 RGB;
    * ``check``: refuses a picture file that could not be read, without decoding it.

    A source with boxes is a ``PlacesSource`` as well. Objects must be picklable, as loader workers get a copy.
    """

    name: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of training records."""

    @abstractmethod
    def record(self, index: int, epoch: int) -> Record:
        """Record `index` in an epoch: a function of (seed, epoch, index) and nothing else."""

    @abstractmethod
    def panorama(self, index: int) -> np.ndarray:
        """Panorama of record `index`: (H, W, 3) uint8 RGB."""

    @abstractmethod
    def picture(self, index: int) -> Path | str:
        """Source of the panorama of record `index`: a file, or a text that determines a drawn one.

        Stored features and recorded answers of the panorama are used again where the file's content, or the text, is
        the same. Where a class of another package defines `panorama` or `question_panorama`, its code must be the same
        as well; options of what it does to the pixels belong into an attribute ``processing`` of the source, a text.
        """

    def directions(self, index: int) -> Directions:
        """How the texts of record `index` name directions."""
        return "unknown"

    def rotated_record(self, index: int, epoch: int, yaw_deg: float) -> Record:
        """Record `index` for its panorama rotated to the right by an angle that its directions allow."""
        return self.record(index, epoch)

    def image_id(self, index: int) -> str:
        """Name of the picture of record `index`, shared by all records about it."""
        return str(self.picture(index))

    def questions(self) -> list[Question]:
        """Each (image, question) once, in a stable order; by default every turn of the records of epoch 0."""
        records = [(self.image_id(index), self.record(index, 0)) for index in range(len(self))]
        return [
            Question(f"{record.sample_id}-{at}", image, record.turns[:at], question, (answer,), FREE_TEXT)
            for image, record in records
            for at, (question, answer) in enumerate(record.turns)
        ]

    def question_panorama(self, question: Question) -> np.ndarray:
        """Panorama that `question` asks about: (H, W, 3) uint8 RGB."""
        return self.panorama(_index(self, question))

    def question_picture(self, question: Question) -> Path | str:
        """Source of that panorama, as in `picture`."""
        return self.picture(_index(self, question))


@runtime_checkable
class PlacesSource(Protocol):
    """A data source with boxes and perhaps masks, which detection needs."""

    class_names: tuple[str, ...]
    """Names of the classes of boxes and masks."""

    def boxes(self, index: int) -> PictureBoxes:
        """The boxes of record `index`; cheap, as no mask is read or drawn."""
        ...

    def places(self, index: int) -> Places:
        """What is where in the panorama of record `index`: its boxes, and perhaps a mask."""
        ...


def processing_of(source: DataSource) -> str:
    """What the panoramas of a source depend on beside their pictures; empty for sources of ours.

    Its attribute ``processing``, and a digest of the code where a class of another package makes panoramas.
    """
    kind, makes = type(source), ("panorama", "question_panorama")
    is_own = any(name in vars(one) for one in kind.__mro__ if not is_ours(one) for name in makes)
    options = getattr(source, "processing", "")
    parts = [options if isinstance(options, str) else "", class_digest(kind, *makes) if is_own else ""]
    return " ".join(filter(None, parts))


def spread_indices(count: int, most: int | None = None) -> list[int]:
    """`most` of `count` indices, spread evenly from the first to the last; all where None or fewer."""
    return np.linspace(0, count - 1, count if most is None else min(count, most)).round().astype(int).tolist()


def _index(source: DataSource, question: Question) -> int:
    """The first record about the picture of a question; an index by pictures is kept in the source."""
    if (first := vars(source).get("_first_records")) is None:
        first = {source.image_id(index): index for index in reversed(range(len(source)))}
        vars(source)["_first_records"] = first
    return first[question.image_id]
