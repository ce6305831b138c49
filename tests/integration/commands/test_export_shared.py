"""Exports for others: LLaVA's layout without this package, the model card, no paths, and the Hugging Face hub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from getpass import getuser
from pathlib import Path
from typing import Any

import cv2
import pytest
import requests
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.runs import QUICK, command

from panollava import chat, explain, export, predict, train
from panollava.data.world import WorldSource
from panollava.model.api import PanoLlava, VisionPart
from panollava.model.llava import TOLERANCE

Capture = pytest.CaptureFixture[str]
Export = Callable[..., tuple[int, str]]
QUESTION = "what is there?"
STOCK = """
import sys
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration
import torch

folder, count = sys.argv[1], int(sys.argv[2])
model, processor = LlavaForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
views = [{"type": "image", "image": Image.open(f"view_{number}.png")} for number in range(count)]
messages = [{"role": "user", "content": [*views, {"type": "text", "text": "what is there?"}]}]
options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
with torch.no_grad():
    inputs = processor.apply_chat_template(messages, **options)
    save_file({"ids": inputs["input_ids"], "logits": model(**inputs).logits}, "stock.safetensors")
assert "panollava" not in sys.modules
"""


@pytest.fixture(scope="module")
def fitting(backbone: Callable[[str], Path], talkative: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a run whose model fits LLaVA's layout, with licences in its backbones' folders."""
    folder = tmp_path_factory.mktemp("fitting")
    names = {"vision": backbone("siglip"), "language": talkative}
    for part, source in names.items():
        shutil.copytree(source, folder / "own" / part)
    (folder / "own/vision/README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "own/language/LICENSE").write_text("\nThe Small Licence\nof 2026\n")
    own = [f"{part}.name={folder / 'own' / part}" for part in names]
    parts = ["resampler=identity", "position=none", "projector.width=null", "vision.feature_layer=-2", "tracking=none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = [*own, *QUICK, *parts, "stage.resampler.max_text_length=200", "stage.finetune.max_text_length=200"]
        assert command(patch, train, *arguments, "data.test_scenes=3", "experiment_name=fits") == 0
    return folder


@pytest.fixture
def here(fitting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the run in it, and a panorama."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    Path("runs").symlink_to(fitting / "runs")
    cv2.imwrite("panorama.jpg", WorldSource(split="test", scenes=1, height=512).panorama(0)[..., ::-1])
    return tmp_path


@pytest.fixture
def write(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Export:
    """``write(*arguments)``: exit status and what was said."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        status = command(monkeypatch, export, *arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out + captured.err

    return run


def test_stock_classes_and_the_snippets_of_the_card_open_it_in_a_process_without_panollava(write: Export) -> None:
    status, said = write("checkpoint=runs/fits", "out=shared", "layout=llava")
    assert status == 0
    assert "Without panollava, LlavaForConditionalGeneration and pipeline" in said
    pano = PanoLlava.from_pretrained("runs/fits")
    pano.merge_lora_weights()
    answers, cuts = snippets("shared")
    assert "panollava" not in answers
    in_process(cuts)
    assert len(list(Path().glob("view_*.png"))) == len(pano.crop.camera_rows) == 5
    in_process(STOCK, "shared", "5")
    found = load_file("stock.safetensors")
    views = pano.crop.views(pano.crop.read("panorama.jpg"))
    batch = pano.batch([views], [pano.encode(QUESTION)])
    assert torch.equal(found["ids"], batch.input_ids)
    with torch.no_grad():
        expected = pano.model(**{key: one for key, one in batch.model_inputs.items() if one is not None}).logits
    assert expected.abs().max() > 1
    assert (found["logits"][..., : expected.shape[-1]] - expected).abs().max() <= TOLERANCE
    answer = in_process(f"{answers}\nimport sys\nassert 'panollava' not in sys.modules")
    assert answer.strip().splitlines() == pano.generate("panorama.jpg", QUESTION).splitlines()


def test_a_failed_check_removes_the_folder_and_verify_false_makes_none(
    write: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panollava.model.llava.TOLERANCE", -1.0)
    status, said = write("checkpoint=runs/fits", "out=shared", "layout=llava")
    assert status == 1
    assert "The export gives logits that differ by" in said
    assert sorted(path.name for path in Path().iterdir()) == ["panorama.jpg", "runs"]
    assert write("checkpoint=runs/fits", "out=shared", "layout=llava", "verify=false")[0] == 0
    monkeypatch.undo()


def test_it_is_replaced_as_an_export_and_says_who_opens_it(write: Export) -> None:
    assert write("checkpoint=runs/fits", "out=shared", "layout=llava", "precision=bf16")[0] == 0
    assert {one.dtype for one in load_file("shared/model.safetensors").values()} == {torch.bfloat16}
    assert "holds an export" in write("checkpoint=runs/fits", "out=shared", "layout=llava")[1]
    status, said = write("checkpoint=shared", "out=again")
    assert status == 1
    assert "shared holds a model of type 'llava', and PanoLlava opens exports of layout=panollava" in said
    assert write("checkpoint=runs/fits", "out=shared", "overwrite=true")[0] == 0
    assert PanoLlava.from_pretrained("shared").generate("panorama.jpg", QUESTION) is not None


def test_all_reasons_are_one_message_before_anything_is_written(
    write: Export, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said = write(f"checkpoint={recorded / 'runs/recorded'}", "out=shared", "layout=llava", "merge=false")
    assert status == 1
    keys = ["merge=false", "model.vision.feature_layer=-1", "model.resampler.type=mlp", "model.position.type=yaw_pitch"]
    assert all(f"\n  {key}" in said for key in [*keys, "model.projector.width=256"])
    assert "Or write it with layout=panollava" in said
    assert not Path("shared").exists()


@pytest.mark.parametrize("arguments", [["layout=llava"], ["layout=panollava"], ["layout=panollava", "merge=false"]])
def test_no_path_of_this_machine_is_written(write: Export, here: Path, fitting: Path, arguments: list[str]) -> None:
    assert write(f"checkpoint={fitting / 'runs/fits'}", "out=shared", *arguments)[0] == 0
    places = {str(fitting), str(here), os.getcwd(), str(Path.home()), sys.prefix, "/tmp/"}
    for path in Path("shared").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert [place for place in places if place.encode() in content] == [], path
    config = Path("shared/config.json").read_text()
    assert re.findall(r'"_?(?:vision_|language_)?name(?:_or_path)?": "(.*)"', config)
    assert set(re.findall(r'name(?:_or_path)?": "(.*)"', config)) == {"vision", "language"}
    assert getuser() not in {"vision", "language"}


def test_the_card_says_what_is_in_it_how_it_was_trained_and_how_it_scored(write: Export) -> None:
    assert write("checkpoint=runs/fits", "out=shared")[0] == 0
    card = Path("shared/README.md").read_text("utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front == ModelCard(card).data.to_dict()
    assert front == {
        "library_name": "panollava",
        "pipeline_tag": "image-text-to-text",
        "license": "other",
        "license_name": "those-of-the-backbones",
        "tags": ["panollava", "panorama", "360-degree"],
    }
    assert "| image encoder | vision, layer -2; views of 32 x 32 pixels; licence: apache-2.0 |" in card
    assert "| language model | language; licence: The Small Licence |" in card
    assert re.search(r"\| crop \| anyres_e2p \(.*overlap 0.0.*\): 5 views of 32x32 pixels, effective overlap", card)
    rows = re.findall(r"^\| (resampler|finetune) \| (\d+) \| (\d+) \| ([\d.]+) \| world \| texts `(\w+)`", card, re.M)
    assert [row[:3] for row in rows] == [("resampler", "1", "3"), ("finetune", "1", "3")]
    assert "Split `test` of data `world`, 27 questions" in card
    assert re.search(r"^\| exact match \| [\d.]+ % ", card, re.M)
    (snippet,) = snippets("shared")
    assert in_process(snippet).strip().splitlines() == answered("shared")
    assert write("checkpoint=runs/fits/resampler", "out=earlier")[0] == 1
    assert write("checkpoint=runs/fits/resampler/anyres-e2p_identity", "out=earlier")[0] == 0
    assert "Not evaluated" in Path("earlier/README.md").read_text("utf-8")
    assert write("checkpoint=shared", "out=again")[0] == 0
    assert "Not recorded: this was written from another export" in Path("again/README.md").read_text("utf-8")


@pytest.fixture
def on_hub(write: Export, here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an export that is in the hub's cache, without a network."""
    assert write("checkpoint=runs/fits", "out=shared", "merge=false")[0] == 0
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = here / "hub" / "models--someone--pano"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    shutil.move("shared", snapshot)
    (repository / "blobs").mkdir()
    for number, path in enumerate([path for path in snapshot.rglob("*") if path.is_file()]):
        shutil.move(path, repository / "blobs" / str(number))  # the cache keeps links, as here
        path.symlink_to(os.path.relpath(repository / "blobs" / str(number), path.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return "someone/pano"


def test_an_export_of_the_hub_is_opened_by_its_name(
    on_hub: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    expected = PanoLlava.from_pretrained("runs/fits").generate("panorama.jpg", QUESTION)
    for revision in (None, "main", "0123456789abcdef0123456789abcdef01234567"):
        pano = PanoLlava.from_pretrained(on_hub, revision=revision)
        assert pano.lora_names == ["default"]
        assert pano.generate("panorama.jpg", QUESTION) == expected
    assert VisionPart.from_pretrained(on_hub).pano is not None
    alone = f"""import panollava
pano = panollava.PanoLlava.from_pretrained({on_hub!r})
print(pano.generate("panorama.jpg", {QUESTION!r}))"""
    assert in_process(alone).strip().splitlines() == expected.splitlines()
    capsys.readouterr()
    arguments = [f"checkpoint={on_hub}", "image=panorama.jpg", "device=cpu"]
    assert command(monkeypatch, predict, *arguments, f"question={QUESTION}") == 0
    assert capsys.readouterr().out.strip() == expected.strip()
    assert command(monkeypatch, explain, *arguments, "tracking=none", "out=explained.png") == 0
    monkeypatch.setattr("builtins.input", lambda *_: (_ for _ in ()).throw(EOFError))
    assert command(monkeypatch, chat, *arguments) == 0
    Path(on_hub).mkdir(parents=True)  # a folder here comes first
    with pytest.raises(FileNotFoundError, match="someone/pano is no run"):
        PanoLlava.from_pretrained(on_hub)


def test_what_is_not_on_the_hub_or_no_export_is_said(on_hub: str, here: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"else/where is no run.*The Hugging Face hub and its cache have no 'else"
    ):
        PanoLlava.from_pretrained("else/where")
    with pytest.raises(FileNotFoundError, match=r"a--b/c is no run.*have no 'a--b/c' either"):  # no name of the hub
        PanoLlava.from_pretrained("a--b/c")
    with pytest.raises(FileNotFoundError, match="at revision='v9' either"):
        PanoLlava.from_pretrained(on_hub, revision="v9")
    with pytest.raises(FileNotFoundError) as missing:
        PanoLlava.from_pretrained("runs/missing")
    assert "Runs found below runs: runs/fits/" in str(missing.value)
    assert "hub" not in str(missing.value)
    with pytest.raises(ValueError, match="revision='v1' is for exports of the Hugging Face hub, and runs/fits"):
        PanoLlava.from_pretrained("runs/fits", revision="v1")
    (config,) = here.glob("hub/*/snapshots/*/config.json")
    config.resolve().write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="someone/pano of the Hugging Face hub is a model of type 'bert'"):
        PanoLlava.from_pretrained(on_hub)


def test_without_a_network_the_cache_is_read_and_the_hub_is_tried_once(
    on_hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refused(url: str, **_: Any) -> None:
        asked.append(url)
        raise requests.ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("panollava.model.hub._probed", {})
    monkeypatch.setattr("requests.head", refused)
    monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", lambda *_, **__: pytest.fail("asked"))
    assert PanoLlava.from_pretrained(on_hub).generate("panorama.jpg", QUESTION)
    with pytest.raises(FileNotFoundError, match="have no 'else/where' either"):
        PanoLlava.from_pretrained("else/where")
    assert len(asked) == 1


def test_push_uploads_the_folder_and_a_failure_keeps_it(write: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("huggingface_hub.create_repo", lambda *given, **options: calls.append((given, options)))
    monkeypatch.setattr("huggingface_hub.upload_folder", lambda **options: calls.append(options))
    status, said = write("checkpoint=runs/fits", "out=shared", "push=someone/pano")
    assert status == 0
    assert "Uploaded to the Hugging Face hub: someone/pano" in said
    assert calls[0] == (("someone/pano",), {"private": True, "exist_ok": True})
    assert (Path(calls[1]["folder_path"]), calls[1]["repo_id"]) == (Path("shared").absolute(), "someone/pano")
    assert 'PanoLlava.from_pretrained("someone/pano")' in Path("shared/README.md").read_text("utf-8")

    def refuse(**_: Any) -> None:
        raise OSError("401 Client Error")

    monkeypatch.setattr("huggingface_hub.upload_folder", refuse)
    status, said = write("checkpoint=runs/fits", "out=shared", "push=someone/pano", "overwrite=true")
    assert status == 1
    assert "push=someone/pano failed (401 Client Error). The export is complete in" in said
    assert Path("shared/model.safetensors").is_file()
    status, said = write("checkpoint=runs/fits", "out=other", "push=pano")
    assert status == 1
    assert "push='pano': allowed is null or a name of the Hugging Face hub" in said


def snippets(folder: str) -> list[str]:
    """The Python in a card."""
    return re.findall(r"```python\n(.*?)```", Path(folder, "README.md").read_text("utf-8"), re.DOTALL)


def answered(folder: str) -> list[str]:
    return PanoLlava.from_pretrained(folder).generate("panorama.jpg", QUESTION).splitlines()


def in_process(program: str, *arguments: str) -> str:
    """What a program says to standard output in a process of its own."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    line = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
