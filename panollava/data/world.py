"""The built-in world as a data set: drawn, not downloaded, the same for the same seed on every machine."""

from functools import cache
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Interval, MinLen

from panollava.crop.boxes import PictureBoxes, Places
from panollava.data.scenes.boxes import CLASSES, scene_boxes, scene_classes
from panollava.data.scenes.paint import paint
from panollava.data.scenes.questions import ALL_KINDS, BOX, CAPTION_REQUEST, KINDS, Asked, Kind, ask_all, caption
from panollava.data.scenes.scene import LEVELS, SECTOR_DEG, SPLIT_CODES, Scene, scene_at
from panollava.data.source import Directions, Question, Record
from panollava.store.identity import code_digest, present_digest

_TRAINING, _EVALUATION = 0, 1
DRAWN_BY = (scene_at, Scene.turned, paint)
"""The code that makes a panorama of a seed."""


@cache
def _drawn_by(level: int) -> str:
    """Digest of that code; an earlier one in its place where it was found to draw the same, which is about level 1."""
    return code_digest(*DRAWN_BY) if level == 1 else present_digest(*DRAWN_BY)


class WorldSource:
    """One split of the built-in world.

    Args:
        split: no two splits share a scene, for any seeds and sizes.
        scenes: number of scenes; scene `index` does not depend on it.
        seed: of the scenes.
        level: how hard they are to read, see ``LEVELS``. No two levels share a scene.
        height: rows of a panorama; it has twice as many columns.
        questions_per_record: question types of a training conversation, which ends in a caption.
        questions_per_scene: question types per scene in evaluation, each on its own; 10 are all.
        kinds: question types that are asked, each once; None for all but ``box``, whose answer is a box in words.
        turn_deg: rotates every panorama to the right by a multiple of 45°, with the directions in its texts.
    """

    class_names = CLASSES

    def __init__(
        self,
        *,
        split: Literal["train", "val", "test"],
        scenes: Annotated[int, Interval(ge=1)],
        seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 0,
        level: Annotated[int, Interval(ge=1, le=len(LEVELS))] = 1,
        height: Annotated[int, Interval(ge=64, le=4096)] = 256,
        questions_per_record: Annotated[int, Interval(ge=1, le=len(ALL_KINDS))] = 5,
        questions_per_scene: Annotated[int, Interval(ge=1, le=len(ALL_KINDS))] = len(ALL_KINDS),
        kinds: Annotated[list[Kind], MinLen(1)] | None = None,
        turn_deg: float = 0.0,
    ) -> None:
        if turn_deg % SECTOR_DEG:
            raise ValueError(
                f"data.turn_deg={turn_deg:g}: allowed are multiples of {SECTOR_DEG:g}, so that "
                "directions keep their words."
            )
        asked = KINDS if kinds is None else tuple(kinds)
        if not asked or len(set(asked) & set(ALL_KINDS)) < len(asked):
            raise ValueError(
                f"data.kinds={kinds}: allowed is a list out of {', '.join(ALL_KINDS)}, each once. Leave it at null for "
                f"all but {BOX}."
            )
        # Names of level 1 are those of versions that had no levels.
        self.name = f"world-{split}" if level == 1 else f"world-level{level}-{split}"
        self.split = split
        self.scenes = scenes
        self.seed = seed
        self.level = level
        self.height = height
        self.questions_per_record = questions_per_record
        self.questions_per_scene = questions_per_scene
        self.kinds = asked
        self.turn_deg = turn_deg

    def __len__(self) -> int:
        return self.scenes

    def scene(self, index: int) -> Scene:
        """Scene `index`: its things and their directions, in degrees and in words."""
        if not 0 <= index < self.scenes:
            raise IndexError(f"scene {index} of {self.scenes} in {self.name}")
        scene = scene_at(self.seed, self.split, index, self.level)
        return scene.turned(self.turn_deg) if self.turn_deg else scene

    def record(self, index: int, epoch: int) -> Record:
        """A conversation about scene `index`; other questions each epoch, then a caption."""
        return self.rotated_record(index, epoch, 0.0)

    def directions(self, index: int) -> Directions:
        """By words: questions and answers are made anew for a rotated scene."""
        return "words"

    def rotated_record(self, index: int, epoch: int, yaw_deg: float) -> Record:
        """The same conversation about scene `index` rotated to the right by a multiple of 45 degrees."""
        scene = self.scene(index).turned(yaw_deg)
        asked = self._ask(scene, index, self.questions_per_record, [_TRAINING, epoch])
        turns = [turn for question in asked for turn in question.turns]
        return Record(self.image_id(index), (*turns, (CAPTION_REQUEST, caption(scene))))

    def image_id(self, index: int) -> str:
        """Name of scene `index`."""
        return f"{self.name}-{self.seed}-{index:06d}"

    def panorama(self, index: int) -> np.ndarray:
        """Panorama of scene `index`, (H, W, 3) uint8 RGB."""
        return paint(self.scene(index), self.height)

    def boxes(self, index: int) -> PictureBoxes:
        """Boxes of the things of scene `index`."""
        return scene_boxes(self.scene(index))

    def places(self, index: int) -> Places:
        """Boxes and visible parts of the things of scene `index`."""
        scene = self.scene(index)
        return Places(scene_boxes(scene), scene_classes(scene, self.height).astype(np.int16))

    def picture(self, index: int) -> str:
        """All that determines the panorama of scene `index`."""
        drawn_by = f"{_drawn_by(self.level)} numpy {np.__version__} cv2 {cv2.__version__}"
        level = "" if self.level == 1 else f", level {self.level}"
        return f"{drawn_by}: {self.split} {self.seed} {index}, height {self.height}, turned {self.turn_deg:g}{level}"

    def questions(self) -> list[Question]:
        """The evaluation questions of all scenes, scene by scene."""
        questions = []
        for index in range(self.scenes):
            scene_id = self.image_id(index)
            asked = self._ask(self.scene(index), index, self.questions_per_scene, [_EVALUATION])
            questions += [
                Question(
                    sample_id=f"{scene_id}-{one.kind}",
                    image_id=scene_id,
                    history=one.history,
                    question=one.question,
                    references=(one.answer,),
                    question_type=one.kind,
                )
                for one in asked
            ]
        return questions

    def question_panorama(self, question: Question) -> np.ndarray:
        """Panorama that `question` asks about, (H, W, 3) uint8 RGB."""
        return self.panorama(self._scene_of(question))

    def question_picture(self, question: Question) -> str:
        """All that determines the panorama of `question`."""
        return self.picture(self._scene_of(question))

    def _scene_of(self, question: Question) -> int:
        return int(question.image_id.rsplit("-", 1)[1])

    def _ask(self, scene: Scene, index: int, count: int, purpose: list[int]) -> list[Asked]:
        """Questions of `count` kinds in random order; what is drawn depends on (seed, purpose, index) alone."""
        key = [self.seed, SPLIT_CODES[self.split], index, 1, *purpose]
        rng = np.random.default_rng(np.random.SeedSequence(key))
        kinds = [self.kinds[place] for place in rng.permutation(len(self.kinds))[:count]]
        return ask_all(scene, kinds, rng)
