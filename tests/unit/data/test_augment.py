"""Changed training pictures: reproducible, true to their texts, mild, and training's alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.toy_data import PlainCrop, PlainSource, encode

from panollava.crop.crop import Crop
from panollava.crop.strategies import AnyresE2pCrop
from panollava.data.augment import Augment, AugmentOptions, Change, check_turnable
from panollava.data.dataset import PanoDataset
from panollava.data.loader import Collate, StageLoader
from panollava.data.source import Directions
from panollava.data.world import WorldSource

ALL = AugmentOptions(augment=True)
GREY = {"augment_brightness": 0.0, "augment_contrast": 0.0, "augment_saturation": 0.0, "augment_hue_deg": 0.0}
TURNS = AugmentOptions(augment=True, **GREY)
COLOURS = AugmentOptions(augment=True, augment_turn=False)
EIGHTHS = [step / 8 for step in range(8)]


@pytest.mark.parametrize(
    ("options", "on", "turns", "colours"),
    [
        (AugmentOptions(), False, False, False),
        (ALL, True, True, True),
        (TURNS, True, True, False),
        (COLOURS, True, False, True),
        (AugmentOptions(augment=True, augment_turn=False, **GREY), False, False, False),
    ],
)
def test_what_is_on(options: AugmentOptions, on: bool, turns: bool, colours: bool) -> None:
    assert (options.is_on, options.turns, options.colours) == (on, turns, colours)


@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000), index=st.integers(0, 10**6))
def test_a_change_depends_on_seed_epoch_and_index_alone(seed: int, epoch: int, index: int) -> None:
    change = Augment(ALL, seed).change(epoch, index, "none")
    assert change == Augment(ALL, seed).change(epoch, index, "none")
    others = [(seed ^ 1, epoch, index), (seed, epoch + 1, index), (seed, epoch, index + 1)]
    assert all(change != Augment(ALL, a).change(b, c, "none") for a, b, c in others)
    assert 0 <= change.turn < 1
    assert all(0.9 <= factor <= 1.1 for factor in (change.brightness, change.contrast, change.saturation))
    assert abs(change.hue_deg) <= 4
    # One option does not change what another draws.
    assert Augment(TURNS, seed).change(epoch, index, "none") == Change(change.turn)
    assert Augment(COLOURS, seed).change(epoch, index, "none").hue_deg == change.hue_deg


@pytest.mark.parametrize(("directions", "turns"), [("words", set(EIGHTHS)), ("fixed", {0.0}), ("unknown", {0.0})])
def test_turns_are_those_that_the_texts_allow(directions: Directions, turns: set[float]) -> None:
    drawn = [Augment(TURNS, 0).change(0, index, directions).turn for index in range(400)]
    assert set(drawn) == turns
    assert all(drawn.count(turn) > 0.6 * len(drawn) / len(turns) for turn in turns)


@pytest.mark.parametrize("index", range(12))
def test_the_world_is_turned_with_its_questions_and_answers(index: int) -> None:
    source = WorldSource(split="train", scenes=20)
    crop = Crop(AnyresE2pCrop(overlap=0.0), view_size=(32, 32))
    sample = PanoDataset(source, crop, augment=Augment(TURNS, 7))[(3, index)]
    turn_deg = 360 * Augment(TURNS, 7).change(3, index, "words").turn
    oracle = WorldSource(split="train", scenes=20, turn_deg=turn_deg)
    assert source.rotated_record(index, 3, turn_deg) == oracle.record(index, 3)
    assert sample.sample_id == oracle.record(index, 3).sample_id
    # Painted turned, or painted and then turned: the same but for the edges of the solids.
    assert sample.views is not None
    apart = (sample.views.int() - crop.views(oracle.panorama(index)).int()).abs()
    assert apart.max() <= 3
    if turn_deg:
        assert source.record(index, 3) != oracle.record(index, 3)
        assert (sample.views.int() - crop.views(source.panorama(index)).int()).abs().max() > 30


class Unsaid(PlainSource):
    """Every other record does not say how it names directions."""

    def directions(self, index: int) -> Directions:
        return "none" if index % 2 else "unknown"


def test_texts_that_may_name_directions_are_not_turned_silently() -> None:
    check_turnable(PlainSource(4))
    told = r"augment_turn=true rotates pictures, and 2 of the 4 records of plain do not say .*\(such as plain-0\)\. "
    with pytest.raises(ValueError, match=rf"{told}Say so: data\.names_directions=none if .*data\.augment_turn=false"):
        check_turnable(Unsaid(4))


class Coloured(PlainSource):
    """Panoramas of many colours."""

    def panorama(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (8, 16, 3), np.uint8)


def loader(workers: int = 0, seed: int = 5, batch_size: int = 2, accumulate: int = 1) -> StageLoader:
    train = PanoDataset(Coloured(12), PlainCrop(), encode, augment=Augment(ALL, seed))  # type: ignore[arg-type]
    validation = PanoDataset(Coloured(5), PlainCrop(), encode)  # type: ignore[arg-type]
    return StageLoader(
        train, validation, Collate(), batch_size=batch_size, accumulate=accumulate, seed=seed, num_workers=workers
    )


def pictures(loader: StageLoader, epoch: int, start: int = 0) -> dict[str, torch.Tensor]:
    batches = [batch for window in loader.windows(epoch, start) for batch in window]
    return {
        name: picture for batch in batches for name, picture in zip(batch.sample_ids, batch.pixel_values, strict=True)
    }


def test_the_same_whatever_the_workers_the_batches_and_the_start() -> None:
    whole = pictures(loader(), 2)
    for other in (pictures(loader(workers=2), 2), pictures(loader(batch_size=1, accumulate=2), 2)):
        assert other.keys() == whole.keys()
        assert all(torch.equal(other[name], whole[name]) for name in whole)
    resumed = pictures(loader(workers=1), 2, start=3)
    assert len(resumed) == 6
    assert all(torch.equal(resumed[name], whole[name]) for name in resumed)
    assert all(not torch.equal(picture, whole[name]) for name, picture in pictures(loader(), 3).items())


def test_validation_is_never_changed() -> None:
    batches = list(loader().validation())
    plain = [torch.from_numpy(Coloured(5).panorama(index)).permute(2, 0, 1)[None] for index in range(5)]
    assert torch.equal(torch.cat([batch.pixel_values for batch in batches]), torch.stack(plain))
