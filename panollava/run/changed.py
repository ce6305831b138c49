"""A model that answers questions about panoramas shown in another way: changed pictures, views and cameras."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panollava.crop.cameras import camera_tensor
from panollava.crop.crop import Crop, Cut
from panollava.data.scenes.paint import paint
from panollava.data.scenes.scene import Scene
from panollava.data.source import DataSource, Directions, Question, Record, processing_of
from panollava.data.world import WorldSource
from panollava.evaluation.asked_things import at_pitch
from panollava.evaluation.changes import UNCHANGED, Change, changed_cameras, rotated
from panollava.evaluation.predictions import AnswerLog
from panollava.model.api import PanoLlava
from panollava.run.config_check import EvaluationOptions
from panollava.run.data import GREY, check_questions
from panollava.run.evaluate import answer_questions
from panollava.run.features import open_features
from panollava.run.restore import changed_crop
from panollava.run.tools import Tools
from panollava.store.identity import FileIdentity, code_digest


class ChangedCrop(Crop):
    """A crop with the cameras of a change, and perhaps one view grey."""

    def __init__(self, crop: Crop, change: Change) -> None:
        self.__dict__.update(vars(crop))  # whatever a crop holds: only its cameras and pixels differ
        self.cameras = changed_cameras(crop.cameras, change)
        self.camera_rows = camera_tensor(self.cameras)
        self.grey = change.grey

    @property
    def signature(self) -> dict[str, Any]:
        """As of a crop, with the view that is grey."""
        return super().signature | ({} if self.grey is None else {"grey": [self.grey, GREY]})

    def cut(self, panorama: np.ndarray) -> Cut:
        """As of a crop; every pixel of the grey view is ``GREY``."""
        cut = super().cut(panorama)
        if self.grey is not None:
            cut.views[self.grey] = GREY
        return cut


class ChangedSource(DataSource):
    """Some questions of a source about panoramas that are rotated, or drawn anew with one solid at another pitch.

    Args:
        source: with the panoramas.
        change: what is changed.
        questions: the questions, as they are asked in the change.
        known: identifies picture files, for the feature store.
        focus: name of the solid that is moved, by picture.
    """

    def __init__(
        self,
        source: DataSource,
        change: Change,
        questions: Sequence[Question],
        known: FileIdentity,
        focus: Mapping[str, str],
    ) -> None:
        self.name = f"{source.name}, {change}" if str(change) else source.name
        self.source, self.change, self.known, self.focus = source, change, known, focus
        self.processing = processing_of(source)
        self.asked = list(questions)

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int, epoch: int) -> Record:
        """As of the source."""
        return self.source.record(index, epoch)

    def panorama(self, index: int) -> np.ndarray:
        """As of the source."""
        return self.source.panorama(index)

    def picture(self, index: int) -> Path | str:
        """As of the source."""
        return self.source.picture(index)

    def questions(self) -> list[Question]:
        """The questions of the change."""
        return self.asked

    def question_panorama(self, question: Question) -> np.ndarray:
        """Panorama ``(H, W, 3)`` uint8 RGB in the change."""
        if self.change.pitch_deg is None:
            return rotated(self.source.question_panorama(question), self.change)
        assert isinstance(self.source, WorldSource)
        scene = scene_of(self.source, question.image_id)
        return paint(at_pitch(scene, self.focus[question.image_id], self.change.pitch_deg), self.source.height)

    def question_picture(self, question: Question) -> Path | str:
        """The source's own picture where its pixels stay; else a text that determines the changed one."""
        picture = self.source.question_picture(question)
        if not self.change.changes_pixels:
            return picture
        code = code_digest(rotated) if self.change.pitch_deg is None else code_digest(at_pitch)
        moved = "" if self.change.pitch_deg is None else f" of {self.focus[question.image_id]}"
        own = picture if isinstance(picture, str) else self.known.identify(picture)
        return f"{self.change}{moved}, by {code}: {own}"


def scene_of(source: WorldSource, picture: str) -> Scene:
    """The scene of a picture of the built-in world, by its id."""
    return source.scene(int(picture.rsplit("-", 1)[1]))


def directions_of(source: DataSource) -> Callable[[Question], Directions]:
    """How the texts of a question name directions: as the records about its picture do, if they agree."""
    said: dict[Path | str, set[Directions]] = {}
    for index in range(len(source)):
        said.setdefault(source.picture(index), set()).add(source.directions(index))

    def of(question: Question) -> Directions:
        found = said.get(source.question_picture(question), {"unknown"})
        order: tuple[Directions, ...] = ("unknown", "fixed", "words", "none")
        return next(one for one in order if one in found)

    return of


@dataclass(frozen=True)
class ModelSubject:
    """A checkpoint's model, as ``evaluation.certificates.Subject``.

    Attributes:
        pano: the model with its own crop.
        spec: the ``crop`` section of its own crop.
        source: the split, opened for that crop.
        open: opens it for another crop.
        focus: as of ``ChangedSource``.
        conditions: what its answers depend on beside the change, for the log of a stopped command; and its folder.
    """

    pano: PanoLlava
    spec: Mapping[str, Any]
    source: DataSource
    open: Callable[[Crop], DataSource]
    options: EvaluationOptions
    tools: Tools
    focus: Mapping[str, str]
    conditions: Mapping[str, Any]
    folder: Path

    def answers(self, change: Change, questions: Sequence[Question]) -> list[str]:
        """Answers to questions about panoramas in a change; each panorama is encoded once, or read from the store."""
        pano, tools = self.changed(change), self.tools
        source = ChangedSource(self.split(pano.crop, change), change, questions, tools.known, self.focus)
        tower, is_own = pano.model.vision.tower, change == UNCHANGED
        features = open_features(tools.store, tower, pano.crop, announce=is_own)
        log, asked = self.log(change), {one.sample_id: (one.history, one.question) for one in questions}
        # A command with other ``only`` or ``names_directions`` asks other questions, or words them in another way.
        log.answers = {name: one for name, one in log.answers.items() if asked.get(name) == (one.history, one.question)}
        with tools.compute.autocast():
            given = answer_questions(
                pano, source, self.options, num_workers=tools.num_workers, features=features, log=log
            )
        by_id = {one.sample_id: one.prediction for one in given}
        return [by_id[one.sample_id] for one in questions]

    def log(self, change: Change) -> AnswerLog:
        """The answers of a change that were given before the command was stopped."""
        log = AnswerLog(self.folder, {**self.conditions, "change": change.record})
        log.other = None  # those of the other changes are of this command
        return log

    def split(self, crop: Crop, change: Change) -> DataSource:
        """The split, with pictures as fine as the crop needs."""
        return self.open(crop) if change.crop else self.source

    def changed(self, change: Change) -> PanoLlava:
        """The model with the crop of a change.

        Raises:
            ValueError: it does not take that crop.
        """
        own = self.pano
        crop = own.crop
        if change.crop:
            crop = Crop.from_spec(changed_crop(self.spec, dict(change.crop)), view_size=own.crop.view_size)
        if change.phase or change.order or change.grey is not None:
            crop = ChangedCrop(crop, change)
        return PanoLlava(own.model, own.prompt, crop, generation=own.generation)

    def refuses(self, change: Change) -> str:
        """Why the model cannot answer in a change; empty where it can."""
        try:
            pano = self.changed(change)
            if change.crop and pano.crop.signature == self.pano.crop.signature:
                return "It cuts the same views as the run's own."
            self.check(pano, self.split(pano.crop, change))
        except ValueError as error:
            return str(error)
        return ""

    def check(self, pano: PanoLlava, source: DataSource) -> None:
        """Refuses questions with too many or unknown tokens for the model with a crop, with a ValueError."""
        new, tokens = pano.generation.max_new_tokens, pano.image_tokens
        check_questions(source, pano.prompt, pano.limits, image_tokens=tokens, new_tokens=new)
