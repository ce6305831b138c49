"""The views, pictures and store keys of changed panoramas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from panollava.crop.crop import Crop
from panollava.data.dataset import QuestionDataset
from panollava.data.source import Question
from panollava.data.world import WorldSource
from panollava.evaluation.changes import UNCHANGED, Change, changed_cameras
from panollava.prompt import Encoded
from panollava.run.changed import ChangedCrop, ChangedSource, directions_of
from panollava.run.data import GREY
from panollava.store.identity import FileIdentity

CROP = Crop.from_spec({"type": "anyres_e2p", "overlap": 0.5}, view_size=(32, 32))
WORLD = WorldSource(split="test", scenes=2, height=128)


def changed(change: Change) -> ChangedSource:
    names = {WORLD.image_id(index): WORLD.scene(index).solids[0].name for index in range(2)}
    return ChangedSource(WORLD, change, WORLD.questions()[:3], FileIdentity(None), names)


def sample(change: Change) -> Any:
    """The first question's sample, as an evaluation reads it."""
    text = Encoded(ids=[1], is_target=[False], cut=0)
    return QuestionDataset(changed(change), ChangedCrop(CROP, change), lambda _: text)[0]


def test_one_view_of_an_evaluation_is_grey_and_the_others_stay() -> None:
    plain, grey = sample(UNCHANGED), sample(Change(grey=3))
    assert bool((grey.views[3] == GREY).all())
    others = [at for at in range(9) if at != 3]
    assert torch.equal(grey.views[others], plain.views[others])
    assert torch.equal(grey.cameras, plain.cameras)
    assert not bool((plain.views[3] == GREY).all())


def test_views_are_shuffled_with_their_cameras() -> None:
    plain, other = sample(UNCHANGED), sample(Change(order=1))
    places = [CROP.cameras.index(one) for one in changed_cameras(CROP.cameras, Change(order=1))]
    assert torch.equal(other.views, plain.views[places])
    assert torch.equal(other.cameras, plain.cameras[places])


def test_a_whole_step_of_phase_is_the_next_tile() -> None:
    plain, moved = sample(UNCHANGED), sample(Change(phase=1.0))
    assert (moved.views[1:-1].int() - plain.views[2:].int()).abs().max() <= 1
    half = sample(Change(phase=0.5))
    assert (half.views[1].int() - plain.views[1].int()).abs().max() > 20


def test_store_keys_tell_what_is_shown_apart() -> None:
    changes = [
        UNCHANGED,
        Change(turn_deg=90.0),
        Change(tilt_deg=5.0),
        Change(tilt_deg=5.0, axis_deg=90.0),
        Change(pitch_deg=0.0),
    ]
    question = WORLD.questions()[0]
    keys = [changed(one).question_picture(question) for one in changes]
    assert len(set(keys)) == len(keys)
    assert keys[0] == WORLD.question_picture(question)
    assert changed(Change(phase=0.5)).question_picture(question) == keys[0]  # the crop's signature differs instead
    crops = [UNCHANGED, Change(phase=0.5), Change(order=1), Change(grey=1), Change(grey=2)]
    assert len({str(ChangedCrop(CROP, one).signature) for one in crops}) == len(crops)
    assert ChangedCrop(CROP, UNCHANGED).signature == CROP.signature


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "room.jpg"
    file.write_bytes(b"one")

    class Files(WorldSource):
        def question_picture(self, question: Question) -> Path:  # type: ignore[override]
            return file

    source = ChangedSource(Files(split="test", scenes=1), Change(turn_deg=90.0), [], FileIdentity(None), {})
    before = source.question_picture(WORLD.questions()[0])
    file.write_bytes(b"other")
    assert source.question_picture(WORLD.questions()[0]) != before


def test_a_solid_is_drawn_at_another_pitch() -> None:
    question = WORLD.questions()[0]
    level, low = (changed(Change(pitch_deg=pitch)).question_panorama(question) for pitch in (0.0, -45.0))
    rows = np.flatnonzero((level != low).any(axis=(1, 2)))
    assert 45 <= rows.min() < rows.max() < 128


def test_directions_of_a_picture_are_those_that_all_its_records_allow() -> None:
    class Mixed(WorldSource):
        def picture(self, index: int) -> str:
            return "room"

        def question_picture(self, question: Question) -> str:
            return "room"

        def directions(self, index: int) -> Any:
            return ("none", "words")[index]

    question = Question("a", "room", (), "what?", ("a",), "text")
    assert directions_of(Mixed(split="test", scenes=2))(question) == "words"
    assert directions_of(Mixed(split="test", scenes=1))(question) == "none"
    assert directions_of(WORLD)(WORLD.questions()[0]) == "words"
