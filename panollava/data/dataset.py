"""Records and questions with their views: what loader workers make, one sample at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from panollava.crop.crop import Crop
from panollava.data.csv import LISTED_PROBLEMS
from panollava.data.files import FilesSource
from panollava.data.source import DataSource, Question, Record
from panollava.prompt import ChatPrompt, Encoded
from panollava.store.features import FeatureStore

_REMEMBERED_PANORAMAS = 4


@dataclass(frozen=True)
class Sample:
    """One panorama as views, with the conversation about it.

    Attributes:
        sample_id: for messages and predictions.
        views: ``(V, 3, h, w)`` uint8; None where features take their place.
        cameras: ``(V, C)`` float32.
        text: the encoded conversation, None for stages without text.
        features: ``(V, N, Dv)`` that were in the feature store.
        picture: digest by which the feature store knows the panorama; None where none is used.
    """

    sample_id: str
    views: Tensor | None
    cameras: Tensor
    text: Encoded | None
    features: Tensor | None = None
    picture: str | None = None


@dataclass(frozen=True)
class TextEncoder:
    """Records and questions in the tokens of one stage; it travels to spawned workers.

    Attributes:
        prompt: the language model's chat format.
        image_tokens: tokens of one panorama.
        max_text_length: limit for the text of a record, None for none; questions have none.
        targets: see ``ChatPrompt.encode``.
    """

    prompt: ChatPrompt
    image_tokens: int
    max_text_length: int | None = None
    targets: Literal["text", "assistant"] = "assistant"

    def record(self, record: Record) -> Encoded:
        """A training conversation."""
        return self.prompt.encode(
            record.turns,
            image_tokens=self.image_tokens,
            max_text_length=self.max_text_length,
            targets=self.targets,
        )

    def question(self, question: Question) -> Encoded:
        """A generation prompt."""
        return self.prompt.encode((*question.history, (question.question, None)), image_tokens=self.image_tokens)


class PanoDataset(Dataset[Sample]):
    """Training records, indexed by (epoch, index), so that workers kept over epochs know the epoch.

    Args:
        source: one split of a data set.
        crop: cuts the views.
        encode: makes tokens of a record, such as ``TextEncoder.record``; None for stages without text.
        store: has the features of panoramas that were encoded before; None cuts views each time.
    """

    def __init__(
        self,
        source: DataSource,
        crop: Crop,
        encode: Callable[[Record], Encoded] | None = None,
        store: FeatureStore | None = None,
    ) -> None:
        self.source = source
        self.crop = crop
        self.encode = encode
        self.store = store

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        record = self.source.record(index, epoch)
        text = None if self.encode is None else self.encode(record)
        if self.store is None:
            views = self.crop.views(self.source.panorama(index))
            return Sample(record.sample_id, views, self.crop.camera_rows, text)
        seen = look_up(self.store, self.source.picture(index), lambda: self.crop.views(self.source.panorama(index)))
        return Sample(record.sample_id, seen.views, self.crop.camera_rows, text, seen.features, seen.picture)


class QuestionDataset(Dataset[Sample]):
    """Evaluation questions, those about one panorama next to each other, so that they share its views.

    Args:
        source: one split of a data set.
        crop: cuts the views.
        encode: makes a generation prompt of a question, such as ``TextEncoder.question``.
        skip: sample ids of questions that are not asked.
        store: has the features of panoramas that were encoded before; None cuts views each time.
        blank: every pixel of every view has this value, whatever the panorama shows; None shows it.

    Attributes:
        questions: in the order of the samples.
    """

    def __init__(
        self,
        source: DataSource,
        crop: Crop,
        encode: Callable[[Question], Encoded],
        skip: Container[str] = (),
        store: FeatureStore | None = None,
        blank: int | None = None,
    ) -> None:
        self.source = source
        self.crop = crop
        self.encode = encode
        self.store = store
        self.blank = blank
        by_image: dict[str, list[Question]] = {}
        for question in source.questions():
            if question.sample_id not in skip:
                by_image.setdefault(question.image_id, []).append(question)
        self.questions = [question for group in by_image.values() for question in group]
        self._views: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Sample:
        question = self.questions[index]
        cameras, text = self.crop.camera_rows, self.encode(question)
        if self.store is None:
            return Sample(question.sample_id, self._remembered(question), cameras, text)
        picture = f"every pixel {self.blank}" if self.blank is not None else self.source.question_picture(question)
        seen = look_up(self.store, picture, lambda: self._cut(question))
        return Sample(question.sample_id, seen.views, cameras, text, seen.features, seen.picture)

    def _remembered(self, question: Question) -> Tensor:
        views = self._views.pop(question.image_id, None)
        if views is None:
            views = self._cut(question)
        self._views[question.image_id] = views
        if len(self._views) > _REMEMBERED_PANORAMAS:
            self._views.popitem(last=False)
        return views

    def _cut(self, question: Question) -> Tensor:
        if self.blank is not None:
            return torch.full((len(self.crop.camera_rows), 3, *self.crop.view_size), self.blank, dtype=torch.uint8)
        return self.crop.views(self.source.question_panorama(question))


@dataclass(frozen=True)
class Seen:
    """What is known of a panorama: its features, or its views to make them of."""

    picture: str
    features: Tensor | None
    views: Tensor | None


def look_up(store: FeatureStore, picture: Path | str, cut: Callable[[], Tensor]) -> Seen:
    """Features of a picture where the store has them, else its views.

    Args:
        store: of features.
        picture: see ``DataSource.picture``.
        cut: gives the views ``(V, 3, h, w)`` of the picture as it is now.
    """
    while True:
        digest = store.identify(picture)
        features = store.get(digest)
        if features is not None:
            return Seen(digest, features, None)
        views = cut()
        if store.identify(picture) == digest:  # else it was replaced while it was read
            return Seen(digest, None, views)


@dataclass(frozen=True)
class CutCount:
    """How much text a limit costs.

    Attributes:
        samples: how many records were looked at.
        cut_samples: how many of them lose text.
        cut_tokens: text tokens lost in all.
        silent_samples: how many have nothing left to learn.
    """

    samples: int
    cut_samples: int
    cut_tokens: int
    silent_samples: int


def count_cut(
    source: DataSource, encode: Callable[[Record], Encoded], *, epoch: int = 0, at_most: int = 2000
) -> CutCount:
    """What the text limit removes from the first `at_most` records, without opening a picture."""
    texts = [encode(source.record(index, epoch)) for index in range(min(len(source), at_most))]
    return CutCount(
        samples=len(texts),
        cut_samples=sum(text.cut > 0 for text in texts),
        cut_tokens=sum(text.cut for text in texts),
        silent_samples=sum(not any(text.is_target) for text in texts),
    )


def control_texts(source: FilesSource, prompt: ChatPrompt) -> str:
    """Which records have tokens of the chat format in their texts, in words; empty where none has.

    Such a text ends a turn, or begins one, where it should only be read.
    """
    texts = ["\n".join(map("\n".join, entry.turns)) for entry in source.entries]
    tokens = prompt.control_tokens("\n".join(texts))
    if not tokens:
        return ""
    found = {at: [token for token in tokens if token in text] for at, text in enumerate(texts)}
    bad = [f"{source.entries[at].place} ({' '.join(its)})" for at, its in found.items() if its]
    more = f" and {len(bad) - LISTED_PROBLEMS} more" if len(bad) > LISTED_PROBLEMS else ""
    return (
        f"{source.path}: {len(bad)} of {len(texts)} texts have control tokens of the language model, which it reads as "
        f"the end or the beginning of a turn: {', '.join(bad[:LISTED_PROBLEMS])}{more}. Delete them, or write them in "
        "another way, such as with a blank inside"
    )
