"""stage=detect: training, the checkpoint that it stands on, evaluation, comparison, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.runs import UNTRACKED, command

from panollava import PanoDetector, check, compare, eval, predict, score, train
from panollava.batch import Batch
from panollava.checkpoint import BASE, BEST, STANDS_ON, STATE, TRAINED, find_checkpoint, read_state, read_weights
from panollava.crop.boxes import PictureBoxes, iou_matrix
from panollava.data.box_files import read_coco, write_coco
from panollava.data.boxes import BoxAnnotations, Conventions
from panollava.data.world import WorldSource
from panollava.model.detector import Detections
from panollava.run.evaluate_places import read_detections, write_detections
from panollava.training.precision import Compute

SMALL = [
    "crop=cubemap",
    "crop.poles=true",
    "data.train_scenes=24",
    "data.val_scenes=4",
    "data.test_scenes=6",
    "trainer.num_workers=0",
    "trainer.device=cpu",
    "stage.vision.batch_size=8",
    "stage.detect.batch_size=4",
    "stage.detect.mask_size=8",
    "stage.detect.epochs=2",
    "evaluation.batch_size=4",
    UNTRACKED,
]
RUN = Path("runs", "both")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a run of stages vision and detect."""
    folder = tmp_path_factory.mktemp("detect")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command(patch, train, "stage.run=[vision,detect]", "experiment_name=both", *SMALL) == 0
    return folder


@pytest.fixture
def here(both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    shutil.copytree(both, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def detect_folder(root: Path) -> Path:
    return next(root.glob("detect/*/"))


def results(experiment: str) -> Path:
    return sorted(Path("results", "eval_results", experiment).glob("detections_*"))[-1]


def test_the_checkpoint_holds_the_head_and_names_what_it_stands_on(here: Path) -> None:
    checkpoint = find_checkpoint(detect_folder(RUN))
    assert all(name.startswith("head.") for name in read_weights(checkpoint))
    entry = read_state(checkpoint)[STANDS_ON]
    base = find_checkpoint(next(RUN.glob("vision/*/")))
    assert RUN / entry["checkpoint"] == base.parent / base.resolve().name
    detector = PanoDetector.from_pretrained(RUN)
    resampler = {f"vision.resampler.{name}": one for name, one in detector.vision.resampler.state_dict().items()}
    trained = read_weights(base)
    assert resampler
    assert all((trained[name] == one).all() for name, one in resampler.items())


def test_a_moved_experiment_opens_and_a_changed_base_is_refused(here: Path) -> None:
    """The base is kept beside the head, since the other stage removes its own; older runs have it there alone."""
    shutil.move(RUN, "elsewhere")
    moved = Path("elsewhere")
    kept = detect_folder(moved) / BASE
    assert {path.name for path in kept.iterdir()} == {TRAINED, STATE}
    shutil.move(kept, "aside")
    PanoDetector.from_pretrained(moved)
    shutil.rmtree(find_checkpoint(next(moved.glob("vision/*/"))).resolve())
    with pytest.raises(FileNotFoundError, match="stands on the weights of"):
        PanoDetector.from_pretrained(moved)
    shutil.move("aside", kept)
    PanoDetector.from_pretrained(moved)
    weights = kept / TRAINED
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="have changed since"):
        PanoDetector.from_pretrained(moved)


def test_the_evaluation_is_complete_and_found_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = results("both")
    document = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert set(document["boxes"]["with_scores"]["ap_by_class"]) == set(document["classes"])
    assert document["masks"]["by_solid_angle"]["value"] >= 0
    assert document["blank"]["with_scores"]["ap"]["value"] <= 0.05
    conditions = document["settings"]["conditions"]
    assert all(conditions[key] for key in ("names", "vision", "precision", "places", "weights"))
    found = read_coco(folder / "detections.json", Conventions())
    assert len(found.pictures) == 6
    masks = sorted((folder / "masks").glob("*.png"))
    assert len(masks) == 6
    assert cv2.imread(str(masks[0]), cv2.IMREAD_UNCHANGED).shape == (256, 512)
    # The same command trains and evaluates nothing again.
    assert command(monkeypatch, train, "stage.run=[vision,detect]", "experiment_name=both", *SMALL) == 0
    assert results("both") == folder


def test_eval_gives_the_scores_of_training(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.loads((results("both") / "metrics.json").read_text("utf-8"))
    assert command(monkeypatch, eval, f"checkpoint={detect_folder(RUN)}", UNTRACKED) == 0
    second = json.loads((results("both") / "metrics.json").read_text("utf-8"))
    assert second["created"] >= first["created"]
    assert first["boxes"] == second["boxes"]
    assert first["masks"] == second["masks"]


def test_blank_pictures_are_looked_at_in_the_same_number_format(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find, seen = PanoDetector.find, list[tuple[str, bool]]()

    def watched(self: PanoDetector, batch: Batch, sizes: Sequence[tuple[int, int] | None]) -> list[Detections]:
        seen.append((batch.sample_ids[0], torch.is_autocast_enabled("cpu")))
        return find(self, batch, sizes)

    half = Compute(torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr("panollava.run.reevaluation.recorded_compute", lambda *_: half)
    monkeypatch.setattr(PanoDetector, "find", watched)
    assert command(monkeypatch, eval, f"checkpoint={detect_folder(RUN)}", "max_samples=1", UNTRACKED) == 0
    assert [(name == "blank", is_half) for name, is_half in seen] == [(False, True), (True, True)]


def test_the_api_finds_what_the_evaluation_finds(here: Path) -> None:
    detector = PanoDetector.from_pretrained(RUN)
    source = WorldSource(split="test", scenes=6)
    found = detector.detect(source.panorama(0), least_score=0.0)
    recorded = read_coco(results("both") / "detections.json", Conventions()).pictures[source.image_id(0)]
    assert len(found) == len(recorded.boxes)
    assert np.diag(iou_matrix(found.boxes.boxes, recorded.boxes)).min() > 1 - 1e-6
    first = next(iter(found))
    assert first.name in detector.names
    assert found.mask.shape == (256, 512)
    assert len(detector.detect(source.panorama(0), least_score=1.0)) == 0
    with pytest.raises(TypeError, match=r"least_score='0\.5' is no number"):
        detector.detect(source.panorama(0), least_score="0.5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"least_score=2 is not from 0 to 1"):
        detector.detect(source.panorama(0), least_score=2)


def test_runs_are_compared_in_pairs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = ["stage=detect", "experiment_name=fresh", *SMALL]
    assert command(monkeypatch, train, *alone) == 0
    fresh = find_checkpoint(detect_folder(Path("runs", "fresh")))
    assert any(name.startswith("vision.resampler.") for name in read_weights(fresh))
    assert STANDS_ON not in read_state(fresh)
    runs = [str(detect_folder(Path("runs", name))) for name in ("both", "fresh")]
    damaged = Path("results", "eval_results", "fresh", "detections_99990101_000000")
    damaged.mkdir()
    (damaged / "metrics.json").write_text("{", encoding="utf-8")
    capsys.readouterr()
    assert command(monkeypatch, compare, *runs, "out=compared", UNTRACKED) == 0
    assert capsys.readouterr().err.count(f"{damaged} cannot be read and is skipped") == 1
    text = Path("compared", "comparison.md").read_text("utf-8")
    assert text.count("| AP | fresh less both |") == 1
    assert "| mIoU | fresh less both |" in text
    assert len(Path("compared", "scores.csv").read_text("utf-8").splitlines()) == 3


def test_it_starts_from_another_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = next(RUN.glob("vision/*/"))
    arguments = ["stage=detect", f"init_from={base}", "experiment_name=other", *SMALL]
    assert command(monkeypatch, train, *arguments) == 0
    assert "does not record the content of its backbones" not in capsys.readouterr().err
    checkpoint = find_checkpoint(detect_folder(Path("runs", "other")))
    assert Path(read_state(checkpoint)[STANDS_ON]["checkpoint"]).is_absolute()
    own = read_weights(checkpoint)
    before = read_weights(find_checkpoint(detect_folder(RUN)))
    assert all((own[name] == before[name]).all() for name in before)  # the same seed, data and base


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resampler=qformer", "resampler.shortcut=false"], "keeps no grid"),
        (["crop=e2p"], "does not show the centres"),
        (["init_from=nowhere"], "does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [one for one in SMALL if not (one.startswith("crop") and "crop=e2p" in arguments)]
    assert command(monkeypatch, train, "stage=detect", *small, *arguments) != 0
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*"))


def test_best_checkpoint_alone_opens_beside_a_copy_of_its_base(here: Path) -> None:
    """A model registry has the folder of a stage; ``base.ckpt`` beside the checkpoint is what it stands on."""
    folder = detect_folder(RUN)
    Path("alone").mkdir()
    for name in ("checkpoint_metadata.json", "config.yaml"):
        shutil.copy(folder / name, "alone")
    shutil.copytree(find_checkpoint(folder), Path("alone", BEST))
    with pytest.raises(FileNotFoundError, match=r"base\.ckpt"):
        PanoDetector.from_pretrained("alone")
    shutil.copytree(find_checkpoint(next(RUN.glob("vision/*/"))), Path("alone", "base.ckpt"))
    assert PanoDetector.from_pretrained("alone").names


NAMES = ("방 1.png", "방_1.png", "a/b.png", "a_b.png")
"""Names of pictures that are no names of files, two and two alike but for such characters."""


def box_file(path: Path, *, boxes: bool = True) -> Path:
    """Four scenes of the test split as pictures with a COCO file, whose classes are those of the world."""
    world = WorldSource(split="test", scenes=len(NAMES))
    found = {}
    for index, name in enumerate(NAMES):
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).write_bytes(cv2.imencode(".png", world.panorama(index)[..., ::-1])[1].tobytes())
        one = world.boxes(index)
        found[name] = one if boxes else replace(one, boxes=one.boxes[:0], classes=one.classes[:0])
    write_coco(path, BoxAnnotations(world.class_names, found), Conventions())
    return path


def test_a_box_file_is_evaluated_and_compared_from_any_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Detections are reused where their pictures have the same names, and can be scored against the file."""
    truth = box_file(here / "own" / "truth.json")
    folder, where = detect_folder(here / RUN), f"results_dir={here / 'results'}"
    assert command(monkeypatch, eval, f"checkpoint={folder}", "csv_input=own/truth.json", where, UNTRACKED) == 0
    made = results("both")
    assert list(read_coco(made / "detections.json", Conventions()).pictures) == list(NAMES)
    assert command(monkeypatch, score, str(made / "detections.json"), f"truth={truth}", "out=scores.json") == 0
    recorded, scored = (json.loads(path.read_text("utf-8")) for path in (made / "metrics.json", Path("scores.json")))
    recorded = recorded["boxes"]["with_scores"]
    assert scored["with_scores"]["ap"]["value"] == pytest.approx(recorded["ap"]["value"], abs=1e-9)
    shutil.copytree(folder.parent.parent, here / "runs" / "again", symlinks=True)
    deeper = here / "deeper"
    deeper.mkdir()
    for at, start in enumerate((here, deeper)):
        monkeypatch.chdir(start)
        capsys.readouterr()
        named = f"csv_input={truth if at else 'own/truth.json'}"
        other = str(detect_folder(here / "runs" / "again"))
        assert command(monkeypatch, compare, str(folder), other, named, where, "out=compared", UNTRACKED) == 0
        assert capsys.readouterr().err.count("Reusing the detections") == 2
        text = Path("compared", "comparison.md").read_text("utf-8")
        assert all("| +0.0 points |" in line for line in text.splitlines() if line.startswith("| AP"))
    capsys.readouterr()
    assert command(monkeypatch, compare, str(folder), other, named, where, "max_samples=1", "out=one", UNTRACKED) == 0
    assert "are not used: max_samples: null there, 1 now" in capsys.readouterr().err
    text = Path("one", "comparison.md").read_text("utf-8")
    assert "1 picture" in text
    assert "| +0.0 points | 1.0000 | no |" in text


def test_masks_of_any_names_are_kept_apart(tmp_path: Path) -> None:
    found = {
        name: Detections(PictureBoxes(np.zeros((0, 5)), np.zeros(0, int), np.zeros(0)), mask, ("a", "b"))
        for name, mask in zip(
            NAMES, np.arange(-1, 3)[:, None, None].repeat(4, 1).repeat(8, 2).astype(np.int16), strict=True
        )
    }
    write_detections(tmp_path, found, ("a", "b", "c"))
    _, masks = read_detections(tmp_path)
    assert list(masks) == list(NAMES)
    assert all((masks[name] == one.mask).all() for name, one in found.items())


def test_prediction_keeps_the_panoramas_and_says_what_is_wrong(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    box_file(here / "own" / "truth.json")
    image = here / "own" / "a_b.png"
    before = image.read_bytes()
    shutil.copy(image, here / "own" / "picture.json")  # a picture by its content
    Path("own", "truth.json").unlink()

    def said(*arguments: str, folder: str = "runs/both") -> tuple[int, str]:
        capsys.readouterr()
        status = command(monkeypatch, predict, f"checkpoint={folder}", "device=cpu", *arguments)
        return status, capsys.readouterr().err

    for arguments in (["image=own/a_b.png", "out=own/a_b.png"], ["image=own", "out=own/picture.json"]):
        status, errors = said(*arguments)
        assert (status, "is the panorama itself, which would be lost" in errors) == (1, True)
    assert image.read_bytes() == (here / "own" / "picture.json").read_bytes() == before
    status, errors = said("image=own", "out=x.PNG")
    assert (status, "of several a COCO file (.json)" in errors) == (1, True)
    cv2.imwrite("grey.png", np.full((64, 128, 3), 128, np.uint8))
    status, errors = said("image=grey.png", "out=found.json")
    assert (status, "grey.png: nothing with a score of 0.5 or more." in errors) == (0, True)
    assert Path("found.json").is_file()
    status, errors = said("image=grey.png", folder="runs/none")
    assert (status, "question= is missing, and runs/none is no run" in errors) == (1, True)
    for base in (find_checkpoint(next(RUN.glob("vision/*/"))).resolve(), detect_folder(RUN) / BASE):
        shutil.rmtree(base)
    status, errors = said("image=grey.png")
    assert (status, "stands on the weights of" in errors, "question=" in errors) == (1, True, False)


@pytest.mark.parametrize(
    ("bare", "arguments", "message"),
    [
        ("val", [], "boxes-val (data/val.json): 4 pictures without a single box"),
        ("test", [], "boxes-test (data/test.json): 4 pictures without a single box"),
        (
            "first",
            ["evaluation.max_samples=1"],
            "boxes-test (data/test.json): the first 1 of 4 pictures (max_samples=1)",
        ),
    ],
)
def test_a_split_without_a_box_is_refused_before_training(
    bare: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):
        box_file(Path("data", f"{split}.json"), boxes=split != bare)
    if bare == "first":
        document = json.loads(Path("data", "test.json").read_text("utf-8"))
        document["annotations"] = [one for one in document["annotations"] if one["image_id"] != 1]
        Path("data", "test.json").write_text(json.dumps(document), "utf-8")
    small = [one for one in SMALL if not one.startswith("data.")]
    assert command(monkeypatch, train, "stage=detect", "data=boxes", *small, *arguments) != 0
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/detect/*/*.ckpt"))
    assert command(monkeypatch, check, "data=boxes", "texts=0", "out=null", "num_workers=0") == 0
    assert (f"Note: boxes-{bare} " in capsys.readouterr().out) == (bare != "first")
