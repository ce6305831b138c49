"""Exports and adapters made to harm: refused with a sentence wherever they are opened, and nothing is unpickled."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.hostile import bomb, with_pickle_for_weights, with_pickle_in_its_index, with_pickled_adapter
from support.runs import command, predictions

from panollava import eval as evaluation
from panollava import export, predict
from panollava.model.api import PanoLlava
from panollava.model.lora import has_lora

Change = Callable[[Path], None]
Refused = Callable[..., str]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def kept(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with its adapter beside it."""
    folder = tmp_path_factory.mktemp("export") / "kept"
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, export, f"checkpoint={recorded / 'runs/recorded'}", f"out={folder}", "merge=false") == 0
    return folder


@pytest.fixture(scope="module")
def pano(kept: Path) -> PanoLlava:
    """The same, opened, with its adapter attached."""
    return PanoLlava.from_pretrained(kept)


def ask(refused: Refused, folder: str) -> str:
    """What a command says of an export."""
    cv2.imwrite("grey.png", np.full((64, 128, 3), 128, np.uint8))
    return refused(predict, f"checkpoint={folder}", "image=grey.png", "question=what")


def only_a_pickle(folder: Path) -> None:
    """As older versions of peft write it."""
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(bomb())


def a_pickle_renamed(folder: Path) -> None:
    """By the name of safetensors."""
    (folder / WEIGHTS).write_bytes(bomb())


def settings(**changes: Any) -> Change:
    """Other settings for the same weights."""

    def change(folder: Path) -> None:
        document = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**document, **changes}))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    """Other weights for the same settings."""

    def changed(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return changed


ADAPTERS: dict[str, tuple[Change, str]] = {
    "pickle": (only_a_pickle, r"adapter_model\.safetensors not found\. Pickled adapters .* are never opened"),
    "renamed": (a_pickle_renamed, r"adapter_model\.safetensors is not a readable safetensors file"),
    "rank": (settings(r=3), r"states rank 3, adapter_model\.safetensors has 4"),
    "all-memory": (settings(r=10**12), r"states rank 10{12}, "),
    "all-memory-of-one": (settings(rank_pattern={".*": 10**12}), r"states rank 4, 10{12}, "),
    "no-rank": (settings(r="4"), r"states rank 4, |is not a LoRA's settings"),
    "many-layers": (settings(layer_replication=[[0, 2]] * 9), r"layer_replication makes a model of other layers"),
    "code": (settings(megatron_config={"a": 1}, megatron_core="evil"), r"megatron_config makes peft import code"),
    "kind": (settings(peft_type="PREFIX_TUNING"), r"is of 'PREFIX_TUNING', not of LORA"),
    "targets": (settings(target_modules=["evil"]), r"'evil' not found among the linear layers"),
    "expression": (settings(target_modules="(((("), r"does not fit this language model"),
    "shapes": (weights(lambda held: {k: torch.cat([v, v], 1) for k, v in held.items()}), r"does not fit this language"),
    "fewer": (
        weights(lambda held: dict(list(held.items())[1:])),
        r"does not fit this language model: 1 weights are in",
    ),
    "nan": (weights(lambda held: {k: v * torch.nan for k, v in held.items()}), r"holds NaN or infinite numbers"),
    "whole": (weights(lambda held: {k: v.to(torch.int64) for k, v in held.items()}), r"int64; weights are float"),
    "none": (weights(lambda held: {}), r"states rank 4, adapter_model\.safetensors has none"),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_refused_and_leaves_the_model_as_it_was(
    traced: None, kept: Path, pano: PanoLlava, tmp_path: Path, kind: str
) -> None:
    change, said = ADAPTERS[kind]
    folder = shutil.copytree(kept / "lora_weights", tmp_path / "adapter")
    change(folder)
    before = {name: weight.clone() for name, weight in pano.model.language_model.named_parameters()}
    with pytest.raises((ValueError, FileNotFoundError), match=said) as refused:
        pano.load_lora_weights(folder, "other")
    assert "\n" not in str(refused.value)
    assert pano.lora_names == ["default"]
    after = dict(pano.model.language_model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


@pytest.mark.parametrize("kind", ["pickle", "renamed", "rank", "shapes"])
def test_an_export_beside_such_an_adapter_is_refused(
    traced: None, refused: Refused, kept: Path, tmp_path: Path, kind: str
) -> None:
    change, said = ADAPTERS[kind]
    shutil.copytree(kept, tmp_path / "kept")
    change(tmp_path / "kept/lora_weights")
    message = ask(refused, "kept")
    assert re.search(said, message)


def test_a_first_adapter_that_does_not_fit_is_taken_off_again(traced: None, kept: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(kept / "lora_weights", tmp_path / "adapter")
    shutil.copytree(kept, tmp_path / "plain", ignore=shutil.ignore_patterns("lora_weights"))
    ADAPTERS["shapes"][0](folder)
    pano = PanoLlava.from_pretrained("plain")
    names = list(dict(pano.model.language_model.named_parameters()))
    with pytest.raises(ValueError, match="does not fit"):
        pano.load_lora_weights(folder)
    assert not has_lora(pano.model)
    assert list(dict(pano.model.language_model.named_parameters())) == names
    pano.load_lora_weights(kept / "lora_weights")


def test_what_an_adapter_names_is_neither_fetched_nor_imported(
    traced: None, kept: Path, pano: PanoLlava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    folder = shutil.copytree(kept / "lora_weights", tmp_path / "adapter")
    (tmp_path / "evil.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    reached: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _self, address: reached.append(address))
    start = {"cache_file": "evil.pt", "covariance_file": "evil.pt"}
    settings(
        base_model_name_or_path="evil/remote-model",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
        corda_config=start,
        eva_config={},
        task_type="SEQ_CLS",
    )(folder)
    monkeypatch.setattr(logging.getLogger("panollava"), "propagate", True)
    pano.load_lora_weights(folder, "elsewhere")
    assert "was trained on evil/remote-model and is attached to" in caplog.text
    assert pano.lora_names == ["default", "elsewhere"]
    assert (reached, "evil" in sys.modules) == ([], False)
    pano.model.language_model.delete_adapter("elsewhere")
    pano.use_lora("default")


def with_a_checkpoint_in_timms_arguments(folder: Path) -> None:
    """An encoder of timm that names a file of its own."""
    (folder / "weights.pth").write_bytes(bomb())
    config = json.loads((folder / "config.json").read_text())
    arguments = {"checkpoint_path": str(folder / "weights.pth")}
    config["vision_config"] = {
        "model_type": "timm_wrapper",
        "architecture": "vit_tiny_patch16_224",
        "model_args": arguments,
    }
    (folder / "config.json").write_text(json.dumps(config))


def with_a_pickle_alone(folder: Path) -> None:
    """As older versions of transformers write it."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(bomb())


EXPORTS = [
    (with_pickle_in_its_index, "names 'weights.bin', which is no safetensors file beside it"),
    (with_pickled_adapter, "holds a peft adapter"),
    (with_pickle_for_weights, "a file of its weights is not safetensors"),
    (with_a_pickle_alone, "model.safetensors"),
    (with_a_checkpoint_in_timms_arguments, "which timm would unpickle"),
]


@pytest.mark.parametrize(("change", "said"), EXPORTS)
def test_an_export_is_refused(
    traced: None, refused: Refused, kept: Path, tmp_path: Path, change: Change, said: str
) -> None:
    shutil.copytree(kept, tmp_path / "kept", ignore=shutil.ignore_patterns("lora_weights"))
    change(tmp_path / "kept")
    assert said in ask(refused, "kept")


def test_a_run_is_opened_from_its_checkpoint_whatever_lies_in_lora_weights(
    traced: None, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its checkpoint holds of the adapter counts; the folder beside it is for others, and is not read."""
    shutil.copytree(recorded / "runs", tmp_path / "runs", symlinks=True)
    (adapter,) = Path("runs/recorded/finetune").glob("*/lora_weights")
    asked = ["checkpoint=runs/recorded", "tracking=none", "num_workers=0", "device=cpu", "max_samples=3", "blank=false"]
    assert command(monkeypatch, evaluation, *asked, "results_dir=good") == 0
    only_a_pickle(adapter)
    assert command(monkeypatch, evaluation, *asked, "results_dir=bad") == 0
    assert predictions("recorded", "bad") == predictions("recorded", "good")
