"""Folders made to harm: every command refuses them with a sentence, nothing is unpickled and no code of theirs runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.hostile import UNPICKLED, bomb, with_pickle_for_weights, with_pickle_in_its_index, with_pickled_adapter
from support.runs import QUICK, UNTRACKED, backbones, stage_folder

from panollava import eval as evaluation
from panollava import export, predict, train
from panollava.checkpoint import BEST, TRAINED, follow

Backbone = Callable[[str], Path]


def test_the_trace_finds_a_pickle(traced: None) -> None:
    pickle.loads(pickle.dumps(Path("x")))
    assert any("Path" in name for name in UNPICKLED)
    UNPICKLED.clear()


def test_checkpoints(
    recorded: Path, recorded_arguments: list[str], traced: None, refused: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copytree(recorded / "runs", tmp_path / "runs", symlinks=True)
    folder = stage_folder("recorded", "finetune")
    best = follow(folder / BEST)
    assert best is not None
    good = (best / TRAINED).read_bytes()
    cv2.imwrite("grey.png", np.full((64, 128, 3), 128, np.uint8))
    quiet = ["tracking=none", "num_workers=0", "device=cpu"]
    asked = [*recorded_arguments, UNTRACKED, "stage=finetune", "experiment_name=y"]
    commands = [
        (evaluation, ["checkpoint=runs/recorded", *quiet]),
        (predict, ["checkpoint=runs/recorded", "image=grey.png", "question=what"]),
        (export, ["checkpoint=runs/recorded", "out=export"]),
        (train, [*asked, f"init_from={best}"]),
        (train, [*asked, f"resume={best}"]),
    ]
    for module, typed in commands:
        (best / TRAINED).write_bytes(bomb())
        assert "trained.safetensors is not a readable safetensors file" in refused(module, *typed)
    weights = load_file(recorded / best.relative_to(Path()) / TRAINED)
    first = sorted(weights)[0]
    for wrong, said in [
        (torch.full_like(weights[first], torch.nan), "NaN or infinite"),
        (torch.ones(3, 5), "does not fit the model"),
        (torch.ones_like(weights[first], dtype=torch.int64), "weights are floating-point"),
    ]:
        save_file({**weights, first: wrong}, best / TRAINED)
        assert said in refused(commands[0][0], *commands[0][1])
    lacking = next(name for name in sorted(weights) if name.startswith("vision.resampler."))
    save_file({name: value for name, value in weights.items() if name != lacking}, best / TRAINED)
    assert f"lacks 1 weights (first: {lacking}), which would be random" in refused(commands[0][0], *commands[0][1])
    (best / TRAINED).write_bytes(good)
    metadata = json.loads((folder / "checkpoint_metadata.json").read_text())
    metadata["model"]["resampler"]["type"] = "../../evil"
    (folder / "checkpoint_metadata.json").write_text(json.dumps(metadata))
    assert "there is no '../../evil'" in refused(export, "checkpoint=runs/recorded", "out=export")
    assert not Path("export").exists()


CODE = "from pathlib import Path\nPath('exploded').touch()\n"


def with_code(folder: Path) -> None:
    """A model of a kind that transformers does not know, and the code for it."""
    config = json.loads((folder / "config.json").read_text())
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoImageProcessor")
    config |= {"model_type": "evil", "auto_map": dict.fromkeys(names, "evil.Evil")}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(CODE)


FOLDERS = [
    (with_code, "could not be opened"),
    (with_pickle_in_its_index, "names 'weights.bin', which is no safetensors file"),
    (with_pickled_adapter, "holds a peft adapter"),
    (with_pickle_for_weights, "not safetensors"),
]


@pytest.mark.parametrize(("change", "said"), FOLDERS)
@pytest.mark.parametrize("part", ["vision", "language"])
def test_backbones(
    backbone: Backbone,
    traced: None,
    refused: Callable[..., str],
    tmp_path: Path,
    change: Callable[[Path], None],
    said: str,
    part: str,
) -> None:
    shutil.copytree(backbone("siglip" if part == "vision" else "qwen3"), tmp_path / "model")
    change(tmp_path / "model")
    typed = [*backbones(backbone), *QUICK, UNTRACKED, f"{part}.name={tmp_path / 'model'}", "experiment_name=x"]
    message = refused(train, *typed)
    assert said in message
    assert f"model.{part}.name=" in message


def test_a_checkpoint_named_in_timms_arguments(
    backbone: Backbone, traced: None, refused: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copytree(backbone("timm_vit"), tmp_path / "model")
    (tmp_path / "weights.pth").write_bytes(bomb())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["model_args"] = {**(config.get("model_args") or {}), "checkpoint_path": str(tmp_path / "weights.pth")}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    typed = [*backbones(backbone), *QUICK, UNTRACKED, f"vision.name={tmp_path / 'model'}", "experiment_name=x"]
    assert "which timm would unpickle" in refused(train, *typed)
