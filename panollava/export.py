"""python -m panollava.export: writes a run as a Hugging Face folder that transformers opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.logs import LOG

if TYPE_CHECKING:
    import torch

    from panollava.model.api import PanoLlava


@dataclass(frozen=True)
class ExportOptions:
    """Keys of ``conf/export.yaml``; see there."""

    checkpoint: str
    out: str
    layout: Literal["panollava", "llava"]
    merge: bool
    precision: Literal["fp32", "bf16", "fp16"]
    verify: bool
    push: str | None
    overwrite: bool
    allow: str | list[str]


@entrypoint("export", positional=("checkpoint", "out"))
def main(cfg: DictConfig) -> None:
    """Exports one model."""
    from panollava.run.sections import read_config  # here, so that --help needs no PyTorch

    example = "export such as checkpoint=runs/demo out=export"
    options, sections = read_config(
        cfg, ExportOptions, required=["checkpoint", "out"], example=example, check=_problems
    )

    import torch

    from panollava.checkpoint import replace_folder
    from panollava.model.api import PanoLlava
    from panollava.model.lora import LORA, has_lora
    from panollava.training.precision import FORMATS

    out = _checked_out(Path(options.out).expanduser(), options.overwrite)
    dtype = FORMATS[options.precision]
    opened_as = torch.float32 if options.layout == "llava" else dtype  # it is checked before the cast
    pano = PanoLlava.from_pretrained(options.checkpoint, dtype=opened_as, in_4bit=False, allow=options.allow)
    pano.generation = pano.generation.changed(sections["generation"])
    adapter = "without an adapter"
    if has_lora(pano.model):
        adapter = "its adapter merged" if options.merge else f"its adapter beside it in {LORA}"
    if options.merge:
        pano.merge_lora_weights()
    if options.layout == "llava":
        _refuse_misfits(pano, options)
    replace_folder(out, lambda folder: _fill(folder, pano, options, adapter, dtype))
    LOG.info("%s, in %s, %s: %s", options.checkpoint, options.precision, adapter, options.out)
    openers = "PanoLlava, the Auto classes" if options.layout == "panollava" else "LlavaForConditionalGeneration"
    before = "After import panollava" if options.layout == "panollava" else "Without panollava"
    LOG.info("%s, %s and pipeline('image-text-to-text') open it.", before, openers)
    if options.push is not None:
        _push(out, options.push)


def _problems(values: dict[str, Any]) -> list[str]:
    from panollava.model.hub import HUB_NAME

    push = values["push"]
    if not isinstance(push, str) or HUB_NAME.fullmatch(push):
        return []
    return [f"push={push!r}: allowed is null or a name of the Hugging Face hub, such as push=my_name/my_model."]


def _refuse_misfits(pano: PanoLlava, options: ExportOptions) -> None:
    from panollava.model.llava import misfits

    if found := misfits(pano):
        lines = [f"layout=llava cannot hold {options.checkpoint}; nothing was written:", *found]
        raise ValueError("\n  ".join([*lines, "Or write it with layout=panollava, which holds every model."]))


def _fill(folder: Path, pano: PanoLlava, options: ExportOptions, adapter: str, dtype: torch.dtype) -> None:
    from panollava.model_card import CARD, model_card

    if options.layout == "llava":
        from panollava.model.llava import check_llava, save_llava

        save_llava(folder, pano, dtype)
        if options.verify:
            same, own = check_llava(folder, pano, dtype)
            LOG.info("Logits differ by %.1e from the model's, and by %.1e with stock pixels, in fp32.", same, own)
    else:
        pano.save_pretrained(folder, keep_lora=not options.merge)
    name = options.push or Path(options.out).name
    card = model_card(pano, name=name, layout=options.layout, precision=options.precision, adapter=adapter)
    (folder / CARD).write_text(card, encoding="utf-8")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors are written for their owner alone


def _push(folder: Path, name: str) -> None:
    """Uploads an export to the hub; a repository that is not there yet is private.

    Raises:
        OSError: the hub refused it; the export stays.
    """
    import huggingface_hub

    try:
        huggingface_hub.create_repo(name, private=True, exist_ok=True)
        huggingface_hub.upload_folder(folder_path=folder, repo_id=name, commit_message="Export of panollava")
    except (OSError, ValueError) as error:
        raise OSError(
            f"push={name} failed ({(str(error).splitlines() or ['no reason given'])[0]}). The export is complete in "
            f"{folder}. Check the name, the network and `hf auth login`, then upload it: hf upload {name} {folder}"
        ) from error
    LOG.info("Uploaded to the Hugging Face hub: %s", name)


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
    from panollava.model.llava import MARK
    from panollava.model.vlm import PanoLlavaConfig

    config = folder / "config.json"
    marks = (f'"model_type": "{PanoLlavaConfig.model_type}"', f'"{MARK}": ')
    return config.is_file() and any(mark in config.read_text(encoding="utf-8") for mark in marks)


if __name__ == "__main__":
    main()
