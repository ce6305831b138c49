"""The front matter of a card, and where licences come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.models import opened

from panollava.model.hub import SHIPPED, public_name
from panollava.model_card import model_card

Backbone = Callable[[str], Path]
VISION, LANGUAGE = "google/siglip-base-patch16-224", "Qwen/Qwen2.5-0.5B"
FORM: dict[str, Any] = {"name": "pano", "layout": "llava", "precision": "bf16", "adapter": "without an adapter"}


def cached(cache: Path, name: str, card: str) -> None:
    """A card in the hub's cache."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots/abc").mkdir(parents=True)
    (repository / "snapshots/abc/README.md").write_text(card)


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("license: apache-2.0", "license: 'apache-2.0'"), {"license": "apache-2.0"}),
        (("license: mit", "license: apache-2.0"), {"license": "other", "license_name": "those-of-the-backbones"}),
        (("license: mit", "tags: []"), {"license": "other", "license_name": "unknown"}),
        (("license: other\nlicense_name: gemma",) * 2, {"license": "gemma"}),
        (("license: [mit]",) * 2, {"license": "other", "license_name": "those-of-the-backbones"}),
    ],
)
def test_hub_names_are_base_models_with_the_licences_of_their_cards(
    licences: tuple[str, str],
    expected: dict[str, str],
    backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, licence in zip((VISION, LANGUAGE), licences, strict=True):
        cached(tmp_path, name, f"---\n{licence}\n---\nlicense: none\n")
    pano = opened(backbone)
    pano.model.config.vision_name, pano.model.config.language_name = VISION, LANGUAGE
    card = model_card(pano, **FORM)
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == [VISION, LANGUAGE]
    assert front["library_name"] == "transformers"
    assert {key: value for key, value in front.items() if key.startswith("license")} == expected
    assert "Not recorded" in card
    assert "Not evaluated" in card


def test_a_backbone_without_a_name_has_no_licence_of_the_working_directory(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "LICENSE").write_text("The Licence of Something Else")
    pano = opened(backbone)
    pano.model.config.vision_name = pano.model.config.language_name = ""
    monkeypatch.chdir(tmp_path)
    assert yaml.safe_load(model_card(pano, **FORM).split("---")[1])["license_name"] == "unknown"


def test_a_name_without_places_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google/own").mkdir(parents=True)
    names = {
        VISION: VISION,
        "gpt2": "gpt2",
        "google/own": "own",  # a folder here
        str(tmp_path / "google"): "google",
        "/gone/for/ever/siglip/": "siglip",
        "~/models/siglip": "siglip",
        "../siglip": "siglip",
        r"C:\models\siglip": "siglip",
        "": "",
    }
    assert {name: public_name(name) for name in names} == names
    assert public_name(".") == tmp_path.name
    assert (
        public_name(SHIPPED["panollava/tiny-siglip"]) == public_name("panollava/tiny-siglip") == "panollava/tiny-siglip"
    )
