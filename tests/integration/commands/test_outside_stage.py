"""A fourth stage in a package of its own trains, resumes, is evaluated and opened, and no file of ours knows it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.runs import (
    QUICK,
    UNTRACKED,
    assert_same_bits,
    backbones,
    checkpoint_tensors,
    command,
    config,
    metrics,
    predictions,
    run_train,
    stage_folder,
)

from panollava import eval as evaluation
from panollava import train
from panollava.checkpoint import BEST, LAST, follow, read_weights
from panollava.component import allow
from panollava.model.api import PanoLlava, VisionPart
from panollava.run.config_check import checked
from panollava.run.run import plain
from panollava.run_folder import find_run_folder
from panollava.stages.registry import stages_of, with_defaults

PACKAGE = '''
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge
from torch import nn

from panollava.stages.language import InstructStage
from panollava.stages.protocol import Stage, StepOutput
from panollava.stages.registry import StageRecord


class ToyStage(InstructStage):
    """The loss of the answers times a number; it stops in its third step where a file says so."""

    record = StageRecord(targets="assistant", starts_from=("resampler",), trains_language=True)

    def __init__(self, model, setup, *, scale: Annotated[float, Ge(0)] = 2.0) -> None:
        super().__init__(model, setup)
        self.scale, self.steps = scale, 0

    def forward(self, batch):
        self.steps += self.training
        if self.steps == 3 and Path("stop").exists():
            raise KeyboardInterrupt
        output = super().forward(batch)
        return StepOutput({name: self.scale * loss for name, loss in output.losses.items()}, output.metrics)


class SelfStage(ToyStage):
    record = StageRecord(targets="assistant", starts_from=("toy",))


class WordsStage(ToyStage):
    record = StageRecord(targets="words", starts_from=("resampler",))


class TextStage(ToyStage):
    record = StageRecord(targets="text", starts_from="resampler")


class NoStage:
    record = StageRecord(targets="text", starts_from=("resampler",))


class BrightStage(Stage):
    """A panorama's brightness from its tokens: reads pictures alone."""

    record = StageRecord(starts_from=("vision",))

    def __init__(self, vision, setup) -> None:
        super().__init__(setup)
        self.vision = vision
        self.head = nn.Linear(vision.width, 1)
        vision.tower.train_only(setup.vision_blocks)
        vision.resampler.requires_grad_(True)

    def counts(self, batch):
        return {"bright": float(len(batch))}

    def forward(self, batch):
        tokens = self.vision(
            batch.pixel_values,
            cameras=batch.cameras,
            view_mask=batch.view_mask,
            vision_features=batch.vision_features,
        )
        found = self.head(tokens.float().mean(dim=(1, 2))).squeeze(-1)
        return StepOutput({"bright": ((found - 0.5) ** 2).sum()})
'''
TOY = ("+stage.toy.type=toy_package.stage:ToyStage", "+stage.toy.batch_size=4", "stage.run=[vision,resampler,toy]")
BRIGHT = ("+stage.bright.type=toy_package.stage:BrightStage", "stage.run=[vision,bright]")


@pytest.fixture
def quick(backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a small run, with the package on the path and nothing allowed."""
    (tmp_path / "packages" / "toy_package").mkdir(parents=True)
    (tmp_path / "packages" / "toy_package" / "__init__.py").touch()
    (tmp_path / "packages" / "toy_package" / "stage.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("PANOLLAVA_ALLOW", "")
    monkeypatch.chdir(tmp_path)
    forget()
    return [*backbones(backbone), *QUICK, UNTRACKED, "evaluation.max_samples=4", "trainer.save_every_steps=1"]


def forget() -> None:
    """Takes the package out of this process, as if it was never imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "toy_package"]:
        del sys.modules[name]


@pytest.mark.slow
def test_a_stage_of_another_package_trains_resumes_and_answers(
    quick: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, train, *quick, *TOY, "experiment_name=whole") == 0
    Path("stop").touch()
    assert command(monkeypatch, train, *quick, *TOY, "experiment_name=cut") == 130
    Path("stop").unlink()
    assert command(monkeypatch, train, *quick, *TOY, "experiment_name=cut") == 0
    assert "Stage toy resumes from" in capfd.readouterr().err
    one, other = (stage_folder(name, "toy") for name in ("whole", "cut"))
    for link in (BEST, LAST):
        found = [follow(folder / link) for folder in (one, other)]
        assert_same_bits(*(checkpoint_tensors(each) for each in found if each))
    assert predictions("whole") == predictions("cut")
    assert metrics("whole")["settings"]["stage"] == "toy"

    state = json.loads(Path("runs/whole/stage_state.json").read_text())["stages"]["toy/anyres-e2p_mlp"]
    assert Path(state["started_from"]).parent == stage_folder("whole", "resampler")
    metadata = json.loads((one / "checkpoint_metadata.json").read_text())
    assert metadata["stage_record"]["type"] == "toy_package.stage:ToyStage"
    assert metadata["stage_settings"]["lr"] == config().stage.finetune.lr  # of our stage with the same targets
    assert find_run_folder(Path("runs/whole")) == Path(one)

    monkeypatch.setenv("PANOLLAVA_ALLOW", "")
    forget()
    pano = PanoLlava.from_pretrained("runs/whole")  # its model is ours: nothing of the package is needed
    assert pano.metadata["stage"] == "toy"
    weights = dict(pano.model.named_parameters())
    tensors = read_weights(one / BEST)
    assert any("lora_" in name for name in tensors)
    assert torch.equal(weights["projector.layers.0.weight"], tensors["projector.layers.0.weight"])
    assert command(monkeypatch, evaluation, "checkpoint=runs/whole", UNTRACKED, "results_dir=again") == 0
    assert "toy_package" not in sys.modules
    assert command(monkeypatch, evaluation, "checkpoint=runs/whole", UNTRACKED, "loss=true", "results_dir=again") == 1
    assert "allow=toy_package" in capfd.readouterr().err
    allow("toy_package")
    assert command(monkeypatch, evaluation, "checkpoint=runs/whole", UNTRACKED, "loss=true", "results_dir=again") == 0
    said = capfd.readouterr().err
    assert f"Validation loss in training: {metadata['validation_loss']:.6f}" in said
    assert f"loss {metadata['validation_loss']:.6f}" in said


@pytest.mark.slow
def test_a_stage_that_reads_pictures_alone_is_measured_and_seen_with(
    quick: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run_train(*quick, *BRIGHT, "experiment_name=x")
    assert VisionPart.from_pretrained(stage_folder("x", "bright")).pano is None
    with pytest.raises(ValueError, match="cannot answer"):
        PanoLlava.from_pretrained("runs/x/bright/anyres-e2p_mlp")
    assert command(monkeypatch, evaluation, "checkpoint=runs/x/bright/anyres-e2p_mlp", UNTRACKED, "split=val") == 0
    loss = json.loads((stage_folder("x", "bright") / "checkpoint_metadata.json").read_text())["validation_loss"]
    assert f"bright {loss:.6f}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+stage.toy.scale=-1"], ["stage.toy.scale=-1", "greater than or equal to 0"]),
        (["+stage.toy.epochs=0"], ["stage.toy.epochs=0"]),
        (["+stage.toy.scael=1"], ["stage.toy.scael", "not a key"]),
        (["stage.run=[toy,resampler]"], ["the order is vision, resampler, finetune, detect, toy"]),
        (["stage.run=[toi]"], ["stage.run=['toi']", "toy"]),
        (["+stage.other.epochs=1"], ["stage.other is not a key", "type"]),
        (["stage.toy.type=toy_package.stage:Path"], ["no stage", "record"]),
        (["stage.toy.type=toy_package.stage:Gone"], ["no class Gone"]),
        (["stage.toy.type=toy_package.stage:SelfStage"], ["starts from itself"]),
        (["stage.toy.type=toy_package.stage:WordsStage"], ["targets='words'", "text, assistant or None"]),
        (["stage.toy.type=toy_package.stage:TextStage"], ["starts_from='resampler'", "tuple"]),
        (["stage.toy.type=toy_package.stage:NoStage"], ["no stage", "Derive it"]),
        (["+stage.finetune.type=toy_package.stage:ToyStage"], ["stage.finetune.type", "is a stage of panollava"]),
    ],
)
def test_what_is_wrong_with_its_section_is_said(quick: list[str], arguments: list[str], words: list[str]) -> None:
    allow("toy_package")
    with pytest.raises(ValueError, match="problem") as error:
        checked(config(*quick, *TOY, *arguments))
    assert [word for word in words if word not in str(error.value)] == []


def test_its_package_is_not_imported_where_nothing_allows_it(quick: list[str]) -> None:
    with pytest.raises(ValueError, match="allow=toy_package"):
        with_defaults(plain(config(*quick, *TOY).stage))  # what train does once it has allowed what its config names
    assert "toy_package" not in sys.modules


def test_the_example_of_the_guide_is_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text("utf-8")
    (text,) = re.findall(r"^```python\n# my_package/stage.py\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    (line,) = re.findall(r"^python -m panollava.train ('\+stage.harder.*)$", guide, re.MULTILINE)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "stage.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PANOLLAVA_ALLOW", "my_package")
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:  # of another test
        monkeypatch.delitem(sys.modules, name)
    cfg = checked(config(*shlex.split(line)))
    assert stages_of(cfg.stage)["harder"].starts_from == ("finetune", "resampler")
    assert (cfg.stage.harder.weight, cfg.stage.harder.lr) == (2, cfg.stage.finetune.lr)
    with pytest.raises(ValueError, match=r"stage\.harder\.weight=-2"):
        checked(config(*shlex.split(line.replace("weight=2", "weight=-2"))))
