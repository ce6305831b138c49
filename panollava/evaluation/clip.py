"""A CLIP that embeds panoramas and texts, for CLIPScore and RefCLIPScore.

Legend: ``N`` pictures or texts, ``D`` width of the embeddings.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from panollava.crop.image_file import decode, existing_file, parse_header
from panollava.crop.partial import MAX_PIXELS
from panollava.model.hub import hub_place, load_pretrained, quiet_transformers, read_config, resolve_source

PROMPT = "A photo depicts "
"""Precedes each text, as in Hessel et al. 2021, CLIPScore, section 3."""


class Clip:
    """A CLIP that embeds pictures and texts.

    A panorama is resized as a whole to the encoder's square; the center crop of CLIP's processor would drop half of it.
    """

    def __init__(self, name: str, *, device: str | torch.device = "cpu", key: str = "clip") -> None:
        """Opens the CLIP in a folder, or by its name on the hub; `key` is the config key to name in messages.

        Raises FileNotFoundError without it or its safetensors weights, ValueError without its tokenizer or processor.
        """
        source, config = clip_config(name, key)
        self.name = name
        model: Any = load_pretrained(
            CLIPModel, source, key, config=config, dtype=torch.float32, attn_implementation="sdpa"
        )
        self._model = model.to(device)
        try:
            with quiet_transformers():
                place = hub_place(source, None)
                self._tokenizer: Any = AutoTokenizer.from_pretrained(source, **place, trust_remote_code=False)
                self._processor: Any = AutoImageProcessor.from_pretrained(source, **place, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{key}={name!r} lacks its tokenizer or image processor: {error}") from error
        known, needed = len(self._tokenizer), config.text_config.vocab_size
        if not needed // 2 <= known <= needed:
            # Without a tokenizer's files transformers makes an empty one, without a warning.
            raise ValueError(
                f"{key}={name!r} lacks its tokenizer: {known} words, where the model has {needed}. Copy its tokenizer "
                "files into the folder."
            )
        self._side, self._longest = config.vision_config.image_size, config.text_config.max_position_embeddings

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Embeddings ``(N, D)`` of pictures (H, W, 3) uint8, of length 1."""
        pixels = self._processor(
            images=list(pictures),
            size={"height": self._side, "width": self._side},
            do_center_crop=False,
            input_data_format="channels_last",
            return_tensors="pt",
        )
        found = self._model.get_image_features(pixel_values=pixels["pixel_values"].to(self._model.device))
        return functional.normalize(found.pooler_output, dim=-1).cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings ``(N, D)`` of texts, of length 1; texts beyond the encoder's limit are truncated."""
        ids = self._tokenizer([PROMPT + text for text in texts], truncation=True, max_length=self._longest)["input_ids"]
        # One batch per length: CLIPs differ in how they mask padding.
        places: dict[int, list[int]] = {}
        for place, one in enumerate(ids):
            places.setdefault(len(one), []).append(place)
        found = torch.empty(len(texts), self._model.config.projection_dim)
        for own in places.values():
            batch = torch.tensor([ids[place] for place in own], device=self._model.device)
            found[own] = self._model.get_text_features(input_ids=batch).pooler_output.cpu()
        return functional.normalize(found, dim=-1)


def clip_config(name: str, key: str = "clip") -> tuple[str, Any]:
    """Where a CLIP is, and its configuration; raises as ``Clip`` does, and reads no weights."""
    source = resolve_source(name, key)
    config = read_config(source, key)
    if config.model_type != "clip":
        raise ValueError(f"{key}={name!r} is a {config.model_type}; CLIP-score is defined with a CLIP.")
    return source, config


def read_picture(path: Path) -> np.ndarray:
    """A JPEG or PNG of any shape, (H, W, 3) uint8 RGB; ValueError where it is damaged or too large."""
    with existing_file(path).open("rb") as file:
        header = parse_header(file)
        file.seek(0)
        data = file.read()
    if header is None or not header.is_complete or header.width * header.height > MAX_PIXELS:
        raise ValueError(f"{path} cannot be read: no JPEG or PNG picture, cut short, or of over {MAX_PIXELS:,} pixels.")
    try:
        return decode(data, header)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
