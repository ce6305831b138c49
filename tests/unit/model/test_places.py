"""The detection head: tokens' frames, boxes to tokens and back, cells, masks; oracles on the built-in world."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from panollava.crop.boxes import IGNORED, NOTHING, PictureBoxes, Places, iou, iou_matrix, rotated
from panollava.crop.cameras import Column, locate, token_directions
from panollava.crop.crop import Crop
from panollava.crop.matches import ray_matches
from panollava.crop.places import PlaceEncoder, collate_places, turned
from panollava.crop.sphere import rotation_matrix
from panollava.data.scenes.boxes import CLASSES
from panollava.data.world import WorldSource
from panollava.evaluation.detection import score_boxes, score_masks
from panollava.model.detector import PAINTERS, PanoDetector
from panollava.model.places import (
    Painter,
    PlaceHead,
    PlaceOutputs,
    TokenFrames,
    assign,
    found_boxes,
    from_tokens,
    place_losses,
    to_tokens,
    token_frames,
)

GRID, SIDE = (4, 4), 4
ROWS = {"type": "e2p", "fov_deg": 90.0, "overlap": 0.5, "pitch_rows_deg": [-45, 0, 45]}


def cameras(spec: dict) -> torch.Tensor:
    return Crop.from_spec(spec, view_size=(64, 64)).camera_rows.double()


@pytest.mark.parametrize("spec", [ROWS, {"type": "cubemap", "poles": True}, {"type": "anyres_e2p"}])
def test_frames_are_rotations_that_look_where_tokens_look(spec: dict) -> None:
    rows = cameras(spec)
    frames = token_frames(rows, GRID)
    identity = torch.eye(3, dtype=torch.float64).expand(frames.axes.shape)
    torch.testing.assert_close(frames.axes @ frames.axes.mT, identity, atol=1e-9, rtol=0)
    forward = token_directions(rows, GRID).flatten(1, 2)
    torch.testing.assert_close(frames.axes[..., 2, :][frames.is_shown], forward[frames.is_shown], atol=1e-9, rtol=0)
    # In a level view that looks ahead, the middle tokens see right as x and up as y.
    ahead = token_frames(cameras({"type": "cubemap"})[:1], (3, 3)).axes[0, 4]
    torch.testing.assert_close(ahead, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    st.floats(-180, 180), st.floats(-89.9, 89.9), st.floats(1, 170), st.floats(1, 170), st.floats(-89, 89)
)  # fmt: skip
def test_boxes_come_back_from_every_token_that_sees_their_centre(
    yaw: float, pitch: float, across: float, down: float, roll: float
) -> None:
    frames = token_frames(cameras(ROWS), GRID)
    box = torch.tensor([[yaw, pitch, across, down, roll]], dtype=torch.float64)
    values, far = to_tokens(box.expand(len(frames.axes), 1, 5), frames)  # (V, 1, Q, 6)
    near = far[:, 0] <= 2
    assert near.any()
    own = TokenFrames(frames.axes[near], frames.steps[near], frames.is_shown[near])
    back = from_tokens(values[:, 0][near], own).numpy()
    assert iou(back, box.numpy().repeat(len(back), axis=0)).min() > 1 - 1e-6


def test_a_rotation_of_cameras_and_boxes_together_changes_nothing() -> None:
    """No yaw is learnt: the numbers that a token predicts are the same for a rotated panorama."""
    rows = cameras(ROWS)
    turn = math.radians(77.0)
    box = np.array([[20.0, -60.0, 40.0, 25.0, 10.0]])
    angle = torch.tensor(turn, dtype=torch.float64)
    matrix = rotation_matrix(angle, torch.zeros_like(angle), torch.zeros_like(angle)).numpy()
    other_rows = rows.clone()
    other_rows[:, 1] += turn
    first, _ = to_tokens(torch.from_numpy(box).expand(len(rows), 1, 5), token_frames(rows, GRID))
    other = torch.from_numpy(rotated(box, matrix)).expand(len(rows), 1, 5)
    second, far = to_tokens(other, token_frames(other_rows, GRID))
    near = far <= 2
    torch.testing.assert_close(first[near], second[near], atol=1e-7, rtol=0)


@pytest.mark.parametrize("spec", [ROWS, {"type": "anyres_e2p"}])
def test_autocast_leaves_directions_and_boxes_as_they_are(spec: dict) -> None:
    rows = cameras(spec).float()
    box = torch.tensor([[30.0, -20.0, 8.0, 5.0, 10.0]]).expand(len(rows), 1, 5)

    def computed() -> list[torch.Tensor]:
        frames = token_frames(rows, GRID)
        values, far = to_tokens(box, frames)
        x, y, _ = locate(rows, frames.axes[..., 2, :])
        matches = ray_matches(rows[None], torch.ones(1, len(rows), dtype=torch.bool), GRID)
        back = from_tokens(values[:, 0], frames)
        return [frames.axes, frames.steps, values, far, back, x, y, matches.weight_b, token_directions(rows, GRID)]

    plain = computed()
    with torch.autocast("cpu", torch.bfloat16):
        under = computed()
    assert all(torch.equal(*each) for each in zip(plain, under, strict=True))


def test_float64_is_made_on_the_cpu() -> None:
    """Apple's GPU has none, so that a tensor is moved before it is cast."""

    class NoFloat64BeforeCpu(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            moved = getattr(args[0], "moved", False) if args else False
            if func is torch.Tensor.double:
                assert moved, "float64 before cpu()"
            found = func(*args, **(kwargs or {}))
            if func is torch.Tensor.cpu:
                found = found.clone() if found is args[0] else found
                found.moved = True
            return found

    rows = Crop.from_spec(ROWS, view_size=(64, 64)).camera_rows[:2]
    boxes = torch.tensor([[[0.0, 0.0, 20.0, 20.0, 0.0]]])
    frames = token_frames(rows[None], GRID)
    mask = torch.ones(1, 2, dtype=torch.bool)
    outputs = PlaceOutputs(torch.zeros(1, 2, 16, 2), torch.zeros(1, 2, 16, 4), torch.zeros(1, 2, 8, 8, 3))
    with NoFloat64BeforeCpu():
        found = assign(boxes, torch.zeros(1, 1, dtype=torch.long), frames, mask)
        place_losses(outputs, found, frames, mask, torch.zeros(1, 2, 8, 8))
        found_boxes(outputs, frames, mask)
        Painter(rows, (8, 16))


def oracle(spec: dict, scenes: int = 4) -> tuple[PlaceOutputs, TokenFrames, torch.Tensor, WorldSource]:
    """Outputs of a head that knows the truth."""
    rows, source = cameras(spec), WorldSource(split="test", scenes=scenes)
    encode = PlaceEncoder(rows.float(), GRID, SIDE)
    batch = collate_places([encode(source.places(index)) for index in range(scenes)])
    one = token_frames(rows, GRID)
    frames = TokenFrames(*(part.expand(scenes, *part.shape) for part in (one.axes, one.steps, one.is_shown)))
    mask = torch.ones(scenes, len(rows), dtype=torch.bool)
    found = assign(batch["boxes"].double(), batch["box_classes"], frames, mask)
    at = found.place.unbind(1)
    scores = torch.full((*frames.axes.shape[:3], len(CLASSES)), -20.0)
    scores[(*at, found.classes)] = 20.0
    boxes = torch.zeros(*frames.axes.shape[:3], 4, dtype=torch.float64)
    boxes[at] = found.values[:, :4]
    shown = batch["cells"].long()
    shown = torch.where(shown < 0, len(CLASSES), shown)
    cells = torch.nn.functional.one_hot(shown, len(CLASSES) + 1) * 50.0
    losses = place_losses(PlaceOutputs(scores, boxes.float(), cells), found, frames, mask, batch["cells"])
    assert losses["score"] < 1e-2
    assert losses["box"] < 1e-3
    assert losses["mask"] < 1e-2
    return PlaceOutputs(scores, boxes, cells), frames, mask, source


@pytest.mark.parametrize("spec", [ROWS, {"type": "cubemap", "poles": True}])
def test_the_oracle_finds_every_box(spec: dict) -> None:
    """Targets, assignment, non-maximum suppression, voting and evaluator agree: the truth scores 1."""
    outputs, frames, mask, source = oracle(spec)
    found = found_boxes(outputs, frames, mask)
    truth = {str(index): source.places(index).boxes for index in range(len(source))}
    scores = score_boxes(truth, dict(zip(truth, found, strict=True)), CLASSES)
    assert scores.with_scores.ap.value == pytest.approx(1.0)
    assert scores.f1 is not None
    assert scores.f1.value == 1.0


def test_sixty_things_are_found_in_many_views() -> None:
    """Each is predicted by some 17 tokens, of unequal scores, which leave room for those of the lowest ones."""
    rows, generator = cameras({**ROWS, "fov_deg": 90.0}), np.random.default_rng(0)
    frames = token_frames(rows, (16, 16))
    frames = TokenFrames(*(part[None] for part in (frames.axes, frames.steps, frames.is_shown)))
    yaw, pitch = np.meshgrid(np.arange(-180, 180, 30.0), np.arange(-60, 61, 30.0))
    boxes = np.stack([yaw.ravel(), pitch.ravel(), *np.full((2, yaw.size), 6.0), np.zeros(yaw.size)], axis=1)
    assert len(boxes) == 60
    mask = torch.ones(1, len(rows), dtype=torch.bool)
    found = assign(torch.from_numpy(boxes)[None], torch.zeros(1, 60, dtype=torch.long), frames, mask)
    assert len(found.boxes) > 700
    scores = torch.full((1, len(rows), 256, 1), -20.0)
    value = dict(zip(map(tuple, boxes), generator.uniform(-1, 3, 60), strict=True))
    at = found.place.unbind(1)
    scores[(*at, found.classes)] = torch.tensor([value[tuple(box)] for box in found.boxes.numpy()]).float()
    predicted = torch.zeros(1, len(rows), 256, 4, dtype=torch.float64)
    predicted[at] = found.values[:, :4]
    (detected,) = found_boxes(PlaceOutputs(scores, predicted, torch.zeros(0)), frames, mask)
    assert len(detected.boxes) == 60
    assert iou_matrix(boxes, detected.boxes).max(axis=1).min() > 0.99


def test_the_oracle_paints_masks_as_fine_as_its_cells() -> None:
    """Cells of 5.6 degrees lose what is thinner, such as the hole of a ring; whole things are there."""
    outputs, _, mask, source = oracle(ROWS, scenes=4)
    painter = Painter(cameras(ROWS), (128, 256))
    truth = {str(index): source.places(index).pixels[::2, ::2] for index in range(4)}
    found = {name: painter(outputs.cells[row], mask[row]) for row, name in enumerate(truth)}
    scores = score_masks(truth, found, CLASSES)
    assert scores.by_solid_angle.value > 0.75
    assert scores.of_class["light"] is None or scores.of_class["light"] > 0.9


def test_pixels_that_no_used_view_shows_have_no_class() -> None:
    rows = cameras({"type": "cubemap"})  # without the poles
    painter = Painter(rows, (64, 128))
    cells = torch.zeros(len(rows), 16, 16, 3)
    cells[..., 1] = 5.0
    painted = painter(cells, torch.ones(len(rows), dtype=torch.bool))
    assert (painted[32] == 1).all()
    assert (painted[0] == NOTHING).all()
    only_front = painter(cells, torch.arange(len(rows)) == 0)
    assert (only_front[32] == 1).mean() == pytest.approx(0.25, abs=0.02)


def test_the_view_of_the_whole_panorama_paints_what_no_other_view_shows() -> None:
    rows = cameras({"type": "anyres_e2p"})
    assert rows[0, Column.IS_GLOBAL] == 1
    cells = torch.zeros(len(rows), 16, 16, 3)
    cells[0, ..., 0] = 5.0
    cells[1:, ..., 1] = 5.0
    painted = Painter(rows, (64, 128))(cells, torch.ones(len(rows), dtype=torch.bool))
    assert (painted[32] == 1).all()
    assert (painted[[0, -1]] == 0).all()
    tiles = Painter(rows, (64, 128))(cells, rows[:, Column.IS_GLOBAL] == 0)
    np.testing.assert_array_equal(tiles == 1, painted == 1)
    assert (tiles[0] == NOTHING).all()


def test_cells_without_a_label_do_not_count() -> None:
    rows = cameras(ROWS).float()
    pixels = np.full((32, 64), IGNORED, np.int16)
    targets = PlaceEncoder(rows, GRID, SIDE)(Places(PictureBoxes(np.zeros((0, 5)), np.zeros(0, int)), pixels))
    assert (targets.cells == IGNORED).all()
    none = PlaceEncoder(rows, GRID, SIDE)(Places(PictureBoxes(np.zeros((0, 5)), np.zeros(0, int)), None))
    assert (none.cells == IGNORED).all()


def test_a_turned_picture_has_turned_targets() -> None:
    source, upright = WorldSource(split="test", scenes=2, turn_deg=90.0), WorldSource(split="test", scenes=2)
    expected, found = source.places(1), turned(upright.places(1), 128, 512)
    one, other = (places.boxes.boxes[np.argsort(places.boxes.boxes[:, 2])] for places in (found, expected))
    np.testing.assert_allclose(one, other, atol=1e-9)  # a scene lists its things from straight ahead
    assert (found.pixels != expected.pixels).mean() < 0.01  # drawn anew, an edge may differ by rounding


def test_no_boxes_at_all_are_learnt_from() -> None:
    """A batch without a box has finite losses, and gradients only of scores and cells."""
    head = PlaceHead(16, 2, hidden=8, cells=2)
    frames = token_frames(cameras(ROWS)[None].float(), GRID)
    outputs = head(torch.randn(1, 24, 16, 16), frames, GRID)
    mask = torch.ones(1, 24, dtype=torch.bool)
    found = assign(torch.zeros(1, 1, 5), torch.full((1, 1), -1), frames, mask)
    assert len(found.classes) == 0
    cells = torch.full((1, 24, 8, 8), NOTHING, dtype=torch.int16)
    losses = place_losses(outputs, found, frames, mask, cells)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert losses["box"] == 0
    assert all(torch.isfinite(weight.grad).all() for weight in head.parameters() if weight.grad is not None)


def test_predictions_that_overflow_still_are_boxes() -> None:
    frames = token_frames(cameras(ROWS), GRID)
    values = torch.full((24, 16, 4), 1e4, dtype=torch.float64)
    boxes = from_tokens(values, frames)
    assert torch.isfinite(boxes).all()
    assert (boxes[..., 2:4] < 180).all()
    assert (from_tokens(-values, frames)[..., 2:4] > 0).all()


def test_places_of_pixels_are_kept_for_few_sizes() -> None:
    crop = Crop.from_spec({"type": "cubemap"}, view_size=(16, 16))
    detector = PanoDetector(None, None, crop, ["a"])  # type: ignore[arg-type]
    painters = [detector._painter(crop.camera_rows, (height, 2 * height)) for height in range(4, 6 + PAINTERS)]
    assert len(detector._painters) == PAINTERS
    last = (5 + PAINTERS, 10 + 2 * PAINTERS)
    assert detector._painter(crop.camera_rows, last) is painters[-1]
    assert detector._painter(crop.camera_rows, (4, 8)) is not painters[0]
