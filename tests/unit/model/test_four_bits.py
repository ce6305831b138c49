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
    seen: dict[str, Any] = {}

    def from_pretrained(name: str, **options: Any) -> Any:
        seen.update(options)
        raise Asked

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr("panollava.model.hub.find_spec", lambda name: name)
    for four_bits in ("true", "false"):
        cfg = checked(config(*backbones(backbone), f"language.load_in_4bit={four_bits}"))
        with pytest.raises(Asked):
            Backbones(cfg.model, cfg.crop, dtype=torch.bfloat16).language  # noqa: B018
        asked = seen["quantization_config"]
        assert (asked is not None) == (four_bits == "true")
        if asked is not None:
            assert (asked.load_in_4bit, asked.bnb_4bit_quant_type, asked.bnb_4bit_use_double_quant) == (
                True,
                "nf4",
                True,
            )
            assert asked.bnb_4bit_compute_dtype is torch.bfloat16
        assert seen["dtype"] is torch.bfloat16


def test_without_bitsandbytes_the_message_names_the_extra(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("panollava.model.hub.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"load_in_4bit=true needs bitsandbytes.*pip install \"\.\[4bit\]\""):
        run_train(*backbones(backbone), *QUICK, UNTRACKED, "stage=finetune", "language.load_in_4bit=true")


def test_only_adapters_train_on_it() -> None:
    asked = ["language.load_in_4bit=true", "stage.finetune.language_trainable_blocks=1"]
    with pytest.raises(ValueError, match=r"load_in_4bit=true holds .* in four bits, which cannot train"):
        checked(config(*asked))


def test_four_bits_are_not_saved(backbone: Backbone, tmp_path: Path) -> None:
    pano = opened(backbone)
    layer = pano.model.language_blocks[0].mlp.up_proj
    layer.weight = nn.Parameter(torch.zeros(4, 1, dtype=torch.uint8), requires_grad=False)  # as of bitsandbytes
    with pytest.raises(ValueError, match=r"in four bits.*in_4bit=False"):
        pano.save_pretrained(tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_model_for_the_tracker_is_not_opened_in_four_bits(monkeypatch: pytest.MonkeyPatch) -> None:
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
