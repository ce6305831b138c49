"""Language models and tokenizers open from folders; what cannot be opened is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from panollava.model.hub import load_language_model, load_tokenizer

Backbone = Callable[[str], Path]


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "mistral"])
@torch.no_grad()
def test_a_language_model_is_transformers_own(name: str, backbone: Backbone) -> None:
    model = load_language_model(backbone(name), dtype=torch.bfloat16)
    expected = AutoModelForCausalLM.from_pretrained(backbone(name), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.training
    ids = torch.tensor([load_tokenizer(backbone(name))("what is it?")["input_ids"]])
    assert torch.equal(model(ids).logits, expected.eval()(ids).logits)


def test_what_is_no_language_model_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.language\.name=.*'siglip' model.*Qwen3 families"):
        load_language_model(backbone("siglip"))
    with pytest.raises(FileNotFoundError, match=r"model\.language\.name='/nowhere/lm' could not be opened"):
        load_language_model("/nowhere/lm")
    with pytest.raises(FileNotFoundError, match=r"folder without config\.json"):
        load_tokenizer(tmp_path)


def test_missing_parts_are_named(backbone: Backbone, tmp_path: Path) -> None:
    folder = tmp_path / "lm"
    folder.mkdir()
    shutil.copy(backbone("llama") / "config.json", folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"never opened.*AutoModelForCausalLM.*AutoTokenizer.*=converted"):
        load_language_model(folder)
    with pytest.raises(FileNotFoundError, match=r"no tokenizer that opens"):
        load_tokenizer(folder)
