"""The language model in four bits: what transformers is asked for, and training where bitsandbytes is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import QUICK, UNTRACKED, backbones, config, run_train
from transformers import AutoModelForCausalLM

from panollava.model.api import PanoLlava
from panollava.model.backbones import Backbones
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


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes, the extra 4bit")
def test_an_adapter_trains_on_four_bits(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Blocks of 64 weights share a scale, so that the widths of the smallest models are too small.
    asked = [f"vision.name={backbone('siglip')}", *QUICK, UNTRACKED, "stage=finetune", "evaluation.max_samples=1"]
    run_train(*asked, "language.load_in_4bit=true", "experiment_name=x", "trainer.max_steps=2")
    pano = PanoLlava.from_pretrained("runs/x")
    assert any(weight.dtype is torch.uint8 for weight in pano.model.language_model.parameters())
    whole = PanoLlava.from_pretrained("runs/x", in_4bit=False)
    assert all(weight.dtype is torch.float32 for weight in whole.model.language_model.parameters())
    whole.merge_lora_weights()
    whole.save_pretrained("export")
    assert PanoLlava.from_pretrained("export").lora_names == []
