"""Batches, in an order that depends on seed, epoch and step alone, not on workers, ranks or accumulation."""

import ctypes
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.util import Finalize
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from panollava.batch import IGNORE_INDEX, PAD, Batch, pack
from panollava.crop.places import collate_places
from panollava.data.dataset import PanoDataset, QuestionDataset, Sample
from panollava.data.source import DataSource, Question
from panollava.prompt import Encoded
from panollava.store.feature_maker import PartBatch


@dataclass(frozen=True)
class Collate:
    """Makes a `Batch` of samples, or a `PartBatch` with a feature store; all samples have text or none has.

    Samples that share panoramas become a batch with one row of features a panorama.
    """

    pad_id: int = 0  # token that pads short texts
    # `right` for training; `left` for generation, which needs no labels.
    padding_side: Literal["right", "left"] = "right"
    image_id: int = -1  # the image placeholder; needed where training samples share panoramas

    def __call__(self, samples: Sequence[Sample]) -> Batch | PartBatch:
        batch = self._batch(samples)
        views = [sample.views for sample in samples if sample.views is not None]
        pictures = [sample.picture for sample in samples if sample.picture is not None]
        if not pictures:
            batch.pixel_values = pad_sequence(views, batch_first=True)
            return batch
        features = [sample.features for sample in samples if sample.features is not None]
        return PartBatch(
            batch=batch,
            pictures=pictures,
            known=[sample.features is not None for sample in samples if sample.picture is not None],
            features=torch.stack(features) if features else None,
            views=torch.stack(views) if views else None,
        )

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        names = [at if sample.shares is None else sample.shares for at, sample in enumerate(samples)]
        place = {name: at for at, name in enumerate(dict.fromkeys(names))}
        cameras = [samples[names.index(name)].cameras for name in place]
        counts = torch.tensor([len(rows) for rows in cameras])
        batch = Batch(
            sample_ids=[sample.sample_id for sample in samples],
            pixel_values=None,
            cameras=pad_sequence(cameras, batch_first=True),
            view_mask=torch.arange(int(counts.max()))[None] < counts[:, None],
        )
        if samples[0].places is not None:
            targets = collate_places([sample.places for sample in samples if sample.places is not None])
            batch = replace(batch, **targets)
        if samples[0].text is None:
            return batch
        shown = [place[name] for name in names]
        texts = [(sample.text.ids, _labels(sample.text)) for sample in samples if sample.text is not None]
        is_shared, trains = samples[0].shares is not None, self.padding_side == "right"
        if is_shared and trains:
            about = [[text for text, one in zip(texts, shown, strict=True) if one == at] for at in range(len(place))]
            rows = [(at, row) for at, its in enumerate(about) for row in pack(its, self.image_id)]
            shown, texts = [at for at, _ in rows], [(row.ids, row.labels) for _, row in rows]
            batch.position_ids = self._padded([row.positions for _, row in rows], 0)
            batch.segments = self._padded([row.segments for _, row in rows], PAD)
        if is_shared:
            batch.picture_index = torch.tensor(shown)
        batch.input_ids = self._padded([ids for ids, _ in texts], self.pad_id)
        batch.attention_mask = self._padded([[1] * len(ids) for ids, _ in texts], 0)
        if trains:
            batch.labels = self._padded([labels for _, labels in texts], IGNORE_INDEX)
        return batch

    def _padded(self, rows: Sequence[list[int]], value: int) -> Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=self.padding_side)


def _labels(text: Encoded) -> list[int]:
    return [token if learnt else IGNORE_INDEX for token, learnt in zip(text.ids, text.is_target, strict=True)]


_Item = TypeVar("_Item")


@dataclass(frozen=True)
class EpochSampler:
    """The samples of each optimiser step of an epoch, and those of this rank.

    A permutation seeded by (seed, epoch) is cut into windows of ``batch_size * accumulate * world_size`` samples, one
    for each optimiser step: batch 8, batch 4 accumulated twice, and two ranks with batch 4 see the same samples in
    every step. Ranks take a window's samples in turn. The last window may be smaller; it is cut to a multiple of
    `world_size`, so that fewer than `world_size` samples, different ones each epoch, are left out.

    Where samples share panoramas, the order is one of panoramas, with the samples of each behind each other, and a rank
    takes neighbours of a window.
    """

    length: int  # samples of the data set
    batch_size: int  # samples of a micro-batch on one rank
    accumulate: int = 1  # micro-batches of an optimiser step
    seed: int = 0  # of the stage
    rank: int = 0  # of this process
    world_size: int = 1  # number of processes
    pictures: Sequence[str] | None = None  # name of each sample's panorama, where samples share them

    def __post_init__(self) -> None:
        _check_share("training", self.length, self.world_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        usable = self.length - self.length % self.world_size
        return -(-usable // self._window)

    def windows(self, epoch: int, start: int = 0) -> list[list[list[int]]]:
        """This rank's indices from optimiser step `start` on: windows of micro-batches of indices."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.length).tolist()
        if self.pictures is not None:
            order = _together(order, [self.pictures[index] for index in order])
        order = order[: self.length - self.length % self.world_size]
        windows = _chunks(order[start * self._window :], self._window)
        return [_chunks(self._share(window), self.batch_size) for window in windows]

    def _share(self, window: list[int]) -> list[int]:
        if self.pictures is None:
            return window[self.rank :: self.world_size]
        size = len(window) // self.world_size
        return window[self.rank * size : (self.rank + 1) * size]

    @property
    def _window(self) -> int:
        return self.batch_size * self.accumulate * self.world_size


class StageLoader:
    """The training windows and validation batches of one stage.

    Args:
        train: training records.
        validation: records for the validation loss in a fixed order, not repeated to fill a batch; ranks take them in
            turn, so that sums and counts over the ranks are those of the whole split.
        collate: makes batches.
        batch_size, accumulate, seed, rank, world_size: see `EpochSampler`.
        num_workers: processes that prepare training batches, and as many for validation; 0 uses this process.
        pin_memory: page-locked batches, for a GPU.
        validation_batches: limit for a trial; None takes all.
        complete: makes the features that a batch lacks, in this process; needed if a data set has a store.
        share: samples about one panorama are neighbours, and share what is computed of it.
    """

    def __init__(
        self,
        train: PanoDataset,
        validation: PanoDataset,
        collate: Collate,
        *,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        validation_batches: int | None = None,
        complete: Callable[[PartBatch], Batch] | None = None,
        share: bool = False,
    ) -> None:
        pictures = _pictures(train) if share else None
        self.sampler = EpochSampler(len(train), batch_size, accumulate, seed, rank, world_size, pictures)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        _check_share("validation", len(validation), world_size)
        order = list(range(len(validation)))
        if share:
            order = _together(order, _pictures(validation))
        places = [(0, index) for index in order[rank::world_size]]
        self._train = _Batches(train, collate, num_workers, pin_memory, complete, share)
        self._validation = _Batches(validation, collate, num_workers, pin_memory, complete, share)
        self._validation_plan = _chunks(places, batch_size)[:validation_batches]
        self._validation_source = validation.source

    def windows(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of each optimiser step of an epoch, from step `start` on."""
        plan = self.sampler.windows(epoch, start)
        batches = self._train.run([[(epoch, index) for index in batch] for window in plan for batch in window])
        for window in plan:
            yield list(islice(batches, len(window)))

    def validation(self) -> Iterator[Batch]:
        """The batches of the validation split, with records as in epoch 0."""
        return self._validation.run(self._validation_plan)

    def swapped_validation(self) -> Iterator[Batch] | None:
        """The same batches, each record with the picture of another one; None where all pictures are the same."""
        others = other_pictures(self._validation_source)
        if others is None:
            return None
        plan = [[(epoch, index, others[index]) for epoch, index in batch] for batch in self._validation_plan]
        return self._validation.run(plan)


def other_pictures(source: DataSource) -> list[int] | None:
    """For each record of a split one with another picture; None where all pictures are the same.

    It is the record half a split further, or the first one after that with another picture: neighbours in a file often
    show the same place.
    """
    pictures = [source.picture(index) for index in range(len(source))]
    if len(set(pictures)) < 2:
        return None
    count = len(pictures)
    change = [0] * count  # the first record after each one that has another picture; twice around, for the last ones
    for place in reversed(range(2 * count)):
        here, after = place % count, (place + 1) % count
        change[here] = after if pictures[after] != pictures[here] else change[after]
    opposite = [(index + count // 2) % count for index in range(count)]
    return [other if pictures[other] != pictures[index] else change[other] for index, other in enumerate(opposite)]


def eval_loader(
    dataset: QuestionDataset,
    collate: Collate,
    *,
    batch_size: int,
    num_workers: int = 0,
    complete: Callable[[PartBatch], Batch] | None = None,
) -> Iterator[tuple[list[Question], Batch]]:
    """Questions with their batches, in the order of the data set.

    Those about one panorama are neighbours, and share what is computed of it.

    Args:
        dataset: the questions.
        collate: must pad on the left, for generation.
        batch_size, num_workers, complete: see `StageLoader`.
    """
    plan = _chunks(list(range(len(dataset))), batch_size)
    batches = _Batches(dataset, collate, num_workers, False, complete, share=True).run(plan)
    for places, batch in zip(plan, batches, strict=True):
        yield [dataset.questions[place] for place in places], batch


def picture_batches(
    dataset: PanoDataset,
    places: Sequence[int],
    batch_size: int,
    num_workers: int,
    complete: Callable[[PartBatch], Batch],
) -> Iterator[Batch]:
    """Batches, with their features and without text, of the panoramas at some indices of a data set with a store."""
    plan = _chunks([(0, place) for place in places], batch_size)
    return _Batches(dataset, Collate(), num_workers, False, complete).run(plan)


class _Batches:
    """A DataLoader that takes a plan of batches for each run, keeps its workers, and raises their errors unchanged."""

    def __init__(
        self,
        dataset: PanoDataset | QuestionDataset,
        collate: Collate,
        num_workers: int,
        pin_memory: bool,
        complete: Callable[[PartBatch], Batch] | None = None,
        share: bool = False,
    ) -> None:
        self._plan: list[list[Any]] = []
        self._complete = complete
        ending = multiprocessing.RawValue(ctypes.c_bool, False)
        # Runs before multiprocessing sends SIGTERM to the workers at the end of the process, and waits for them.
        Finalize(self, setattr, (ending, "value", True), exitpriority=100)
        self._loader: DataLoader[Any] = DataLoader(
            _Guarded(dataset, collate, share),
            sampler=self._plan,  # of the keys of whole batches, which `_Guarded` makes
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=functools.partial(_begin, ending=ending),
            # Iterators draw a base seed, which must not come from the global generator.
            generator=torch.Generator().manual_seed(0),
        )

    def run(self, plan: Sequence[list[Any]]) -> Iterator[Batch]:
        self._plan[:] = plan
        for batch in self._loader:
            if isinstance(batch, Exception):
                raise batch
            if isinstance(batch, PartBatch):
                assert self._complete is not None
                batch = self._complete(batch)
            yield batch


@dataclass(eq=False, repr=False)
class _Guarded(Dataset[Any]):
    """Makes batches, or returns the error instead.

    A DataLoader would wrap an error of a worker in its own text and traceback. An error for the user is returned
    instead, and raised unchanged in the main process.
    """

    dataset: PanoDataset | QuestionDataset
    collate: Callable[[Sequence[Sample]], Batch | PartBatch]
    share: bool

    def __getitem__(self, keys: Sequence[Any]) -> Batch | PartBatch | Exception:
        try:
            return self.collate(self.dataset.shared(keys) if self.share else [self.dataset[key] for key in keys])
        except (ValueError, OSError) as error:
            return error


def _check_share(split: str, length: int, world_size: int) -> None:
    if length < world_size:
        raise ValueError(
            f"The {split} split has {length} samples for {world_size} processes: each needs at least one. "
            "Use more data or fewer processes."
        )


def _pictures(dataset: PanoDataset) -> list[str]:
    return [dataset.source.image_id(index) for index in range(len(dataset))]


def _together(order: Sequence[int], pictures: Sequence[str]) -> list[int]:
    """The order with samples of a panorama behind each other, where the one with the lowest index was."""
    members: dict[str, list[int]] = {}
    for index, picture in zip(order, pictures, strict=True):
        members.setdefault(picture, []).append(index)
    place = {index: at for at, index in enumerate(order)}
    return [index for group in sorted(members.values(), key=lambda group: place[min(group)]) for index in group]


def _chunks(items: list[_Item], size: int) -> list[list[_Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _begin(worker: int, *, ending: ctypes.c_bool) -> None:  # noqa: ARG001
    # Ctrl-C in a terminal and SIGTERM of torchrun go to every process. Workers ignore them: the main process saves a
    # checkpoint first, and then ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
    signal.siginterrupt(signal.SIGTERM, False)  # does not interrupt the reading of a file
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
