"""A run whose data or backbones changed since it was trained: refused where it would go on, told where it is opened."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from support.picture_files import by_pillow, gradient, noise
from support.runs import QUICK, UNTRACKED, assert_same_bits, command, opened, run_train, stage_folder
from support.toy_training import CPU

from panollava import chat, explain, predict
from panollava.checkpoint import LAST, STATE
from panollava.logs import LOG
from panollava.model.api import PanoLlava, VisionPart
from panollava.run.conditions import _digest, answer_conditions, differences, model_conditions, unequal
from panollava.run.restore import restore
from panollava.run.sources import open_source
from panollava.run_folder import CONFIG, FORM, METADATA, read_metadata
from panollava.store.identity import FileIdentity
from panollava.training.distributed import DistributedContext

Files = list[str]


@pytest.fixture(scope="module")
def trained(backbone: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run of one stage was trained, on backbones and data of its own, by relative paths."""
    place = tmp_path_factory.mktemp("trained")
    for name, family in (("siglip", "siglip"), ("lm", "qwen3")):
        shutil.copytree(backbone(family), place / "models" / name)
    (place / "d").mkdir()
    (place / "d" / "a.png").write_bytes(by_pillow(gradient(), "PNG"))
    (place / "d" / "b.png").write_bytes(by_pillow(noise(64, 128), "PNG"))
    for split in ("train", "val", "test"):
        rows = [f"{name}.png,what {split}?,red {number}" for name in "ab" for number in range(2)]
        (place / "d" / f"{split}.csv").write_text("\n".join(["image,question,answer", *rows]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run_train(*ARGUMENTS)
    return place


ARGUMENTS = (
    *(one for one in QUICK if not one.startswith("data.")),
    UNTRACKED,
    "vision.name=models/siglip",
    "language.name=models/lm",
    "data=csv",
    "data.dir=d",
    "stage=resampler",
    "experiment_name=run",
)


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    copy = shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(copy)
    return copy


def evaluations() -> int:
    return len(list(Path("results").glob("eval_results/run/predictions_*")))


def shifted(file: Path) -> None:
    """Other weights of the same shapes."""
    save_file({name: value * 1.5 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})


def reworded(file: Path) -> None:
    """Another answer."""
    file.write_text(file.read_text().replace("red 1", "blue"))


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("d/train.csv", reworded, r"data\.train_csv=d/train\.csv \(texts\)"),
        (
            "d/b.png",
            lambda file: file.write_bytes(by_pillow(gradient()[::-1], "PNG")),
            r"data\.train_csv=d/train\.csv \(pictures\); data\.val_csv=d/val\.csv \(pictures\)",
        ),
        ("models/lm/model.safetensors", shifted, r"language\.name=models/lm \(model\.safetensors\)"),
        ("models/siglip/model.safetensors", shifted, r"vision\.name=models/siglip \(model\.safetensors\)"),
        (
            "models/lm/chat_template.jinja",
            lambda file: file.write_text("x"),
            r"language\.name=models/lm \(chat_template\.jinja\)",
        ),
    ],
)
def test_a_stage_whose_inputs_changed_is_neither_finished_nor_resumed(
    file: str, change: Callable[[Path], object], told: str
) -> None:
    change(Path(file))
    for more in ([], ["stage.resampler.epochs=2"], ["resume=none"]):
        with pytest.raises(ValueError, match=f"trained on other content than there is now: {told}.*overwrite=true"):
            run_train(*ARGUMENTS, *more)


@pytest.mark.usefixtures("place")
def test_a_checkpoint_that_is_resumed_by_name_is_of_the_same_inputs() -> None:
    source = shutil.copytree(stage_folder("run", "resampler"), "kept/resampler/run", symlinks=True)
    reworded(Path("d/val.csv"))
    with pytest.raises(ValueError, match=r"kept/.*data\.val_csv=d/val\.csv \(texts\).*init_from="):
        run_train(*ARGUMENTS, "experiment_name=other", f"resume={source}", "stage.resampler.epochs=2")


@pytest.mark.usefixtures("place")
def test_what_was_evaluated_is_evaluated_again_under_other_conditions() -> None:
    def evaluated_by(*more: str) -> int:
        before = evaluations()
        run_train(*ARGUMENTS, *more)
        return evaluations() - before

    assert evaluated_by() == 0
    assert evaluated_by("generation.max_new_tokens=5") == 1
    reworded(Path("d/test.csv"))
    assert evaluated_by("generation.max_new_tokens=5") == 1
    assert evaluated_by("generation.max_new_tokens=5") == 0
    assert evaluated_by("generation.max_new_tokens=5", "evaluation.max_samples=1") == 0
    (newest := max(Path("results").glob("**/predictions.csv"))).write_text(newest.read_text() + newest.name)
    assert evaluated_by("generation.max_new_tokens=5") == 1
    max(Path("results").glob("**/predictions.csv")).unlink()
    assert evaluated_by("generation.max_new_tokens=5") == 1
    shutil.rmtree("results")
    assert evaluated_by("generation.max_new_tokens=5", "evaluation.max_samples=1") == 1
    assert evaluated_by("generation.max_new_tokens=5") == 1


@pytest.mark.usefixtures("place")
def test_what_was_moved_is_the_same_run_and_what_changed_is_refused() -> None:
    """Where the command finds the files is free; their content is compared."""
    for old, new in (("d", "e"), ("models/siglip", "models/encoder"), ("models/lm", "models/llm")):
        Path(old).rename(new)
    moved = "data.dir=e", "vision.name=models/encoder", "language.name=models/llm", "data.test_csv=e/more.csv"
    Path("e/test.csv").rename("e/more.csv")
    run_train(*ARGUMENTS, *moved)
    assert evaluations() == 1
    run_train(*ARGUMENTS, *moved, "generation.max_new_tokens=5")
    assert evaluations() == 2
    Path("e/b.png").write_bytes(by_pillow(gradient()[::-1], "PNG"))
    with pytest.raises(ValueError, match=r"other content than there is now: data\.train_csv=e/train\.csv \(pictures\)"):
        run_train(*ARGUMENTS, *moved)


@pytest.mark.usefixtures("place")
def test_a_run_is_finished_though_its_results_were_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an evaluation in this start nothing needs them; from another folder they are found."""
    run = Path("runs").resolve()
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        paths = "data.dir=copy/d", "vision.name=copy/models/siglip", "language.name=copy/models/lm"
        elsewhere = *ARGUMENTS, *paths, f"output_dir={run}"
        score = run_train(*elsewhere, "evaluation.enabled=false")
        assert score is not None
        assert score == run_train(*elsewhere)
        assert not Path("results").exists()
    shutil.rmtree("results")
    file = stage_folder("run", "resampler") / METADATA
    file.write_text(json.dumps({**read_metadata(file.parent), "workplace": None}))  # where the fixture still has them
    assert run_train(*ARGUMENTS, "evaluation.enabled=false") is None


@pytest.mark.usefixtures("place")
def test_a_resumed_run_keeps_the_number_format_that_it_was_begun_in() -> None:
    """With ``trainer.precision=auto``, which another machine would decide otherwise; all processes take the first's."""
    more, plain = (*ARGUMENTS, "stage.resampler.epochs=2"), "trainer.precision=fp32"
    folder = stage_folder("run", "resampler")
    with opened(*more) as run:
        assert run.compute.precision == run.number_format == read_metadata(folder)["number_format"] == "fp32"
    state = json.loads((folder / LAST / STATE).read_text())
    assert state["number_format"] == "fp32"
    for begun in ("bf16", "fp16"):
        (folder / LAST / STATE).write_text(json.dumps({**state, "number_format": begun}))
        (folder / METADATA).write_text(json.dumps({**read_metadata(folder), "number_format": begun}))
        with opened(*more) as run:
            assert (run.compute.precision, run.number_format) == ("bf16" if begun == "bf16" else "fp32", begun)
    with pytest.raises(ValueError, match=r"trainer\.precision: 'fp16' there, 'fp32' now"), opened(*more, plain):
        pass
    (folder / LAST / STATE).write_text(json.dumps({**state, "number_format": None}))  # of an earlier version

    class Second(DistributedContext):
        def texts(self, text: str) -> list[str]:
            return ["bf16" if text == "fp32" else text, text]

    with opened(*more, procs=Second()) as run:
        assert run.compute.precision == "bf16"


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("module", "opens", "line"),
    [
        (predict, PanoLlava, ["image=d/a.png", "question=what?"]),
        (chat, PanoLlava, []),
        (explain, VisionPart, [UNTRACKED]),
    ],
)
def test_commands_open_a_run_in_its_number_format(
    module: Any, opens: type, line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = stage_folder("run", "resampler"), []
    (folder / METADATA).write_text(json.dumps({**read_metadata(folder), "precision": "bf16"}))

    def noted(_path: str, *, dtype: torch.dtype, **_others: object) -> None:
        seen.append(dtype)
        raise ValueError("enough")

    monkeypatch.setattr(opens, "from_pretrained", noted)
    for more in ([], ["precision=fp32"]):
        assert command(monkeypatch, module, "checkpoint=runs/run", "device=cpu", *line, *more) == 1
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.usefixtures("place")
def test_old_records_are_told_and_refuse_nothing() -> None:
    folder = stage_folder("run", "resampler")
    metadata = read_metadata(folder)
    del metadata["inputs"]
    (folder / "checkpoint_metadata.json").write_text(json.dumps(metadata))
    for file in Path("results").glob("**/metrics.json"):
        document = json.loads(file.read_text())
        del document["settings"]["conditions"]
        file.write_text(json.dumps(document))
    shifted(Path("models/lm/model.safetensors"))
    run_train(*ARGUMENTS)
    assert evaluations() == 1
    PanoLlava.from_pretrained(folder)


def test_a_backbone_that_was_overwritten_is_told_where_the_run_is_opened(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the run's relative paths lead to its folders from elsewhere, also where the project was copied to."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(LOG, "propagate", True)
    run = place / "runs" / "run"
    pano = PanoLlava.from_pretrained(run)
    assert "no longer what" not in caplog.text
    assert pano.metadata["model"]["language"]["name"] == str(place / "models" / "lm")
    data = restore(str(run)).settings["data"]
    assert (data["dir"], data["test_csv"]) == (str(place / "d"), str(place / "d" / "test.csv"))
    assert not list(elsewhere.iterdir())
    shifted(place / "models" / "lm" / "model.safetensors")
    PanoLlava.from_pretrained(run)
    assert "models/lm is no longer what the run was trained on (model.safetensors differs)" in caplog.text


@pytest.mark.usefixtures("place")
def test_more_epochs_say_what_becomes_of_the_learning_rate() -> None:
    run_train(*ARGUMENTS, "stage.resampler.epochs=3", "evaluation.enabled=false")
    text = "\n".join(file.read_text() for file in stage_folder("run", "resampler").glob("logs/*"))
    assert "stage.resampler.epochs=3 in place of 1: the learning rate follows the schedule of the new length" in text


@pytest.mark.usefixtures("place")
def test_fewer_epochs_than_were_trained_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_train(*ARGUMENTS, "stage.resampler.epochs=2", "evaluation.enabled=false")
    monkeypatch.setattr(LOG, "propagate", True)
    run_train(*ARGUMENTS, "stage.resampler.epochs=2", "evaluation.enabled=false")
    assert "stays as it is" not in caplog.text
    run_train(*ARGUMENTS, "stage.resampler.epochs=1", "evaluation.enabled=false")
    assert caplog.text.count("trained for 2 epochs and stays as it is: stage.resampler.epochs=1") == 1


def test_a_hub_model_stays_the_commit_that_it_was(
    place: Path, backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub, here as its cache keeps it, has moved on since."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = place / "hub" / "models--some--encoder"
    first, second = "a1" * 20, "b2" * 20
    for commit in (first, second):
        shutil.copytree(backbone("siglip"), model / "snapshots" / commit)
    shifted(model / "snapshots" / second / "model.safetensors")
    main = model / "refs" / "main"
    main.parent.mkdir()
    main.write_text(first)
    arguments = (*ARGUMENTS, "experiment_name=hub", "vision.name=some/encoder", "evaluation.enabled=false")
    run_train(*arguments)
    folder = stage_folder("hub", "resampler")
    assert read_metadata(folder)["model"]["vision"]["revision"] == first
    main.write_text(second)
    run_train(*arguments, "stage.resampler.epochs=2")  # goes on with the first
    metadata = read_metadata(folder)
    assert (metadata["inputs"]["vision"], metadata["model"]["vision"]["revision"]) == ({"commit": first}, first)
    weights = PanoLlava.from_pretrained(folder).model.vision.tower.model.state_dict()
    expected = load_file(model / "snapshots" / first / "model.safetensors")
    name = next(key for key in expected if key.endswith("patch_embedding.weight"))
    assert weights[name.removeprefix("vision_model.")].equal(expected[name])
    with pytest.raises(ValueError, match=r"model\.vision\.revision: null there, .b2"):
        run_train(*arguments, f"vision.revision={second}")
    run_train(*arguments, f"vision.revision={second}", "experiment_name=second")
    assert read_metadata(stage_folder("second", "resampler"))["inputs"]["vision"] == {"commit": second}
    with pytest.raises(ValueError, match=r"vision\.revision='main' is for models of the Hugging Face hub"):
        run_train(*ARGUMENTS, "vision.revision=main", "experiment_name=third")


@pytest.mark.usefixtures("place")
def test_a_run_begun_under_an_earlier_default_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    """The same command finds it finished; one that names the key, and a run begun since, differ."""
    path = stage_folder("run", "resampler") / CONFIG
    recorded = OmegaConf.load(path)
    recorded.model.language.attn_implementation = "eager"
    recorded.form = 3
    OmegaConf.save(recorded, path)
    before = {file: file.read_bytes() for file in path.parent.rglob("*.safetensors")}
    with caplog.at_level("INFO", logger=LOG.name):
        run_train(*ARGUMENTS)
    assert "model.language.attn_implementation=eager, as in the version that began this run." in caplog.messages
    assert {file: file.read_bytes() for file in path.parent.rglob("*.safetensors")} == before
    recorded.form = FORM
    OmegaConf.save(recorded, path)
    with pytest.raises(ValueError, match=r"language\.attn_implementation"):
        run_train(*ARGUMENTS)


def recorded_as(**changes: dict[str, Any]) -> None:
    """Changes what the metadata of the only run say of its backbones; the config file is not there."""
    folder = stage_folder("run", "resampler")
    settings = read_metadata(folder)
    for part, values in changes.items():
        settings["model"][part] |= values
    (folder / METADATA).write_text(json.dumps(settings))
    (folder / CONFIG).unlink(missing_ok=True)


@pytest.mark.usefixtures("place")
def test_a_run_is_opened_where_flash_attention_and_four_bits_are_missing(caplog: pytest.LogCaptureFixture) -> None:
    before = PanoLlava.from_pretrained("runs/run")
    flash = {"attn_implementation": "flash_attention_2"}
    recorded_as(vision=flash, language={**flash, "load_in_4bit": True})
    with caplog.at_level(logging.INFO):
        pano = PanoLlava.from_pretrained("runs/run")
    for told in ("vision computes with flash_attention_2", "language computes with flash_attention_2", "four bits"):
        assert told in caplog.text
    assert pano.generate("d/a.png", "what?") == before.generate("d/a.png", "what?")
    assert pano.model.language_model.config._attn_implementation == "sdpa"
    assert_same_bits(dict(pano.model.state_dict()), dict(before.model.state_dict()))
    assert pano.metadata["model"]["language"]["load_in_4bit"] is False
    run, source = restore("runs/run"), open_source(dict(pano.metadata["data"]), "test", pano.crop)
    trained = answer_conditions(run.checkpoint, run.settings, source, FileIdentity(None))
    used = answer_conditions(run.checkpoint, run.settings, source, FileIdentity(None), **model_conditions(pano, CPU))
    assert (trained["in_4bit"], used["in_4bit"]) == (None, False)
    assert differences(used, trained) == {}  # the answers that were given here are not asked for again
    several = {"here": used, "there": {**used, "in_4bit": True}, "full": {}}
    assert "in_4bit is not the same for all: false (here), true (there)" in unequal(several)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("name", "revision", "beside"), [("/scratch/models/qwen", None, "qwen"), ("panollava-test/qwen", "abc", None)]
)
def test_a_backbone_that_is_elsewhere_now_is_found_where_the_message_says(
    name: str,
    revision: str | None,
    beside: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("panollava.model.hub._hub_answers", lambda: False)
    recorded_as(language={"name": name, "revision": revision})
    folder = stage_folder("run", "resampler")
    (folder / METADATA).write_text(json.dumps(read_metadata(folder) | {"inputs": {"language": {"commit": "abc"}}}))
    with pytest.raises(FileNotFoundError, match=f"a folder or link '{beside or name}' in the working directory"):
        PanoLlava.from_pretrained("runs/run")
    link = Path(beside or name)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(Path("models/lm").absolute())
    pano = PanoLlava.from_pretrained("runs/run")
    assert Path(pano.metadata["model"]["language"]["name"]).samefile("models/lm")
    assert isinstance(pano.generate("d/a.png", "what?", max_new_tokens=4), str)
    assert "cannot be told" in caplog.text
    assert "no longer what the run was trained on" not in caplog.text
    run, source = restore("runs/run"), open_source(dict(pano.metadata["data"]), "test", pano.crop)
    found = answer_conditions(run.checkpoint, run.settings, source, FileIdentity(None))
    assert found["language"] == _digest([{"commit": "abc"}])  # so that answers of the hub's model are read
