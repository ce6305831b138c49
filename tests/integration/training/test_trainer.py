"""``Trainer`` does what the command does, on data sets that are objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.runs import QUICK, UNTRACKED, config, run_train

import panollava
from panollava import PanoLlava, Trainer
from panollava.checkpoint import find_checkpoint, read_weights
from panollava.data.source import DataSource, Record
from panollava.data.world import WorldSource
from panollava.model.api import VisionPart
from panollava.model.lora import lora_arguments
from panollava.run.config_check import checked
from panollava.run.run import plain
from panollava.run.sources import open_source
from panollava.run_folder import read_metadata
from panollava.stages.language import InstructStage
from panollava.stages.registry import StageRecord

SHADES = {"dark": 40, "grey": 128, "bright": 220}
SETTINGS: dict[str, Any] = {
    "trainer.device": "cpu",
    "trainer.num_workers": 0,
    "stage.finetune.max_text_length": 64,
    "store.enabled": False,
}


class Shades(DataSource):
    """Plain panoramas and a question about each."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.shades = name, [list(SHADES)[index % 3] for index in range(count)]

    def __len__(self) -> int:
        return len(self.shades)

    def record(self, index: int, epoch: int) -> Record:
        return Record(f"{self.name}-{index}", (("how bright?", self.shades[index]), ("sure?", "yes")))

    def picture(self, index: int) -> str:
        return f"a wall: {self.shades[index]}"

    def panorama(self, index: int) -> np.ndarray:
        return np.full((64, 128, 3), SHADES[self.shades[index]], np.uint8)


class HaltedStage(InstructStage):
    """The loss of the answers; it stops in its third step where a file says so."""

    record = StageRecord(targets="assistant", starts_from=("resampler",), trains_language=True)
    steps = 0

    def forward(self, batch: Any) -> Any:
        self.steps += self.training
        if self.steps == 3 and Path("stop").exists():
            raise KeyboardInterrupt
        return super().forward(batch)


Backbone = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PANOLLAVA_ALLOW", "")


def model(backbone: Backbone, **options: Any) -> PanoLlava:
    """A new small model."""
    options = {"crop": {"type": "e2p", "overlap": 0.0}, "latent_width": 32, "lora": {"rank": 4}, **options}
    return PanoLlava.from_backbones(str(backbone("siglip")), str(backbone("qwen3")), **options)


def trainer(pano: PanoLlava, folder: str = "mine", **options: Any) -> Trainer:
    """Three steps an epoch."""
    settings = SETTINGS | options.pop("settings", {})
    options = {"epochs": 1, "batch_size": 4, "lr": 1e-3, **options}
    return Trainer(pano, Shades("train", 12), Shades("val", 6), folder=folder, settings=settings, **options)


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Of the best checkpoint of the only stage in a run folder."""
    (found,) = Path(folder).glob("*/*/checkpoint_metadata.json")
    return read_weights(find_checkpoint(found.parent))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_its_numbers_are_those_of_the_command(backbone: Backbone) -> None:
    names = [f"vision.name={backbone('siglip')}", f"language.name={backbone('qwen3')}"]
    arguments = [*QUICK, *names, "crop=e2p", UNTRACKED, "stage=finetune", "init_from=none", "evaluation.enabled=false"]
    arguments.append("vision.attn_implementation=sdpa")  # as the language model's: from_backbones takes one for both
    run_train(*arguments, "experiment_name=command")
    values = plain(checked(config(*arguments)))
    section, options = values["model"], values["stage"]["finetune"]
    parts = {key: section[key] for key in ("resampler", "position", "projector", "join", "latent_width")}
    pano = model(
        backbone,
        **parts,
        crop=values["crop"],
        lora=lora_arguments(section["lora"]),
        attn_implementation=section["language"]["attn_implementation"],
    )
    train, val = (open_source(values["data"], split, pano.crop) for split in ("train", "val"))
    given = {key: options[key] for key in ("epochs", "batch_size", "lr")}
    result = Trainer(
        pano, train, val, folder="mine", settings={"trainer.log_every_steps": 1, **SETTINGS}, **given
    ).fit()
    expected = weights("runs/command")
    assert len(expected) > 10
    assert same(weights("mine"), expected)
    own = dict(pano.model.named_parameters())
    assert all(torch.equal(own[name], expected[name]) for name in expected if name in own)
    assert result["validation_loss"] == read_metadata(pano.source.parent)["validation_loss"]  # type: ignore[union-attr]


def test_it_resumes_a_stage_of_another_package(backbone: Backbone, tmp_path: Path) -> None:
    settings = {"trainer.save_every_steps": 1}
    trainer(model(backbone), "whole", stage=HaltedStage, epochs=2, settings=settings).fit()
    (tmp_path / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        trainer(model(backbone), "halves", stage=HaltedStage, epochs=2, settings=settings).fit()
    (tmp_path / "stop").unlink()
    with pytest.raises(ValueError, match=r"stage\.halted\.lr: 0\.001 there, 0\.01 now"):
        trainer(model(backbone), "halves", stage=HaltedStage, epochs=2, lr=1e-2, settings=settings).fit()
    pano = model(backbone)
    trainer(pano, "halves", stage=HaltedStage, epochs=2, settings=settings).fit()
    assert same(weights("halves"), weights("whole"))
    assert pano.metadata["stage"] == "halted"
    assert pano.generate(Shades("x", 1).panorama(0), "how bright?", max_new_tokens=4) is not None


def test_a_finished_training_is_loaded_and_opened(backbone: Backbone) -> None:
    first, again = model(backbone), model(backbone)
    done = trainer(first).fit()
    assert trainer(again).fit() == done
    assert trainer(first).fit() == done  # the model now comes from this very folder
    opened = PanoLlava.from_pretrained("mine")
    wanted = dict(first.model.named_parameters())
    for pano in (again, opened):
        found = dict(pano.model.named_parameters())
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_folder_of_other_settings_is_refused_and_can_be_replaced(backbone: Backbone) -> None:
    trainer(model(backbone)).fit()
    first = weights("mine")
    with pytest.raises(ValueError, match=r"stage\.finetune\.lr: 0\.001 there, 0\.002 now.*overwrite=true"):
        trainer(model(backbone), lr=2e-3).fit()
    assert same(weights("mine"), first)
    trainer(model(backbone), lr=2e-3, settings={"overwrite": True}).fit()
    assert not same(weights("mine"), first)


def test_stages_follow_each_other_in_one_model(backbone: Backbone) -> None:
    pano = model(backbone, crop={"type": "e2p", "overlap": 0.5})
    trainer(pano, "first", stage="vision").fit()
    assert VisionPart.from_pretrained("first").pano is None
    trained = {name: value.clone() for name, value in pano.model.vision.resampler.named_parameters()}
    assert all(torch.equal(trained[name], weights("first")[f"vision.resampler.{name}"]) for name in trained)
    trainer(pano, "second").fit()
    started = Path(pano.source.parent / "config.yaml").read_text()  # type: ignore[union-attr]
    assert f"init_from: {Path('first').resolve()}" in started
    assert PanoLlava.from_pretrained("second").metadata["stage"] == "finetune"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stage": "finetun"}, "stage='finetun': allowed are vision, resampler, finetune, detect, and classes"),
        ({"stage": InstructStage}, "states no record"),
        ({"epochs": 0}, "stage.finetune.epochs=0"),
        ({"lr": -1.0}, "stage.finetune.lr=-1.0"),
        ({"settings": {"optim.warmup": 1}}, "optim.warmup is not a key here"),
        ({"settings": {"model.join": "mean"}}, "settings: model.join cannot be set"),
    ],
)
def test_what_is_wrong_is_named(backbone: Backbone, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        trainer(model(backbone), **options)
    assert not Path("mine").exists()


def test_what_is_no_data_set_or_names_no_backbones_is_refused(backbone: Backbone) -> None:
    pano = model(backbone)
    with pytest.raises(TypeError, match=r"val=\[\] has no .*panorama"):
        Trainer(pano, Shades("train", 2), [])  # type: ignore[arg-type]
    places = WorldSource(split="train", scenes=2)
    with pytest.raises(TypeError, match=r"val=.* has no boxes, class_names, places, which stage=detect learns from"):
        Trainer(pano, places, Shades("val", 2), stage="detect")
    assert Trainer(pano, places, places, stage="detect").stage == "detect"
    with pytest.raises(TypeError, match="pano='runs/demo' is no PanoLlava"):
        Trainer("runs/demo", Shades("train", 2), Shades("val", 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="The val split of none has no records"):
        Trainer(pano, Shades("train", 2), Shades("none", 0), settings=SETTINGS).fit()
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (DataSource,), {"name": "half"})()
    pano.save_pretrained("export")
    with pytest.raises(ValueError, match="pano is an export"):
        trainer(PanoLlava.from_pretrained("export"))


def test_a_merged_adapter_is_not_trained_further(backbone: Backbone) -> None:
    pano = model(backbone)
    trainer(pano).fit()
    pano.merge_lora_weights()
    with pytest.raises(ValueError, match="was merged"):
        trainer(pano, "next")


def test_what_a_data_set_need_not_say() -> None:
    source = Shades("val", 3)
    asked = source.questions()[3]
    assert (asked.question, asked.references, asked.history) == ("sure?", ("yes",), (("how bright?", "grey"),))
    assert source.question_panorama(asked)[0, 0, 0] == SHADES["grey"]
    assert source.question_picture(asked) == source.image_id(1) == "a wall: grey"
    assert (source.directions(0), source.rotated_record(0, 0, 0.0)) == ("unknown", source.record(0, 0))


def test_the_package_shows_it(backbone: Backbone) -> None:
    assert {"PanoLlava", "Trainer", "__version__"} <= set(dir(panollava))
    shown = repr(trainer(model(backbone)))
    assert "train=train (12), val=val (6), stage=finetune" in shown
    assert str(Path("mine").absolute()) in shown
