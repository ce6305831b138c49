"""python -m panollava.export: writes a run as a Hugging Face folder that transformers opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.logs import LOG, configure_console

if TYPE_CHECKING:
    from panollava.model.api import PanoLlava

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""PyTorch's names of the precisions."""


@dataclass(frozen=True)
class ExportOptions:
    """Keys of ``conf/export.yaml``; see there."""

    checkpoint: str
    out: str
    merge: bool
    precision: Literal["fp32", "bf16", "fp16"]
    overwrite: bool
    allow: str | list[str]


@entrypoint("export")
def main(cfg: DictConfig) -> None:
    """Exports one model."""
    from panollava.run.sections import read_config  # here, so that --help needs no PyTorch

    configure_console()
    example = "export such as checkpoint=runs/demo out=export"
    options, sections = read_config(cfg, ExportOptions, required=["checkpoint", "out"], example=example)

    import torch

    from panollava.checkpoint import replace_folder
    from panollava.model.api import PanoLlava
    from panollava.model.lora import LORA, has_lora

    out = _checked_out(Path(options.out).expanduser(), options.overwrite)
    dtype = getattr(torch, DTYPES[options.precision])
    pano = PanoLlava.from_pretrained(options.checkpoint, dtype=dtype, in_4bit=False, allow=options.allow)
    pano.generation = pano.generation.changed(sections["generation"])
    adapted = has_lora(pano.model)
    if options.merge:
        pano.merge_lora_weights()
    replace_folder(out, lambda folder: _fill(folder, pano, keep_lora=not options.merge))
    adapter = "without an adapter"
    if adapted:
        adapter = "its adapter merged" if options.merge else f"its adapter beside it in {LORA}"
    LOG.info("%s, in %s, %s: %s", options.checkpoint, options.precision, adapter, options.out)
    LOG.info("After import panollava, PanoLlava, the Auto classes and pipeline('image-text-to-text') open it.")


def _fill(folder: Path, pano: PanoLlava, *, keep_lora: bool) -> None:
    pano.save_pretrained(folder, keep_lora=keep_lora)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors are written for their owner alone


def _checked_out(out: Path, overwrite: bool) -> Path:
    """The folder to write, before the model is opened; only an earlier export is ever replaced."""
    out = out.absolute()
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file. Name a folder.")
    if not out.exists() or not any(out.iterdir()):
        return out
    if not _is_export(out):
        raise ValueError(f"out={out} is a folder that holds other files. Choose another name.")
    if not overwrite:
        raise ValueError(f"out={out} holds an export. Choose another name, or replace it with overwrite=true.")
    return out


def _is_export(folder: Path) -> bool:
    from panollava.model.vlm import PanoLlavaConfig

    config = folder / "config.json"
    return config.is_file() and f'"model_type": "{PanoLlavaConfig.model_type}"' in config.read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
