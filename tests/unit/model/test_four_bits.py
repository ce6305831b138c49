"""The language model in four bits: what transformers is asked for, and training where bitsandbytes is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from support.models import opened
from support.runs import QUICK, UNTRACKED, backbones, config, run_train
from torch import nn
from transformers import AutoModelForCausalLM

from panollava.model.api import PanoLlava
from panollava.model.backbones import Backbones
from panollava.run import evaluate
from panollava.run.config_check import checked

Backbone = Callable[[str], Path]


class Asked(Exception):
    """Ends a load where it would begin."""


def test_what_transformers_is_asked_for(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def from_checkpoint(_checkpoint: Path, settings: dict[str, Any], **_options: Any) -> Any:
        seen.append(settings["model"]["language"])
        raise Asked

    monkeypatch.setattr(PanoLlava, "from_checkpoint", from_checkpoint)
    monkeypatch.setattr(evaluate, "awaits_model", lambda run: True)
    monkeypatch.setattr(evaluate, "read_metadata", lambda folder: {})
    monkeypatch.setattr(evaluate, "find_checkpoint", lambda folder: folder)
    model = {"language": {"name": "a", "load_in_4bit": True}}
    run = SimpleNamespace(
        cfg=SimpleNamespace(stage=SimpleNamespace(run=["finetune"])),
        procs=SimpleNamespace(is_main=True),
        tracker=SimpleNamespace(run_id="1", model_form="export"),
        experiment=SimpleNamespace(stage_folder=Path),
        backbones=SimpleNamespace(model=model),
    )
    with pytest.raises(Asked):
        evaluate.keep_model(cast(Any, run))
    assert seen == [{"name": "a", "load_in_4bit": False}]
    assert model["language"]["load_in_4bit"]


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes, the extra 4bit")
def test_an_adapter_trains_on_four_bits(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Blocks of 64 weights share a scale, so that the widths of the smallest models are too small.
    asked = [f"vision.name={backbone('siglip')}", *QUICK, UNTRACKED, "stage=finetune", "evaluation.max_samples=1"]
    run_train(*asked, "language.load_in_4bit=true", "experiment_name=x", "trainer.max_steps=2")
    pano = PanoLlava.from_pretrained("runs/x")
    assert any(weight.dtype is torch.uint8 for weight in pano.model.language_model.parameters())
    pano.merge_lora_weights()
    with pytest.raises(ValueError, match=r"in four bits.*in_4bit=False"):
        pano.save_pretrained("export")
    whole = PanoLlava.from_pretrained("runs/x", in_4bit=False)
    assert all(weight.dtype is torch.float32 for weight in whole.model.language_model.parameters())
    whole.merge_lora_weights()
    whole.save_pretrained("export")
    assert PanoLlava.from_pretrained("export").lora_names == []
