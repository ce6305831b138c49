"""model.tokens_per_side by the command line: a pooled run from training to its detection stage and its answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs import QUICK, UNTRACKED, backbones, command, run_train

from panollava import eval as evaluate
from panollava import train
from panollava.model.api import PanoLlava
from panollava.model.detector import PanoDetector

Backbone = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
POOLED = ["model.tokens_per_side=3", "experiment_name=x"]


@pytest.fixture
def arguments(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quick pooled run, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return [*backbones(backbone), *QUICK, UNTRACKED, *POOLED]


def test_a_pooled_run_trains_evaluates_and_detects(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    run_train(*arguments, "trainer.max_steps=1", "stage.run=[vision,resampler,finetune,detect]")
    said = capsys.readouterr().err
    assert "45 image tokens a panorama" in said
    assert "Its paired columns" in said
    assert all(f"{name} step 1: validation loss" in said for name in ("vision", "resampler", "finetune", "detect"))
    assert PanoLlava.from_pretrained("runs/x").model.vision.token_grid == (3, 3)
    detector = PanoDetector.from_pretrained("runs/x")
    assert detector.vision.token_grid == (3, 3)
    assert command(monkeypatch, evaluate, "runs/x/finetune/anyres-e2p_mlp", "world_seed=7", "world_scenes=1") == 0
    documents = [json.loads(path.read_text())["settings"] for path in Path("results").rglob("metrics.json")]
    answered = [one for one in documents if "image_tokens" in one]
    assert len(answered) == 2  # after training, and of the command
    assert all((one["image_tokens"], one["conditions"]["tokens_per_side"]) == (45, 3) for one in answered)
    assert command(monkeypatch, train, *arguments, "model.tokens_per_side=2") == 1
    assert "model.tokens_per_side: 3 there, 2 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["model.tokens_per_side=5"], "the resampler gives 4 x 4 tokens a view, so 1 to 4 are possible"),
        (["resampler=qformer", "resampler.shortcut=false"], "model.resampler.queries of qformer"),
        (["model.tokens_per_side=0"], "model.tokens_per_side=0"),
        (["model.tokens_per_side=2.5"], "model.tokens_per_side=2.5"),
    ],
)
@pytest.mark.parametrize("dry", ["false", "plan"])
def test_what_cannot_be_pooled_is_refused_before_training(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture, typed: list[str], said: str, dry: str
) -> None:
    assert command(monkeypatch, train, *arguments, *typed, f"dry_run={dry}") == 1
    captured = capsys.readouterr()
    message = captured.out + captured.err
    assert said in message
    assert "Traceback" not in message
    assert not Path("runs").exists()
