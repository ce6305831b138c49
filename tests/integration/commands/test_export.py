"""``python -m panollava.export``: a folder that transformers opens in a process of its own, and says the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import load_file
from support.runs import command

from panollava import export
from panollava.data.world import WorldSource
from panollava.model.api import PanoLlava
from panollava.model.lora import has_lora

Capture = pytest.CaptureFixture[str]
Write = Callable[..., tuple[int, str]]
QUESTION = "what is there?"
PROGRAM = """
import sys
import panollava
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
import torch
from safetensors.torch import save_file

for folder in sys.argv[1:]:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(images="one.png", text="what is there?")
    with torch.no_grad():
        save_file({"logits": model(**inputs).logits, **inputs}, f"{folder}.safetensors")
    ask = pipeline("image-text-to-text", model=folder)
    content = [{"type": "image", "path": "one.png"}, {"type": "text", "text": "what is there?"}]
    (said,) = ask(text=[{"role": "user", "content": content}], return_full_text=False)
    print(" ".join(said["generated_text"].strip().splitlines()))
"""


@pytest.fixture
def write(in_recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Write:
    """``write(*arguments)``: exit status and what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    Path("runs").symlink_to(in_recorded / "runs")

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        status = command(monkeypatch, export, "checkpoint=runs/recorded", *arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert captured.out == ""
        return status, captured.err

    return run


def test_a_fresh_process_opens_both_kinds_and_computes_the_same(write: Write) -> None:
    assert write("out=merged") == (0, said("its adapter merged", "merged"))
    kept = write("out=a, b/kept", "merge=false", "generation.repetition_penalty=1.5")
    assert kept == (0, said("its adapter beside it in lora_weights", "a, b/kept"))
    cv2.imwrite("one.png", WorldSource(split="test", scenes=1).panorama(0)[..., ::-1])
    line = [sys.executable, "-c", PROGRAM, "merged", "a, b/kept"]
    done = subprocess.run(line, capture_output=True, text=True, encoding="utf-8", env={**os.environ, **UTF8})
    assert done.returncode == 0, done.stderr[-2000:]
    pano = PanoLlava.from_pretrained("runs/recorded")
    options = [pano.generation, pano.generation.changed({"repetition_penalty": 1.5})]
    answers = [" ".join(pano.generate("one.png", QUESTION, generation=each).splitlines()) for each in options]
    assert answers[0] != answers[1]
    assert done.stdout.split("\n")[:-1] == answers  # as the run, and the command line, have it
    for folder in ("merged", "a, b/kept"):
        found = load_file(f"{folder}.safetensors")
        logits = found.pop("logits")
        with torch.no_grad():
            expected = pano.model(**found).logits
        assert expected.abs().max() > 1
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert not has_lora(PanoLlava.from_pretrained("merged").model)
    assert has_lora(PanoLlava.from_pretrained("a, b/kept").model)


UTF8 = {"PYTHONIOENCODING": "utf-8"}


def said(adapter: str, out: str) -> str:
    """What the command says of an export in fp32."""
    return (
        f"runs/recorded, in fp32, {adapter}: {out}\n"
        "After import panollava, PanoLlava, the Auto classes and pipeline('image-text-to-text') open it.\n"
    )


def test_an_export_can_be_exported_and_only_an_export_is_replaced(write: Write) -> None:
    assert write("out=kept", "merge=false")[0] == 0
    status, message = write("out=kept")
    assert status == 1
    assert "holds an export. Choose another name, or replace it with overwrite=true" in message
    assert (Path("kept/lora_weights")).is_dir()
    assert write("checkpoint=kept", "out=kept", "overwrite=true", "precision=bf16")[0] == 0
    assert not (Path("kept/lora_weights")).exists()
    weights = load_file("kept/model.safetensors")
    types = {name.split(".")[0]: value.dtype for name, value in weights.items()}
    assert (types["language_model"], types["projector"]) == (torch.bfloat16, torch.float32)
    assert sorted(path.name for path in Path().iterdir()) == ["kept", "runs"]
    (Path("kept/config.json")).write_text("{}")
    status, message = write("out=kept", "overwrite=true")
    assert status == 1
    assert "is a folder that holds other files" in message


def test_a_failure_leaves_what_was_there(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write("out=kept")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path("kept").rglob("*")}

    def full(folder: Path, *_: object, **__: object) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("panollava.export._fill", full)
    status, message = write("out=kept", "overwrite=true")
    assert status == 1
    assert "kept could not be written (No space left on device). Files saved before are complete." in message
    assert {path: path.stat().st_mtime_ns for path in Path("kept").rglob("*")} == before
    assert sorted(path.name for path in Path().iterdir()) == ["kept", "runs"]


def test_a_run_without_an_adapter(write: Write) -> None:
    status, message = write("checkpoint=runs/recorded/resampler/anyres-e2p_mlp", "out=plain", "merge=false")
    assert status == 0
    assert "in fp32, without an adapter: plain" in message
    assert not Path("plain/lora_weights").exists()
    assert oct(Path("plain/model.safetensors").stat().st_mode)[-3:] == "644"


WRONG = [
    pytest.param([], "out is missing", id="no-out"),
    pytest.param(["out=file.txt"], "file.txt is a file", id="file"),
    pytest.param(["out=runs"], "holds other files", id="run"),
    pytest.param(["out=runs", "overwrite=true"], "holds other files", id="overwrite"),
    pytest.param(["out=file.txt/x"], "could not be written", id="unwritable"),
    pytest.param(["out=x", "merge=maybe"], 'merge="maybe"', id="type"),
    pytest.param(["out=x", "precision=int8"], 'precision="int8"', id="choice"),
    pytest.param(["out=x", "checkpoint=runs/recorded/vision/anyres-e2p_mlp"], "no language part", id="stage"),
    pytest.param(["out=x", "checkpoint=nowhere"], "nowhere is no run", id="no-run"),
]


@pytest.mark.parametrize(("typed", "part"), WRONG)
def test_wrong_input_is_one_message(write: Write, typed: list[str], part: str) -> None:
    Path("file.txt").write_text("mine")
    status, message = write(*typed)
    assert status == 1
    assert part in message
    assert sorted(path.name for path in Path().iterdir()) == ["file.txt", "runs"]
