"""The world as a source: reproducible records, even questions, blank and turned pictures."""

from __future__ import annotations

import hashlib
import itertools
import re

import numpy as np
import pytest

from panollava.data import world
from panollava.data.scenes.questions import CAPTION_REQUEST, KINDS, turn_words
from panollava.data.scenes.scene import LEVELS
from panollava.data.world import WorldSource
from panollava.store.identity import present_digest


def test_records_depend_on_seed_level_epoch_and_index_only(level: int) -> None:
    few, many = (WorldSource(split="train", scenes=scenes, level=level) for scenes in (4, 400))
    assert few.record(3, 1) == many.record(3, 1)
    assert few.record(3, 1) != few.record(3, 2)
    assert few.record(3, 1) != WorldSource(split="train", scenes=4, seed=1, level=level).record(3, 1)
    assert few.record(3, 1) != WorldSource(split="train", scenes=4, level=level % 3 + 1).record(3, 1)
    assert (few.panorama(3) == many.panorama(3)).all()


def test_records_end_in_a_caption() -> None:
    record = WorldSource(split="train", scenes=2, questions_per_record=3).record(0, 0)
    assert record.turns[-1][0] == CAPTION_REQUEST
    assert 3 <= len(record.turns) <= 5


def test_splits_seeds_and_levels_share_no_panorama() -> None:
    made = itertools.product(("train", "val", "test"), (0, 7), LEVELS)
    sources = [WorldSource(split=split, scenes=3, seed=seed, level=level) for split, seed, level in made]  # type: ignore[arg-type]
    for kind in ("picture", "image_id", "panorama"):
        found = {np.array(getattr(source, kind)(index)).tobytes() for source in sources for index in range(3)}
        assert len(found) == len(sources) * 3


def test_level_1_is_the_world_of_versions_without_levels() -> None:
    """Scenes, texts and names of pictures; what is drawn is compared in ``test_landed``."""
    found = hashlib.sha256()
    for split in ("train", "val", "test"):
        source = WorldSource(split=split, scenes=30, seed=5)  # type: ignore[arg-type]
        for index in range(30):
            scene, name = source.scene(index), source.picture(index).partition(": ")[2]
            parts = (source.record(index, 1).turns, name, scene.solids, scene.discs, scene.backdrop)
            found.update(repr(parts).encode())
        for one in source.questions():
            asked = (one.sample_id, one.history, one.question, one.references, one.question_type)
            found.update(repr(asked).encode())
    assert found.hexdigest()[:16] == "36ebc80af861ba5f"


def test_only_pictures_of_level_1_keep_the_names_of_earlier_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions drew no others, so nobody has compared them."""
    present = present_digest(*world.DRAWN_BY)
    monkeypatch.setattr(world, "code_digest", lambda *roots: "earlier")
    world._drawn_by.cache_clear()
    names = [WorldSource(split="test", scenes=1, level=level).picture(0) for level in LEVELS]
    world._drawn_by.cache_clear()
    assert [name.split()[0] for name in names] == ["earlier", present, present]


def test_every_level_speaks_the_words_of_level_1(level: int) -> None:
    """The shipped language model has read no others."""

    def words(level: int, scenes: int) -> set[str]:
        source = WorldSource(split="train", scenes=scenes, level=level)
        texts = [text for index in range(scenes) for turn in source.record(index, 0).turns for text in turn]
        return {word for text in texts for word in re.findall(r"\w+", text)}

    assert words(level, 200) <= words(1, 400)


def test_questions_are_unique_and_find_their_picture(level: int) -> None:
    source = WorldSource(split="test", scenes=12, level=level)
    questions = source.questions()
    assert questions == WorldSource(split="test", scenes=12, level=level).questions()
    assert len({question.sample_id for question in questions}) == len(questions)
    assert {question.question_type for question in questions} == set(KINDS)
    assert (source.question_panorama(questions[-1]) == source.panorama(11)).all()


def test_fewer_questions_a_scene() -> None:
    questions = WorldSource(split="test", scenes=10, questions_per_scene=2).questions()
    assert 10 < len(questions) <= 20


def test_panorama_shape() -> None:
    assert WorldSource(split="val", scenes=1, height=128).panorama(0).shape == (128, 256, 3)
    assert WorldSource(split="val", scenes=1).panorama(0).dtype == np.uint8


def test_a_turned_source_asks_the_same_in_turned_words(level: int) -> None:
    source, turned = (WorldSource(split="test", scenes=20, level=level, turn_deg=turn) for turn in (0.0, 90.0))
    named = 0
    for one, other in zip(source.questions(), turned.questions(), strict=True):
        assert other.sample_id == one.sample_id
        assert other.question == turn_words(one.question, 90.0)
        assert other.references == (turn_words(one.references[0], 90.0),)
        named += other.references != one.references
    assert named >= 40
    rolled = np.roll(source.panorama(5), 128, axis=1).astype(int)
    assert np.abs(rolled - turned.panorama(5)).max() <= 3


def test_a_scene_out_of_range_is_refused() -> None:
    with pytest.raises(IndexError, match="scene 3 of 3 in world-val"):
        WorldSource(split="val", scenes=3).panorama(3)
