"""Order of samples over batches, ranks, workers and restarts; errors that come through whole."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.chat_templates import QWEN2, byte_level
from support.toy_data import PlainCrop, PlainSource, encode, encode_question

from panollava.batch import Batch
from panollava.crop.crop import Crop
from panollava.crop.strategies import AnyresE2pCrop
from panollava.data.dataset import PanoDataset, QuestionDataset, TextEncoder
from panollava.data.loader import Collate, EpochSampler, StageLoader, eval_loader, other_pictures
from panollava.prompt import ChatPrompt


def flat(window: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(window))


def loader(length: int = 21, broken: int | None = None, **options: int) -> StageLoader:
    train = PanoDataset(PlainSource(length, broken), PlainCrop(), encode)
    validation = PanoDataset(PlainSource(7), PlainCrop(), encode)
    return StageLoader(train, validation, Collate(), **{"batch_size": 4, "seed": 3, **options})


def names(windows: list[list[Batch]]) -> list[list[list[str]]]:
    return [[batch.sample_ids for batch in window] for window in windows]


@pytest.mark.parametrize("length", [64, 61, 5])
def test_batch_accumulation_and_ranks_share_every_optimiser_step(length: int) -> None:
    whole = EpochSampler(length, batch_size=8, seed=1).windows(2)
    accumulated = EpochSampler(length, batch_size=4, accumulate=2, seed=1).windows(2)
    assert [flat(window) for window in whole] == [flat(window) for window in accumulated]
    ranks = [EpochSampler(length, batch_size=4, seed=1, rank=rank, world_size=2).windows(2) for rank in (0, 1)]
    for step, window in enumerate(whole[:-1]):
        assert sorted(flat(window)) == sorted(flat(ranks[0][step]) + flat(ranks[1][step]))
    assert all(len(batch) <= 4 for rank in ranks for window in rank for batch in window)


@pytest.mark.parametrize("length", [64, 61, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_take_equal_disjoint_shares_and_leave_out_less_than_one_each(length: int, world_size: int) -> None:
    samplers = [EpochSampler(length, 4, 2, 7, rank, world_size) for rank in range(world_size)]
    plans = [sampler.windows(0) for sampler in samplers]
    assert {len(plan) for plan in plans} == {samplers[0].steps_per_epoch}
    for windows in zip(*plans, strict=True):
        assert len({tuple(map(len, window)) for window in windows}) == 1
    seen = [index for plan in plans for window in plan for index in flat(window)]
    assert len(seen) == len(set(seen)) == length - length % world_size


@given(st.lists(st.sampled_from("abcdefg"), min_size=3, max_size=30), st.integers(1, 3), st.integers(0, 5))
def test_samples_of_a_panorama_are_neighbours_where_they_share_it(
    pictures: list[str], world_size: int, epoch: int
) -> None:
    plans = [
        EpochSampler(len(pictures), 4, 2, 7, rank, world_size, pictures).windows(epoch) for rank in range(world_size)
    ]
    apart = [EpochSampler(len(pictures), 4, 2, 7, rank, world_size).windows(epoch) for rank in range(world_size)]
    assert [[list(map(len, window)) for window in plan] for plan in plans] == [
        [list(map(len, window)) for window in plan] for plan in apart
    ]
    order = [index for windows in zip(*plans, strict=True) for window in windows for index in flat(window)]
    assert len(set(order)) == len(order) == len(pictures) - len(pictures) % world_size
    shown = [pictures[index] for index in order]
    changes = sum(one != other for one, other in pairwise(shown))
    assert changes == len(set(shown)) - 1


def test_a_panorama_with_many_samples_comes_no_earlier() -> None:
    pictures = ["many"] * 9 + ["one"]
    firsts = [EpochSampler(10, 4, seed=seed, pictures=pictures).windows(0)[0][0][0] for seed in range(200)]
    assert 70 < sum(first == 9 for first in firsts) < 130


def test_order_is_a_function_of_seed_and_epoch() -> None:
    sampler = EpochSampler(50, 8, seed=1)
    assert sampler.windows(3) == EpochSampler(50, 8, seed=1).windows(3)
    assert sampler.windows(3) != sampler.windows(4)
    assert sampler.windows(3) != EpochSampler(50, 8, seed=2).windows(3)


@pytest.mark.parametrize("start", [0, 1, 6, 7])
def test_starting_in_mid_epoch_gives_the_rest_of_it(start: int) -> None:
    sampler = EpochSampler(50, 4, accumulate=2, seed=1)
    assert sampler.steps_per_epoch == 7
    assert sampler.windows(3, start) == sampler.windows(3)[start:]


def test_fewer_samples_than_processes_is_an_error() -> None:
    with pytest.raises(ValueError, match="training split has 3 samples for 4 processes"):
        EpochSampler(3, 1, rank=0, world_size=4)
    with pytest.raises(ValueError, match="validation split has 7 samples for 8 processes"):
        loader(world_size=8)


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_do_not_depend_on_workers_and_can_be_left_and_resumed(workers: int) -> None:
    reference = [list(loader(accumulate=2).windows(epoch)) for epoch in range(2)]
    data = loader(accumulate=2, num_workers=workers)
    assert data.steps_per_epoch == len(reference[0]) == 3
    left = data.windows(0)
    next(left)
    left.close()
    for epoch, start in [(0, 0), (1, 2), (1, 0)]:
        windows = list(data.windows(epoch, start))
        assert names(windows) == names(reference[epoch][start:])
        for ours, theirs in zip(chain(*windows), chain(*reference[epoch][start:]), strict=True):
            assert torch.equal(ours.pixel_values, theirs.pixel_values)
            assert torch.equal(ours.input_ids, theirs.input_ids)


HELD = """
import multiprocessing, sys
sys.path[:0] = sys.argv[1:]
from test_loader import loader

def hold():
    global held
    data = loader(num_workers=2)
    held = data, data.windows(0), data.validation()
    next(held[1]), next(held[2])

child = multiprocessing.get_context("fork").Process(target=hold)
child.start()
child.join()
hold()
sys.exit(7 + child.exitcode)
"""


def test_a_process_ends_while_it_holds_a_loader_whose_workers_wait() -> None:
    command = [sys.executable, "-c", HELD, str(Path(__file__).parent), *sys.path]
    assert subprocess.run(command, timeout=60, check=False).returncode == 7


def test_workers_know_the_epoch() -> None:
    data = loader(length=4, num_workers=1)
    lengths = [next(data.windows(epoch))[0].input_ids[:, 1].tolist() for epoch in (1, 123)]
    assert lengths == [[1] * 4, [3] * 4]


def test_validation_is_whole_fixed_and_shared_by_ranks() -> None:
    data = loader()
    first = [batch.sample_ids for batch in data.validation()]
    assert first == [batch.sample_ids for batch in data.validation()]
    assert first == [["plain-0", "plain-1", "plain-2", "plain-3"], ["plain-4", "plain-5", "plain-6"]]
    ranks = [loader(rank=rank, world_size=2) for rank in (0, 1)]
    shares = [list(chain(*(batch.sample_ids for batch in rank.validation()))) for rank in ranks]
    assert [len(share) for share in shares] == [4, 3]
    assert sorted(chain(*shares)) == sorted(chain(*first))


def test_validation_between_two_windows_leaves_training_as_it_was() -> None:
    data = loader(num_workers=1)
    seen = []
    for window in data.windows(0):
        seen.append(window)
        assert len(list(data.validation())) == 2
    assert names(seen) == names(list(loader().windows(0)))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(workers: int) -> None:
    data = loader(num_workers=workers)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    list(data.windows(0))
    list(data.validation())
    list(data.swapped_validation() or ())
    assert torch.equal(torch.get_rng_state(), state)


def test_swapped_pictures_are_those_of_other_records_and_everything_else_stays() -> None:
    for workers in (0, 1):
        data = loader(num_workers=workers)
        swapped = data.swapped_validation()
        assert swapped is not None
        for one, other in zip(list(data.validation()), list(swapped), strict=True):
            assert one.sample_ids == other.sample_ids
            assert torch.equal(one.input_ids, other.input_ids)
            assert torch.equal(one.labels, other.labels)
            shown = other.pixel_values[:, 0, 0, 0, 0].tolist()  # a picture is grey of its record's number
            assert shown == [(int(name.removeprefix("plain-")) + 3) % 7 for name in one.sample_ids]
    ranks = [loader(rank=rank, world_size=2).swapped_validation() for rank in (0, 1)]
    assert [len(list(chain(*(batch.sample_ids for batch in rank or ())))) for rank in ranks] == [4, 3]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_each_record_has_another_picture_if_there_are_two(pictures: list[str]) -> None:
    source = PlainSource(len(pictures))
    source.picture = lambda index: pictures[index]  # type: ignore[method-assign]
    others = other_pictures(source)
    if len(set(pictures)) == 1:
        assert others is None
    else:
        assert others is not None
        assert all(pictures[other] != pictures[index] for index, other in enumerate(others))


def test_a_split_with_one_picture_has_none_to_swap() -> None:
    data = PanoDataset(PlainSource(1), PlainCrop(), encode)
    assert StageLoader(data, data, Collate(), batch_size=1).swapped_validation() is None


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_made_for_the_user_comes_through_word_for_word(workers: int) -> None:
    data = loader(broken=5, num_workers=workers)
    with pytest.raises(ValueError) as error:
        list(data.windows(0))
    assert str(error.value) == "plain-5.jpg: the file is empty (0 bytes)."


@pytest.fixture
def spawn() -> Iterator[None]:
    """Workers start as they do on Windows and macOS."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(usual, force=True)


@pytest.mark.usefixtures("spawn")
def test_everything_travels_to_spawned_workers() -> None:
    crop = Crop(AnyresE2pCrop(overlap=0.0), view_size=(8, 8))
    encoder = TextEncoder(ChatPrompt(byte_level(QWEN2)), image_tokens=3)
    dataset = PanoDataset(PlainSource(4), crop, encoder.record)
    windows = [
        list(StageLoader(dataset, dataset, Collate(), batch_size=2, num_workers=workers).windows(0))
        for workers in (0, 1)
    ]
    for ours, theirs in zip(chain(*windows[0]), chain(*windows[1]), strict=True):
        assert torch.equal(ours.pixel_values, theirs.pixel_values)
        assert torch.equal(ours.input_ids, theirs.input_ids)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_pairs_questions_with_their_batches(workers: int) -> None:
    dataset = QuestionDataset(PlainSource(5), PlainCrop(), encode_question)
    pairs = list(eval_loader(dataset, Collate(padding_side="left"), batch_size=4, num_workers=workers))
    assert [len(questions) for questions, _ in pairs] == [4, 4, 2]
    assert [question for questions, _ in pairs for question in questions] == dataset.questions
    for questions, batch in pairs:
        assert batch.sample_ids == [question.sample_id for question in questions]
