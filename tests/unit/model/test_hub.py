"""Language models and tokenizers open from folders; what cannot be opened is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import torch
from support.hub_folders import small_clip
from transformers import AutoModelForCausalLM, AutoTokenizer

from panollava.evaluation.clip import Clip
from panollava.model import hub
from panollava.model.hub import load_language_model, load_tokenizer
from panollava.model.vision import VisionTower

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


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked whether it answers, where nothing does; any other request is an error. The cache is empty."""
    found: list[str] = []

    def probed(address: str, **_options: object) -> None:
        found.append(address)
        raise requests.ConnectionError("no network")

    def refused() -> None:
        raise AssertionError("the hub was asked for a file")

    monkeypatch.setattr(requests, "head", probed)
    monkeypatch.setattr("huggingface_hub.utils._http.get_session", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_probed", {})
    return found


def cached(folder: Path, place: Path, name: str) -> str:
    """The name of a model that the hub's cache has."""
    model, commit = place / "hub" / f"models--some--{name}", "c" * 40
    shutil.copytree(folder, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    return f"some/{name}"


def test_a_hub_that_does_not_answer_is_asked_once(
    asked: list[str], backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without this, opening both backbones would wait 23 seconds for each of 16 files that are in the cache."""
    VisionTower.from_pretrained(cached(backbone("siglip"), tmp_path, "encoder"))
    language = cached(backbone("qwen3"), tmp_path, "language")
    load_language_model(language)
    load_language_model(language, weights=False)
    load_tokenizer(language)
    Clip(cached(small_clip(tmp_path / "clip"), tmp_path, "clip"))
    assert asked == ["https://huggingface.co"]
    assert caplog.text.count("does not answer: models of the hub are opened from its cache") == 1
    with pytest.raises(FileNotFoundError, match=r"'no/body'.*cache of the Hugging Face hub, which does not answer"):
        load_language_model("no/body")
    assert len(asked) == 1


def test_a_tokenizer_of_mistral_common_is_never_asked_for(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers prefers it where that package is installed and a model has tekken.json; it has no chat template."""
    asked: dict[str, object] = {}
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name, **options: asked.update(options))
    load_tokenizer(backbone("mistral"))
    assert asked["mistral_format"] is False
    monkeypatch.undo()
    tokenizer = load_tokenizer(backbone("mistral"))
    assert "mistral_format" not in tokenizer.init_kwargs  # it would be written into exports


def test_a_folder_asks_nothing_and_a_network_that_comes_back_is_found(
    asked: list[str], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_tokenizer(backbone("qwen3"))
    VisionTower.from_pretrained(backbone("siglip"))
    assert asked == []
    assert hub.hub_place("no/body", None) == {"revision": "main", "local_files_only": True}
    monkeypatch.setattr(requests, "head", lambda address, **_options: SimpleNamespace(close=lambda: None))
    assert hub.hub_place("no/body", "v1") == {"revision": "v1", "local_files_only": True}
    monkeypatch.setattr(hub, "PROBED_FOR_S", 0.0)
    assert hub.hub_place("no/body", "v1") == {"revision": "v1", "local_files_only": False}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.hub_place("no/body", None)["local_files_only"]
