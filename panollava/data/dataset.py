"""The data sets: records and questions with the views of their panoramas, one sample at a time."""

import functools
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from panollava.crop.cameras import camera_tensor
from panollava.crop.crop import Crop, Cut
from panollava.crop.partial import extent_of, rotate_yaw
from panollava.crop.places import PlaceEncoder, PlaceTargets, turned
from panollava.data.augment import Augment, recoloured
from panollava.data.csv import LISTED_PROBLEMS
from panollava.data.files import ListedSource
from panollava.data.source import DataSource, PlacesSource, Question, Record, processing_of, spread_indices
from panollava.prompt import ChatPrompt, Encoded
from panollava.store.features import FeatureStore

_KEPT_BYTES = 2**29
"""Memory for the masks of a data set, in each process that reads it."""

Place = tuple[int, int] | tuple[int, int, int]
"""Epoch and index of a record, and the index of the one whose picture is shown."""


@dataclass(frozen=True)
class Sample:
    """One panorama as views, with the conversation about it."""

    sample_id: str  # for messages and predictions
    views: Tensor | None  # ``(V, 3, h, w)`` uint8; None where `features` replace them
    cameras: Tensor  # ``(V, C)`` float32
    text: Encoded | None  # the encoded conversation, None for stages without text
    features: Tensor | None = None  # ``(V, N, Dv)`` that were in the feature store
    picture: str | None = None  # digest of the panorama in the feature store; None without a store
    shares: str | None = None  # name of the panorama, where the samples of a batch share it: the first one brings it
    places: PlaceTargets | None = None  # what is where, for a stage that learns it


@dataclass(frozen=True)
class TextEncoder:
    """Tokenizes records and questions for one stage; loader workers get a pickled copy."""

    prompt: ChatPrompt  # the language model's chat format
    image_tokens: int  # tokens of one panorama
    max_text_length: int | None = None  # limit for the text of a record, None for none; questions have none
    targets: Literal["text", "assistant"] = "assistant"  # see ``ChatPrompt.encode``

    def record(self, record: Record) -> Encoded:
        """A training conversation."""
        return self.prompt.encode(
            record.turns, image_tokens=self.image_tokens, max_text_length=self.max_text_length, targets=self.targets
        )

    def question(self, question: Question) -> Encoded:
        """A generation prompt."""
        return self.prompt.encode((*question.history, (question.question, None)), image_tokens=self.image_tokens)


@dataclass(eq=False, repr=False)
class PanoDataset(Dataset[Sample]):
    """Training records, indexed by (epoch, index), as loader workers persist over epochs.

    A third number in the index is that of the record whose picture is shown in place of the own one; without `augment`.
    """

    source: DataSource  # one split of a data set
    crop: Crop  # cuts the views
    encode: Callable[[Record], Encoded] | None = None  # see ``TextEncoder.record``; None for stages without text
    store: FeatureStore | None = None  # features of panoramas that were encoded before; None cuts views each time
    augment: Augment | None = None  # draws changes of training pictures, whose features are not stored; None for none
    places: PlaceEncoder | None = None  # targets of a stage that learns what is where, which the source then has
    _kept: dict[int, PlaceTargets] = field(default_factory=dict, init=False)
    _kept_bytes: int = field(default=0, init=False)
    _processing: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._processing = processing_of(self.source)  # here, as loader workers may start when the code has changed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Place) -> Sample:
        epoch, index, shown = key if len(key) == 3 else (*key, key[1])
        source, crop = self.source, self.crop
        views: Tensor | None
        features, digest, targets = None, None, None
        if self.augment is not None:
            change = self.augment.change(epoch, index, source.directions(index))
            record = source.rotated_record(index, epoch, 360.0 * change.turn)
            panorama = source.panorama(index)
            # A whole number of columns: at most half a column from the angle by which the texts are rotated.
            width = extent_of(panorama)[1]
            columns = round(change.turn * width)
            # A crop that chooses its views does so for the rotated panorama.
            cut, cameras = crop.cut(rotate_yaw(panorama, columns))
            if self.places is not None and isinstance(source, PlacesSource):
                targets = self.places(turned(source.places(index), columns, width), self._own(cameras))
            views = recoloured(cut, change)
        else:
            record = source.record(index, epoch)
            if self.store is None:
                views, cameras = crop.cut(source.panorama(shown))
            else:
                views, cameras, features, digest = look_up(
                    self.store,
                    source.picture(shown),
                    lambda: crop.cut(source.panorama(shown)),
                    crop.camera_rows,
                    self._processing,
                )
            targets = self._targets(shown, cameras)
        text = None if self.encode is None else self.encode(record)
        return Sample(record.sample_id, views, cameras, text, features, digest, places=targets)

    def _targets(self, index: int, cameras: Tensor) -> PlaceTargets | None:
        """What is where in the panorama of a record; kept, as a mask takes long to read or to draw."""
        if self.places is None or not isinstance(self.source, PlacesSource):
            return None
        if index in self._kept:
            return self._kept[index]
        targets = self.places(self.source.places(index), self._own(cameras))
        self._kept_bytes += targets.cells.nbytes
        if self._kept_bytes <= _KEPT_BYTES:
            self._kept[index] = targets
        return targets

    def _own(self, cameras: Tensor) -> Tensor | None:
        """The cameras of a panorama; None where all panoramas have the same."""
        return cameras if self.crop.is_adaptive else None

    def shared(self, keys: Sequence[Place]) -> list[Sample]:
        """The samples of a batch, each panorama brought by the first of those about it; without `augment`."""
        names = [self.source.image_id(key[-1]) for key in keys]
        return _sharing(names, lambda at: self[keys[at]], lambda at: self._text(keys[at]))

    def _text(self, key: Place) -> Sample:
        assert self.encode is not None
        record = self.source.record(key[1], key[0])
        return Sample(record.sample_id, None, self.crop.camera_rows, self.encode(record))  # the first has its cameras


class QuestionDataset(Dataset[Sample]):
    """Evaluation questions; those about one panorama are neighbours, so that they share its views.

    Args:
        source: one split of a data set.
        crop: cuts the views.
        encode: tokenizes a question, such as ``TextEncoder.question``.
        skip: sample ids of questions that are left out.
        store: features of panoramas that were encoded before; None cuts views each time.
        blank: value of every pixel of every view, whose cameras stay the panorama's; None shows the panorama.

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
        self._processing = processing_of(source)
        by_image: dict[str, list[Question]] = {}
        for question in source.questions():
            if question.sample_id not in skip:
                by_image.setdefault(question.image_id, []).append(question)
        self.questions = [question for group in by_image.values() for question in group]
        self._last: tuple[str, Cut] | None = None  # the panorama of the question before

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Sample:
        question = self.questions[index]
        views: Tensor | None
        features, digest = None, None
        if self.store is None:
            views, cameras = self._remembered(question)
        elif self.blank is None:
            views, cameras, features, digest = self._looked_up(question, self.store)
        else:
            picture = f"every pixel {self.blank}"
            same = self.crop.camera_rows
            views, _, features, digest = look_up(self.store, picture, lambda: self._grey(same), same)
            cameras = self._looked_up(question, self.store)[1] if self.crop.is_adaptive else same
        return Sample(question.sample_id, views, cameras, self.encode(question), features, digest)

    def _looked_up(self, question: Question, store: FeatureStore) -> tuple[Tensor | None, Tensor, Tensor | None, str]:
        cut, picture = functools.partial(self._cut, question), self.source.question_picture(question)
        return look_up(store, picture, cut, self.crop.camera_rows, self._processing)

    def shared(self, indices: Sequence[int]) -> list[Sample]:
        """The samples of a batch, each panorama brought by the first of those about it."""
        asked = [self.questions[index] for index in indices]
        is_same = self.blank is not None and not self.crop.is_adaptive
        names = ["blank" if is_same else question.image_id for question in asked]
        return _sharing(names, lambda at: self[indices[at]], lambda at: self._text(asked[at]))

    def _text(self, question: Question) -> Sample:
        return Sample(question.sample_id, None, self.crop.camera_rows, self.encode(question))

    def _remembered(self, question: Question) -> Cut:
        if self._last is None or self._last[0] != question.image_id:
            self._last = question.image_id, self._cut(question) if self.blank is None else self._blanked(question)
        return self._last[1]

    def _cut(self, question: Question) -> Cut:
        return self.crop.cut(self.source.question_panorama(question))

    def _blanked(self, question: Question) -> Cut:
        if not self.crop.is_adaptive:
            return self._grey(self.crop.camera_rows)
        return self._grey(camera_tensor(self.crop.cameras_of(self.source.question_panorama(question))))

    def _grey(self, cameras: Tensor) -> Cut:
        assert self.blank is not None
        return Cut(torch.full((len(cameras), 3, *self.crop.view_size), self.blank, dtype=torch.uint8), cameras)


def _sharing(names: Sequence[str], whole: Callable[[int], Sample], text: Callable[[int], Sample]) -> list[Sample]:
    """Samples of panoramas with these names: whole where a name occurs first, without the panorama after that."""
    first = {name: at for at, name in reversed([*enumerate(names)])}
    return [replace((whole if first[name] == at else text)(at), shares=name) for at, name in enumerate(names)]


def look_up(
    store: FeatureStore, picture: Path | str, cut: Callable[[], Cut], cameras: Tensor, processing: str = ""
) -> tuple[Tensor | None, Tensor, Tensor | None, str]:
    """Reads the features of a picture from a store, or cuts its views.

    Args:
        store: of features.
        picture: see ``DataSource.picture``.
        cut: returns the views of the picture as it is now, with their cameras.
        cameras: ``(V, C)`` of features without own ones, which are those of every picture.
        processing: see ``processing_of``.

    Returns:
        The views or None, the cameras, the features or None, and the digest by which the store knows the picture.
    """
    while True:
        digest = store.identify(picture, processing)
        if (found := store.load(digest)) is not None:
            return None, cameras if found.cameras is None else found.cameras, found.features, digest
        views, own = cut()
        if store.identify(picture, processing) == digest:  # else the file was replaced while it was read
            return views, own, None, digest


@dataclass(frozen=True)
class CutCount:
    """How much text a limit removes."""

    samples: int  # records that were counted
    cut_samples: int  # those that lose text
    cut_tokens: int  # text tokens lost in all
    silent_samples: int  # those that have no target left


def count_cut(source: DataSource, encode: Callable[[Record], Encoded], *, at_most: int = 2000) -> CutCount:
    """What the text limit removes from `at_most` records, spread evenly, without opening a picture."""
    texts = [encode(source.record(index, 0)) for index in spread_indices(len(source), at_most)]
    return CutCount(
        samples=len(texts),
        cut_samples=sum(text.cut > 0 for text in texts),
        cut_tokens=sum(text.cut for text in texts),
        silent_samples=sum(not any(text.is_target) for text in texts),
    )


def control_texts(source: ListedSource, prompt: ChatPrompt) -> str:
    """Which records have tokens of the chat format in their texts, in words; empty where none has.

    The model would read such a token as the end or the beginning of a turn.
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
