"""Processors of an exported model: pictures and questions in, all inputs of ``generate`` out.

Importing this module makes transformers' Auto classes and ``pipeline`` know PanoLlava exports.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date as day
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from panollava.crop.crop import Crop
from panollava.crop.gpano import tilt_warning
from panollava.crop.image_file import eight_bits, exif_orientation, exif_transpose, xmp_packets
from panollava.model.fusion import image_token_count
from panollava.model.vlm import PanoLlavaConfig, PanoLlavaForConditionalGeneration
from panollava.prompt import ChatPrompt
from panollava.run_folder import FORM, upgraded

Picture = str | Path | bytes | BinaryIO | Image.Image | np.ndarray | Tensor
Turns = Sequence[tuple[str, str | None]]


class PanoLlavaInputs(BatchFeature):
    """Inputs of the model. Their cameras keep their type, as in bfloat16 directions would be off by a degree."""

    def to(self, *args: Any, **kwargs: Any) -> PanoLlavaInputs:
        cameras = self.get("cameras")
        super().to(*args, **kwargs)
        if cameras is not None:
            self["cameras"] = cameras.to(self["cameras"].device)
        return self


class PanoLlavaImageProcessor(BaseImageProcessor):
    """Cuts panoramas into views ``(h, w)``, with their cameras; ``crop`` as for ``Crop.from_spec``."""

    model_input_names = ["pixel_values", "cameras", "view_mask"]

    def __init__(
        self, crop: Mapping[str, Any] | None = None, view_size: Sequence[int] = (224, 224), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.crop = dict(crop or {"type": "anyres_e2p"})
        self.view_size = [int(side) for side in view_size]

    def build_crop(self) -> Crop:
        return Crop.from_spec(self.crop, view_size=(self.view_size[0], self.view_size[1]))

    def preprocess(self, images: Picture | Sequence[Picture], **kwargs: Any) -> BatchFeature:
        """Panoramas -> ``pixel_values`` ``(B, V, 3, h, w)`` uint8, ``cameras`` ``(B, V, C)`` and ``view_mask``."""
        crop, listed = self.build_crop(), _listed(images)
        if not listed:
            raise ValueError("There is no picture among images: give a panorama, or as many as there are texts.")
        cuts = [crop.cut(read_picture(image, crop)) for image in listed]
        views, cameras = (torch.stack(part) for part in zip(*cuts, strict=True))
        mask = torch.ones(cameras.shape[:2], dtype=torch.bool)
        return PanoLlavaInputs({"pixel_values": views, "cameras": cameras, "view_mask": mask})


class PanoLlavaProcessor(ProcessorMixin):
    """Panoramas and questions -> inputs of ``PanoLlavaForConditionalGeneration.generate``.

    Args:
        tokenizer: of the language model; the image placeholder is added to it.
        tokens_per_view: ``Q``; ``token_grid`` is its ``(H', W')``, None where the tokens have no grid.
        join: how views join (see ``panollava.model.fusion``).
        chat_template: kept in the folder by transformers; the tokenizer's own decides the format.
        form: of these values (see ``panollava.run_folder.upgraded``); 1 where a folder does not state it.
        date: the day that prompts name, such as ``2026-01-31``, where the template names one.
    """

    def __init__(
        self,
        image_processor: PanoLlavaImageProcessor | None = None,
        tokenizer: Any = None,
        tokens_per_view: int = 1,
        join: str = "concat",
        token_grid: Sequence[int] | None = None,
        system: str | None = None,
        chat_template: str | None = None,
        form: int = 1,
        date: str | None = None,
    ) -> None:
        self.tokens_per_view, self.system = tokens_per_view, system
        self.join, self.form = upgraded({"form": form, "model": {"join": join}})["model"]["join"], FORM
        self.token_grid = None if token_grid is None else [int(side) for side in token_grid]
        self.prompt = ChatPrompt(tokenizer, system=system, today=None if date is None else day.fromisoformat(date))
        self.date = date
        tokenizer.padding_side = "left"  # for pipelines that pad a batch: an answer begins after the prompt's end
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, *, system: str | None = None, date: str | None = None
    ) -> PanoLlavaProcessor:
        """The processor of a ``PanoLlavaForConditionalGeneration`` that was trained with this system text and date."""
        config, vision = model.config, model.vision
        images = PanoLlavaImageProcessor(config.crop, config.image_size)
        sizes = vision.tokens_per_view, config.join, vision.token_grid
        return cls(images, tokenizer, *sizes, system, form=FORM, date=date)

    def __call__(
        self,
        images: Picture | Sequence[Picture] | None = None,
        text: str | Sequence[str | Turns] | None = None,
        return_tensors: str = "pt",
        padding: bool = True,
    ) -> BatchFeature:
        """Prompts to generate answers from: ``input_ids``, ``attention_mask`` ``(B, T)``, and the views.

        Args:
            images: one panorama, or as many as there are texts.
            text: a question, or several; each a string, or ``(question, answer)`` turns whose last answer is None.
            return_tensors, padding: torch tensors with left padding only, as generation needs it.
        """
        if return_tensors != "pt" or not padding:
            raise ValueError("PanoLlavaProcessor gives left-padded torch tensors: return_tensors='pt', padding=True.")
        pictures = {} if images is None else dict(self.image_processor(images))
        if text is None:
            return PanoLlavaInputs(pictures)
        questions = [text] if isinstance(text, str) else list(text)
        if not questions:
            raise ValueError("There is no question among text: give one, or as many as there are images.")
        if images is not None and len(questions) != len(pictures["pixel_values"]):
            raise ValueError(
                f"{len(pictures['pixel_values'])} pictures and {len(questions)} texts: give one text a picture."
            )
        conversations = [[(item, None)] if isinstance(item, str) else list(item) for item in questions]
        count = 0 if images is None else self.image_tokens(pictures["cameras"][0])
        ids = [self.prompt.encode(turns, image_tokens=count).ids for turns in conversations]
        return PanoLlavaInputs({**pad_left(ids, self.tokenizer.pad_token_id), **pictures})

    def image_tokens(self, cameras: Tensor) -> int:
        """Placeholders of one panorama with cameras ``(V, C)``."""
        grid = None if self.token_grid is None else (self.token_grid[0], self.token_grid[1])
        return image_token_count(cameras, self.tokens_per_view, self.join, grid)

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """A list of ``{"role": ..., "content": ...}`` messages that end in a question, or several -> inputs.

        ``pipeline("image-text-to-text")`` calls this. Only ``tokenize=True`` with a generation prompt is possible.
        """
        if not kwargs.get("tokenize", True) or kwargs.get("continue_final_message"):
            raise ValueError(
                "PanoLlavaProcessor only encodes conversations that end in a question (tokenize=True, "
                "add_generation_prompt=True): the prompt is built in tokens, never as one string."
            )
        if not conversation:
            raise ValueError("A conversation must end in a user message, the question to answer; this one is empty.")
        batch = [conversation] if isinstance(conversation[0], Mapping) else list(conversation)
        turns, pictures = zip(*map(_parse, batch), strict=True)
        return self(images=[*chain(*pictures)] or None, text=turns)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *PanoLlavaImageProcessor.model_input_names]


def pad_left(rows: list[list[int]], pad_id: int | None) -> dict[str, Tensor]:
    """``(B, T)`` ids and mask; the value of a pad never matters, as the mask hides it."""
    pad = partial(pad_sequence, batch_first=True, padding_side="left")
    ids = pad([torch.tensor(row) for row in rows], padding_value=pad_id or 0)
    return {"input_ids": ids, "attention_mask": pad([torch.ones(len(row), dtype=torch.long) for row in rows])}


def read_picture(image: Picture, crop: Crop) -> np.ndarray:
    """A whole panorama, ``(H, W, 3)`` uint8 RGB, of a file or its content, a PIL picture, an array or a tensor.

    Raises ValueError for an address, no picture, an array of another type, or another shape than the crop's.
    """
    if isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        raise ValueError(
            f"{image}: pictures are not fetched here. Give its file, such as panollava.data.fetch.fetch_panorama("
            "address, FetchOptions()) fetches it."
        )
    if _is_content(image):
        image = _content(image)
    if isinstance(image, str | Path | io.BytesIO):
        _warn(crop.check(image).tilt)
        return crop.read(image)
    if isinstance(image, Image.Image):
        _warn(tilt_warning("The picture", xmp_packets(image)))
        return crop.whole(_rgb(image), xmp_packets(image))
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(image).__name__}"
        raise ValueError(
            "A panorama is a file, the bytes of one, a PIL picture, or an array or tensor (H, W, 3) uint8 RGB, 0 to "
            f"255; this is {found}."
        )
    return crop.whole(array)


def _warn(message: str) -> None:
    if message:
        warnings.warn(message, stacklevel=3)


def _rgb(image: Image.Image) -> np.ndarray:
    """A PIL picture as it would be read from its file."""
    where = f"The picture has PIL mode {image.mode}"
    reasons = {"CMYK": "the inks of a printer, which look different on each", "F": "of no known range"}
    if reason := reasons.get(image.mode):
        raise ValueError(f"{where}, {reason}. Convert it to RGB first.")
    if not image.mode.startswith("I"):
        pixels = np.asarray(image.convert("RGB"))
    else:  # grey, of which PIL would cut off what is above 255
        grey = np.asarray(image)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise ValueError(f"{where}, and values beyond 16 bits. Convert it to RGB first.")
        try:
            pixels = np.repeat(eight_bits(grey.astype(np.uint16))[..., None], 3, axis=2)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return exif_transpose(pixels, exif_orientation(image))


def _is_content(image: Any) -> TypeGuard[bytes | BinaryIO]:
    is_file = hasattr(image, "read") and not isinstance(image, io.TextIOBase)
    return is_file or isinstance(image, bytes | bytearray | memoryview)


def _content(image: bytes | BinaryIO) -> io.BytesIO:
    """The whole content, also of an open file that was read from before."""
    if isinstance(image, bytes | bytearray | memoryview):
        return io.BytesIO(image)
    with suppress(AttributeError, OSError):  # a stream that cannot seek
        image.seek(0)
    return io.BytesIO(image.read())


def _listed(images: Picture | Sequence[Picture]) -> list[Picture]:
    is_one = isinstance(images, str | Path | Image.Image) or _is_content(images)
    # An array or a tensor of four dimensions is several pictures.
    is_several = isinstance(images, Iterable) and not is_one and getattr(images, "ndim", 4) == 4
    return list(images) if is_several else [images]  # type: ignore[arg-type, list-item]


def _parse(messages: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, str | None]], list[Picture]]:
    turns: list[tuple[str, str | None]] = []
    pictures: list[Picture] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        words = "\n".join(part["text"] for part in parts if part["type"] == "text")
        for part in parts:
            if part["type"] == "image":
                pictures += [part[key] for key in ("image", "path", "url") if key in part][:1]
        if message["role"] == "user":
            turns.append((words, None))
        elif message["role"] == "assistant" and turns:
            turns[-1] = (turns[-1][0], words)
        else:
            raise ValueError(
                f"A {message['role']!r} message is not allowed here: user and assistant take turns, user first. The "
                "system text belongs to the processor (system=...)."
            )
    if not turns or turns[-1][1] is not None:
        raise ValueError("A conversation must end in a user message, the question to answer.")
    return turns, pictures


AutoConfig.register("panollava", PanoLlavaConfig, exist_ok=True)
AutoModelForImageTextToText.register(PanoLlavaConfig, PanoLlavaForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(
    PanoLlavaConfig, image_processor_classes={"torchvision": PanoLlavaImageProcessor}, exist_ok=True
)
AutoProcessor.register(PanoLlavaConfig, PanoLlavaProcessor, exist_ok=True)
