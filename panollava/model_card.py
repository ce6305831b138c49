"""The model card of an export, ``README.md``: what is in it, how it was trained, how it scored, and how to open it.

Everything is read from the model and from what its run recorded; what is not recorded is said to be unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from panollava.checkpoint import weights_digest
from panollava.disk import read_document
from panollava.evaluation.exact_match import percent
from panollava.evaluation.results import newest_evaluation
from panollava.model.hub import NEWEST, SHIPPED, public_name, resolve_source
from panollava.run_folder import METADATA, STAGES, read_metadata

if TYPE_CHECKING:
    from panollava.model.api import PanoLlava
    from panollava.model.vision import PanoVision

CARD = "README.md"
Layout = Literal["panollava", "llava"]

_UNKNOWN = "not stated"
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
_INTERVALS = "In brackets: 95 % intervals over pictures; a score without one has too few pictures for it."
_MOST_STAGES = 16  # that one run's chain is followed back


def model_card(pano: PanoLlava, *, name: str, layout: Layout, precision: str, adapter: str) -> str:
    """The card in Markdown, with the front matter of the Hugging Face hub.

    Args:
        pano: the model that is exported, opened from its run or from another export.
        name: of the export: its folder's, or its hub name.
        layout: of the folder.
        precision: of its weights, such as ``fp32``.
        adapter: what became of the adapter, in words.
    """
    licences = {part: _licence(pano, part) for part in ("vision", "language")}
    intro = (
        f"A vision-language model for 360° panoramas. It was written by panollava {version('panollava')} with "
        f"`layout={layout}`, in {precision}, {adapter}."
    )
    sections = [
        _front_matter(pano, layout, licences),
        f"# {name}",
        intro,
        "## Parts\n\n" + _table(("part", ""), _parts(pano, licences)),
        "## Training\n\n" + _training(pano),
        "## Scores\n\n" + _scores(pano),
        "## How to open it\n\n" + (_open_llava(pano, name) if layout == "llava" else _open_panollava(name)),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(pano: PanoLlava, layout: Layout, licences: Mapping[str, str]) -> str:
    from huggingface_hub import ModelCardData

    names = (public_name(pano.model.config.vision_name), public_name(pano.model.config.language_name))
    known = {one for one in licences.values() if one != _UNKNOWN}
    one_licence = next(iter(known)) if len(known) == 1 and _UNKNOWN not in licences.values() else None
    is_plain = one_licence is not None and re.fullmatch(r"[a-z0-9.-]+", one_licence) is not None
    data = ModelCardData(
        library_name="transformers" if layout == "llava" else "panollava",
        pipeline_tag="image-text-to-text",
        base_model=[each for each in names if "/" in each and each not in SHIPPED] or None,
        license=one_licence if is_plain else "other",
        license_name=None if is_plain else "unknown" if _UNKNOWN in licences.values() else "those-of-the-backbones",
        tags=["panollava", "panorama", "360-degree", *(["llava"] if layout == "llava" else [])],
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def _parts(pano: PanoLlava, licences: Mapping[str, str]) -> list[Sequence[str]]:
    model, config, crop = pano.model, pano.model.config, dict(pano.model.config.crop or {})
    tower, recorded = model.vision.tower, pano.metadata.get("model", {})
    rows: list[Sequence[str]] = [
        ("image encoder", f"{public_name(config.vision_name)}, layer {tower.feature_layer}; views of "
                          f"{tower.image_size[0]} x {tower.image_size[1]} pixels; licence: {licences['vision']}"),
        ("language model", f"{public_name(config.language_name)}; licence: {licences['language']}"),
        ("crop", f"{_spec(crop)}: {pano.crop.summary}"),
        ("resampler", f"{_spec(config.resampler)}: {_tokens(model.vision)} a view"),
        ("position", _spec(config.position)),
        ("projector", _spec(config.projector)),
        ("join", f"{config.join}: {pano.image_tokens} tokens a panorama"),
        ("decoding", pano.generation.summary),
    ]  # fmt: skip
    commits = {part: (recorded.get(part) or {}).get("revision") for part in ("vision", "language")}
    shown = [f"{part} {commit}" for part, commit in commits.items() if commit]
    return [*rows, ("commits of the backbones", ", ".join(shown))] if shown else rows


def _tokens(vision: PanoVision) -> str:
    """Tokens of a view, and of how many they are averages."""
    pooled = "" if vision.tokens_per_side is None else f", averaged from {vision.resampled_per_view},"
    return f"{vision.tokens_per_view} tokens{pooled}"


def _spec(spec: Mapping[str, Any] | None) -> str:
    """A component's type and keys, without paths."""
    stated = dict(spec or {})
    kind = str(stated.pop("type", "unknown"))
    short = {key: public_name(value) if isinstance(value, str) else value for key, value in stated.items()}
    keys = ", ".join(f"{key} {value}" for key, value in short.items() if value is not None)
    return f"{kind} ({keys})" if keys else kind


def _training(pano: PanoLlava) -> str:
    """A table of the stages, first to last."""
    if not pano.metadata or pano.source is None:
        return "Not recorded: this was written from another export or from a model in memory."
    rows = [
        (
            recorded["stage"],
            _number(recorded.get("epoch")),
            _number(recorded.get("step")),
            _number(recorded.get("validation_loss")),
            str((recorded.get("data") or {}).get("name", "unknown")),
            *(_digests(recorded, split) for split in ("train", "val")),
            str((recorded.get("versions") or {}).get("panollava", "unknown")),
        )
        for recorded in reversed(_stages(pano.source, pano.metadata))
    ]
    head = ("stage", "epochs", "steps", "validation loss", "data", "training split", "validation split", "panollava")
    note = "The digests are those that the run recorded of the texts and the pictures of each split."
    return f"{_table(head, rows)}\n\n{note}"


def _stages(checkpoint: Path, metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Metadata of a run's stage and of those that it started from, the last first."""
    found, folder = [metadata], checkpoint.resolve().parent
    while len(found) < _MOST_STAGES:
        root, states = folder.parents[1], folder.parents[1] / STAGES
        if not states.is_file():
            break
        entry = read_document(states).get("stages", {}).get(f"{folder.parent.name}/{folder.name}", {})
        if not isinstance(start := entry.get("started_from"), str):
            break
        # Relative to where the run was started; or the experiment was moved, with its stages.
        place = Path(found[-1].get("workplace") or "", start)
        earlier = [one.parent for one in (Path(start), place, root.joinpath(*place.parts[-3:]))]
        known = next((one.resolve() for one in earlier if (one / METADATA).is_file()), None)
        if known is None or known == folder:
            found.append({"stage": f"before: {'/'.join(place.parts[-3:-1])}, no longer there"})
            break
        folder = known
        found.append(read_metadata(folder))
    return found


def _digests(recorded: Mapping[str, Any], split: str) -> str:
    digests = (recorded.get("inputs") or {}).get(split)
    if not isinstance(digests, Mapping):
        return "not recorded"
    return ", ".join(f"{key} `{value}`" for key, value in digests.items())


def _scores(pano: PanoLlava) -> str:
    """A table of the newest evaluation on record of this checkpoint."""
    found = None
    if pano.source is not None and pano.metadata:
        options, place = pano.metadata.get("evaluation") or {}, pano.metadata.get("workplace") or ""
        results = Path(options.get("results_dir") or "results")
        parents = [Path(), Path(place), *pano.source.resolve().parents]
        experiment = pano.metadata["experiment_name"]
        found = newest_evaluation([parent / results for parent in parents], experiment, weights_digest(pano.source))
    if found is None:
        return "Not evaluated: no evaluation of this checkpoint is on record."
    settings = found["settings"]
    data = (settings.get("data") or {}).get("name", "unknown")
    rows: list[Sequence[str]] = [("exact match", percent(found["exact_match"], found.get("interval")))]
    if found.get("blank_exact_match") is not None:
        rows.append(
            ("exact match with blank pictures", percent(found["blank_exact_match"], found.get("blank_interval")))
        )
    rows.append(("the most common answer of each type", percent(found["majority_share"])))
    for name, score in ((found.get("captions") or {}).get("scores") or {}).items():
        if isinstance(score, Mapping):
            ends = None if score.get("low") is None else (score["low"], score["high"])
            rows.append((name, f"{score['value']:.3f}" + (f" ({ends[0]:.3f}–{ends[1]:.3f})" if ends else "")))
    said = f"Split `{settings.get('split')}` of data `{data}`, {found['count']} questions, on {found['created'][:10]}."
    asked = (settings.get("conditions") or {}).get("generation")
    decoding = "" if asked in (None, vars(pano.generation)) else " It decoded with other options than this export."
    crop = "" if settings.get("crop") == pano.metadata.get("crop") else " It cut other views than this export."
    return f"{said}{decoding}{crop} {_INTERVALS}\n\n" + _table(("score", ""), rows)


def _number(value: Any) -> str:
    return "unknown" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _open_panollava(name: str) -> str:
    return f"""\
```python
from panollava import PanoLlava

pano = PanoLlava.from_pretrained("{name}")
print(pano.generate("panorama.jpg", "what is there?"))
```

After `import panollava`, the Auto classes of transformers and `pipeline("image-text-to-text")` open it too."""


def _open_llava(pano: PanoLlava, name: str) -> str:
    count, (height, width) = len(pano.crop.camera_rows), pano.model.vision.tower.image_size
    return f"""\
transformers alone answers, from {count} views of {height} x {width} pixels, in this order. Others are an error, and
so is a question with `<image>` in it.

```python
from PIL import Image
from transformers import pipeline

ask = pipeline("image-text-to-text", model="{name}")
views = [{{"type": "image", "image": Image.open(f"view_{{number}}.png")}} for number in range({count})]
question = {{"type": "text", "text": "what is there?"}}
messages = [{{"role": "user", "content": [*views, question]}}]
print(ask(text=messages, return_full_text=False)[0]["generated_text"])
```

panollava cuts these views from a panorama, and saves them for tools that cannot:

```python
from PIL import Image
from panollava.crop.crop import Crop

crop = Crop.from_spec({_keys(pano.model.config.crop)}, view_size=({height}, {width}))
for number, view in enumerate(crop.views(crop.read("panorama.jpg"))):  # (3, h, w)
    Image.fromarray(view.permute(1, 2, 0).numpy()).save(f"view_{{number}}.png")
```"""


def _keys(spec: Mapping[str, Any] | None) -> dict[str, Any]:
    """A crop's keys without those of the machine that it was used on."""
    return {key: value for key, value in (spec or {}).items() if value is not None and key != "device"}


def _licence(pano: PanoLlava, part: Literal["vision", "language"]) -> str:
    """The licence that a backbone's own files state: its card, else the first line of its licence file."""
    name = getattr(pano.model.config, f"{part}_name") or ""
    if not name:  # whose folder would be the working directory
        return _UNKNOWN
    recorded = (pano.metadata.get("model") or {}).get(part) or {}
    if public_name(name) in SHIPPED:
        return "mit"
    files = {file: _file_of(name, file, recorded.get("revision")) for file in (CARD, *_LICENCES)}
    if (card := files.pop(CARD)) is not None:
        matter = re.match(r"\A---\s*\n(.*?)\n---", card.read_text("utf-8", errors="replace"), re.DOTALL)
        stated = {
            key: value.strip().strip("'\"")
            for key, value in re.findall(
                r"^(license|license_name): *(\S.*)$", matter[1] if matter else "", re.MULTILINE
            )
        }
        if stated.get("license"):
            return stated.get("license_name", "other") if stated["license"] == "other" else stated["license"]
    text = next((path.read_text("utf-8", errors="replace") for path in files.values() if path is not None), "")
    return next((line.strip()[:100] for line in text.splitlines() if line.strip()), _UNKNOWN)


def _file_of(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a backbone in its folder or in the hub's cache; nothing is fetched."""
    folder = Path(resolve_source(name))
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, revision=revision or NEWEST)
    except HFValidationError:  # the name of a folder that is no longer there
        return None
    return Path(found) if isinstance(found, str) else None
