"""The world as a source: reproducible records, even questions, blank and turned pictures."""

from __future__ import annotations

import numpy as np
import pytest

from panollava.data.scenes.questions import CAPTION_REQUEST, KINDS, turn_answer, turn_words
from panollava.data.world import WorldSource


def test_records_depend_on_seed_epoch_and_index_only() -> None:
    few, many = WorldSource(split="train", scenes=4), WorldSource(split="train", scenes=400)
    assert few.record(3, 1) == many.record(3, 1)
    assert few.record(3, 1) != few.record(3, 2)
    assert few.record(3, 1) != WorldSource(split="train", scenes=4, seed=1).record(3, 1)
    assert (few.panorama(3) == many.panorama(3)).all()


def test_records_end_in_a_caption() -> None:
    record = WorldSource(split="train", scenes=2, questions_per_record=3).record(0, 0)
    assert record.turns[-1][0] == CAPTION_REQUEST
    assert 3 <= len(record.turns) <= 5


def test_splits_and_seeds_share_no_panorama() -> None:
    sources = [WorldSource(split=split, scenes=8, seed=seed) for split in ("train", "val", "test") for seed in (0, 7)]  # type: ignore[arg-type]
    pictures = {source.panorama(index).tobytes() for source in sources for index in range(8)}
    assert len(pictures) == 6 * 8


def test_questions_are_unique_and_find_their_picture() -> None:
    source = WorldSource(split="test", scenes=12)
    questions = source.questions()
    assert questions == WorldSource(split="test", scenes=12).questions()
    assert len({question.sample_id for question in questions}) == len(questions)
    assert {question.question_type for question in questions} == set(KINDS)
    assert (source.question_panorama(questions[-1]) == source.panorama(11)).all()


def test_fewer_questions_a_scene() -> None:
    questions = WorldSource(split="test", scenes=10, questions_per_scene=2).questions()
    assert 10 < len(questions) <= 20


def test_panorama_shape() -> None:
    assert WorldSource(split="val", scenes=1, height=128).panorama(0).shape == (128, 256, 3)
    assert WorldSource(split="val", scenes=1).panorama(0).dtype == np.uint8


def test_a_turned_source_asks_the_same_in_turned_words() -> None:
    source, turned = WorldSource(split="test", scenes=20), WorldSource(split="test", scenes=20, turn_deg=90.0)
    named = 0
    for one, other in zip(source.questions(), turned.questions(), strict=True):
        assert other.sample_id == one.sample_id
        assert other.question == turn_words(one.question, 90.0)
        assert other.references == (turn_answer(one, one.references[0], 90.0),)
        named += other.references != one.references
    assert named >= 40
    rolled = np.roll(source.panorama(5), 128, axis=1).astype(int)
    assert np.abs(rolled - turned.panorama(5)).max() <= 3


def test_a_scene_out_of_range_is_refused() -> None:
    with pytest.raises(IndexError, match="scene 3 of 3 in world-val"):
        WorldSource(split="val", scenes=3).panorama(3)
