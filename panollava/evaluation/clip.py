"""CLIP-score: how well an answer fits its picture, and the references, in the eyes of a CLIP.

Legend: ``Q`` scored answers, ``N`` pictures or texts, ``D`` width of CLIP's common space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from panollava.crop.image_file import decode, found, parse_header
from panollava.crop.partial import MAX_PIXELS
from panollava.evaluation.read_predictions import Scored
from panollava.evaluation.statistics import Interval, mean_interval
from panollava.model.hub import load_pretrained, quiet_transformers, read_config, resolve_source

CLIP, REF_CLIP = "CLIP-score", "RefCLIP-score"
WEIGHT = 2.5
PROMPT = "A photo depicts "
"""What is put before each text, and the factor that spreads the cosines.

Source: Hessel et al. 2021, CLIPScore: A Reference-free Evaluation Metric for Image Captioning, sections 3 and 4.
"""

PICTURES, TEXTS = 16, 128
"""How many are encoded at once."""

Pictures = Callable[[str], np.ndarray]
"""The picture of an image id, (H, W, 3) uint8 RGB."""


class Clip:
    """A CLIP as a measure.

    A picture is seen whole, squeezed to the square that the encoder takes; the processor's own cutting would drop half
    of a panorama.
    """

    def __init__(self, name: str, *, device: str | torch.device = "cpu", key: str = "clip") -> None:
        """
        Args:
            name: folder, or name on the hub.
            device: where it runs.
            key: config key to name in messages.

        Raises:
            FileNotFoundError: there is no such model, or no safetensors weights.
            ValueError: it is no CLIP, or has no tokenizer or image processor.
        """
        source, config = clip_config(name, key)
        self.name = name
        model: Any = load_pretrained(
            CLIPModel, source, key, config=config, dtype=torch.float32, attn_implementation="sdpa"
        )
        self._model = model.to(device)
        try:
            with quiet_transformers():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
                self._processor: Any = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{key}={name!r} lacks its tokenizer or image processor: {error}") from error
        known, needed = len(self._tokenizer), config.text_config.vocab_size
        if not needed // 2 <= known <= needed:
            # Without a tokenizer's files transformers makes an empty one and says nothing.
            raise ValueError(
                f"{key}={name!r} lacks its tokenizer: {known} words, where the model has {needed}. Copy its tokenizer "
                "files into the folder."
            )
        self._side, self._longest = config.vision_config.image_size, config.text_config.max_position_embeddings

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Directions ``(N, D)`` of pictures, of length 1."""
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
        """Directions ``(N, D)`` of texts, of length 1; what is longer than the encoder takes is cut."""
        ids = self._tokenizer([PROMPT + text for text in texts], truncation=True, max_length=self._longest)["input_ids"]
        # Texts of one length together, for CLIPs do not agree on how padding is kept out.
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


def clip_scores(scored: Sequence[Scored], clip: Clip, picture: Pictures) -> dict[str, Interval]:
    """CLIP-score and RefCLIP-score of a set of answers, with intervals over pictures.

    Args:
        scored: the answers.
        clip: the measure.
        picture: gives the pictures by their ids.
    """
    images = [one.image_id for one in scored]
    seen = _directions(images, PICTURES, lambda ids: clip.pictures([picture(one) for one in ids]))
    said = _directions(
        [text for one in scored for text in (one.prediction, *one.references)], TEXTS, lambda texts: clip.texts(texts)
    )
    fits = WEIGHT * np.array([_cosine(seen[one.image_id], said[one.prediction]) for one in scored])
    best = np.array([max(_cosine(said[text], said[one.prediction]) for text in one.references) for one in scored])
    # Harmonic mean; 0 where either is.
    both = 2 * fits * best / np.maximum(fits + best, np.finfo(np.float64).tiny)
    highest = 2 * WEIGHT / (WEIGHT + 1)
    return {CLIP: mean_interval(fits, images, top=WEIGHT), REF_CLIP: mean_interval(both, images, top=highest)}


def read_picture(path: Path) -> np.ndarray:
    """A picture file of any shape, (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JPEG or PNG, or is damaged or too large.
    """
    with found(path).open("rb") as file:
        header = parse_header(file)
        file.seek(0)
        data = file.read()
    is_sound = header is not None and header.is_complete and header.width * header.height <= MAX_PIXELS
    if header is None or not is_sound:
        raise ValueError(f"{path} cannot be read: no JPEG or PNG picture, cut short, or of over {MAX_PIXELS:,} pixels.")
    try:
        return decode(data, header)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return max(0.0, float(a @ b))


def _directions(keys: Sequence[str], at_once: int, encode: Callable[[list[str]], Tensor]) -> dict[str, np.ndarray]:
    """Each distinct key's direction."""
    result: dict[str, np.ndarray] = {}
    for part in _parts(list(dict.fromkeys(keys)), at_once):
        result.update(zip(part, encode(part).double().numpy(), strict=True))
    return result


def _parts(keys: list[str], at_once: int) -> Iterator[list[str]]:
    for start in range(0, len(keys), at_once):
        yield keys[start : start + at_once]
