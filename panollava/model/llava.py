"""The layout of LLaVA: which models fit into it, and how they are written for transformers' own classes.

``LlavaForConditionalGeneration`` reads pictures of one size. Each goes through an encoder, a linear layer, GELU and a
second linear layer, and replaces its placeholders in the text. A panorama is its ``V`` views there, as ``V`` pictures
one after the other. What a folder of this layout computes is compared with the model that it was written from.
"""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
)

from panollava.model.decoding import to_transformers
from panollava.model.families import patch_size
from panollava.model.hub import public_name, quiet_transformers
from panollava.model.lora import has_lora
from panollava.model.position import NonePosition
from panollava.model.projector import MlpProjector
from panollava.model.resampler.identity import IdentityResampler
from panollava.prompt import IMAGE_TOKEN

if TYPE_CHECKING:
    from panollava.model.api import PanoLlava

TOLERANCE = 1e-4
"""Largest difference of logits, in fp32, between a model and what is written of it."""
PIXELS = 1e-5
"""Largest difference of normalised pixels, which are rounded in another order."""
MARK = "written_by_panollava"
"""Key of ``config.json`` by which a folder of this layout is known for one of ours; others ignore it."""

_TOWER = "model.vision_tower."
_SIGLIP, _CLIP = "siglip_vision_model", "clip_vision_model"
_QUESTIONS = ("what is there?", "and behind me?")


def misfits(pano: PanoLlava) -> list[str]:
    """What the layout cannot hold of a model, a text for each key with the way out; nothing is written."""
    adapter = ["merge=false: the layout has no adapter beside a model. Set merge=true."] if has_lora(pano.model) else []
    return adapter + _crop_misfits(pano) + _vision_misfits(pano) + _token_misfits(pano) + _language_misfits(pano)


def _crop_misfits(pano: PanoLlava) -> list[str]:
    if not pano.crop.is_adaptive:
        return []
    return [
        "crop.type=adaptive: the layout has no place for the cameras of each panorama. Train with another crop, such "
        "as crop=anyres_e2p."
    ]


def _vision_misfits(pano: PanoLlava) -> list[str]:
    tower, found = pano.model.vision.tower, []
    family, (height, width), layer = tower.config.model_type, tower.image_size, tower.feature_layer
    if family not in (_SIGLIP, _CLIP):
        found.append(f"model.vision.name: the encoder is {family}; allowed are CLIP and SigLIP. Train one of these.")
    if height != width:
        found.append(f"crop.view_size={[height, width]}: allowed are square views. Train with crop.view_size=null.")
    if family == _SIGLIP and layer == -1:
        found.append(
            "model.vision.feature_layer=-1: stock LLaVA reads layers before the encoder's last norm, which SigLIP has. "
            "Train with model.vision.feature_layer=-2."
        )
    return found


def _token_misfits(pano: PanoLlava) -> list[str]:
    model, config, found = pano.model, pano.model.config, []
    if type(model.vision.resampler) is not IdentityResampler:
        kind = (config.resampler or {}).get("type")
        found.append(
            f"model.resampler.type={kind}: the layout has no place for its layers and norms; allowed is identity. "
            "Train with model.resampler=identity."
        )
    if type(model.position) is not NonePosition:
        kind = (config.position or {}).get("type")
        found.append(f"model.position.type={kind}: allowed is none. Train with model.position=none.")
    if config.join != "concat":
        found.append(f"model.join={config.join}: allowed is concat. Train with model.join=concat.")
    if config.tokens_per_side is not None:
        found.append(
            f"model.tokens_per_side={config.tokens_per_side}: stock LLaVA keeps every patch; allowed is null. Train "
            "with model.tokens_per_side=null."
        )
    projector: Any = model.projector
    if type(projector) is not MlpProjector:
        kind = (config.projector or {}).get("type")
        found.append(f"model.projector.type={kind}: allowed is mlp. Train with model.projector=mlp.")
        return found
    if not isinstance(projector.norm, nn.Identity):
        found.append("model.projector.input_norm=true: allowed is false. Train with model.projector.input_norm=false.")
    layers: Any = projector.layers
    hidden, text = layers[0].out_features, layers[-1].out_features
    if hidden > text:
        found.append(
            f"model.projector.width={hidden}: allowed is at most the language model's {text}. Train with "
            "model.projector.width=null."
        )
    return found


def _language_misfits(pano: PanoLlava) -> list[str]:
    language, name = pano.model.language_model, public_name(pano.model.config.language_name)
    head, found = language.get_output_embeddings(), []
    with torch.device("meta"):
        stock = type(AutoModel.from_config(language.config))
    if stock is not type(language.get_decoder()) or head.bias is not None or not pano.model.is_head_linear():
        found.append(
            f"model.language.name={name}: {type(language).__name__} computes logits in another way than a linear head "
            "without bias on transformers' base model. Train with a model of the Llama, Mistral or Qwen families."
        )
    for key, neutral in (("repetition_penalty", 1.0), ("no_repeat_ngram_size", 0)):
        if (value := getattr(pano.generation, key)) != neutral:
            found.append(
                f"generation.{key}={value}: transformers counts the question too, so answers would differ. Set "
                f"generation.{key}={neutral}."
            )
    try:
        processor = stock_processor(pano)
    except ValueError as error:
        return [*found, f"model.language.name={name}: {error}"]
    grid = pano.model.vision.tower.grid
    tokens = len(pano.crop.camera_rows) * grid[0] * grid[1]  # with the one resampler that fits
    return found + [
        f"model.language.name={name}: transformers' processor tokenises {_prompt_of(turns)!r} to other ids than "
        "training did. Use another language model; if its tokenizer adds a token at the start, it must be in its chat "
        "template too."
        for turns in (_turns(1), _turns(2))
        if _ids(processor, pano, turns) != pano.prompt.encode(turns, image_tokens=tokens).ids
    ]


def stock_processor(pano: PanoLlava) -> LlavaProcessor:
    """A stock processor whose prompts are those of the model; views of the model's size pass unchanged.

    Raises:
        ValueError: the chat format cannot be stated as a template.
    """
    tower, tokenizer = pano.model.vision.tower, copy.deepcopy(pano.prompt.tokenizer)
    is_clip, side = tower.config.model_type == _CLIP, tower.image_size[0]
    square = {"height": side, "width": side}
    mean, std = tower.normalisation
    images = (CLIPImageProcessor if is_clip else SiglipImageProcessor)(
        do_resize=False, do_center_crop=False, size=square, crop_size=square, image_mean=list(mean), image_std=list(std)
    )
    tokenizer.chat_template = template = pano.prompt.format.as_template(IMAGE_TOKEN)
    tokenizer.padding_side, tokenizer.pad_token_id = "left", pano.pad_id
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=patch_size(tower.model)[0],
        vision_feature_select_strategy="default" if is_clip else "full",
        num_additional_image_tokens=1 if is_clip else 0,
        chat_template=template,
        image_token=IMAGE_TOKEN,
    )


def stock_model(pano: PanoLlava) -> LlavaForConditionalGeneration:
    """A stock model of the same weights, which share their memory with the model's where they are the same.

    The placeholder gets an embedding, as stock code embeds it before it is replaced; it is never generated. A projector
    narrower than the language model is filled with zeros, and positions of the encoder are those of the views' size.
    """
    model, tower, language = pano.model, pano.model.vision.tower, pano.model.language_model
    decoder, head = language.get_decoder(), language.get_output_embeddings()
    embeddings = _with_placeholder(language.get_input_embeddings().weight, pano.prompt.image_id)
    tied = head.weight is language.get_input_embeddings().weight
    projector: Any = model.projector
    first, second = projector.layers[0], projector.layers[-1]
    missing = second.out_features - first.out_features
    state = {f"{_TOWER}{name}": value for name, value in _encoder_state(tower).items()}
    state |= {f"model.language_model.{name}": value for name, value in decoder.state_dict().items()}
    state |= {
        "model.language_model.embed_tokens.weight": embeddings,
        "lm_head.weight": embeddings if tied else _with_placeholder(head.weight, pano.prompt.image_id),
        "model.multi_modal_projector.linear_1.weight": nn.functional.pad(first.weight, (0, 0, 0, missing)),
        "model.multi_modal_projector.linear_1.bias": nn.functional.pad(first.bias, (0, missing)),
        "model.multi_modal_projector.linear_2.weight": nn.functional.pad(second.weight, (0, missing)),
        "model.multi_modal_projector.linear_2.bias": second.bias,
    }
    with torch.device("meta"):
        stock = LlavaForConditionalGeneration(_stock_config(pano, rows=len(embeddings), tied=tied))
    stock.load_state_dict({name: value.detach() for name, value in state.items()}, assign=True)
    stock.tie_weights()
    for source, target in ((tower.model, stock.model.vision_tower), (decoder, stock.model.language_model)):
        for path, buffer in source.named_buffers():  # those that no state has, such as rotary frequencies
            holder, _, name = path.rpartition(".")
            target.get_submodule(holder)._buffers[name] = buffer
    if tower.image_size[0] != tower.config.image_size:
        placed = stock.model.vision_tower.embeddings
        placed.position_ids = torch.arange(len(placed.position_embedding.weight))[None]
    chosen: Any = to_transformers(pano.generation, pano.stop_ids, pano.pad_id)
    del chosen.seed  # known to PanoLlava alone
    chosen.suppress_tokens = [pano.prompt.image_id]
    stock.generation_config = chosen
    return stock.eval()


def _stock_config(pano: PanoLlava, *, rows: int, tied: bool) -> LlavaConfig:
    tower, language = pano.model.vision.tower, pano.model.language_model
    vision, text = copy.deepcopy(tower.config), copy.deepcopy(language.config)
    vision.image_size = tower.image_size[0]
    text.vocab_size, text.tie_word_embeddings = rows, tied
    mark: dict[str, Any] = {MARK: version("panollava")}
    for part in (vision, text):
        part.name_or_path, part.dtype = public_name(part.name_or_path), None
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=pano.prompt.image_id,
        image_seq_length=pano.model.vision.tokens_per_view,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default" if vision.model_type == _CLIP else "full",
        vision_feature_layer=tower.feature_layer,
        multimodal_projector_bias=True,
        tie_word_embeddings=tied,
        **mark,
    )


def _encoder_state(tower: Any) -> dict[str, Tensor]:
    """The encoder's weights, with positions for views of its ``image_size``."""
    state, side = dict(tower.model.state_dict()), tower.image_size[0]
    if side != tower.config.image_size:
        embeddings, (height, width) = tower.model.embeddings, tower.grid
        old = embeddings.position_embedding.weight  # (N, Dv), after a class token in CLIP
        seen = old.new_zeros(1, tower.family.prefix_tokens + height * width, tower.width)
        (key,) = (name for name in state if name.endswith("position_embedding.weight"))
        with torch.no_grad():
            state[key] = embeddings.interpolate_pos_encoding(seen, side, side).reshape(-1, tower.width).contiguous()
    return state


def _with_placeholder(weight: Tensor, image_id: int) -> Tensor:
    """Rows ``(n, Dl)``, or more where the placeholder's has none; new ones are the mean, which no argmax prefers."""
    missing = image_id + 1 - len(weight)
    if missing <= 0:
        return weight
    return torch.cat([weight, weight.float().mean(dim=0, keepdim=True).to(weight.dtype).expand(missing, -1)])


def save_llava(folder: Path, pano: PanoLlava, dtype: torch.dtype) -> None:
    """Writes a model without ``misfits``, in fp32, as a folder whose weights are of ``dtype``.

    Names of weights are those that transformers 4.52 began with, as other programs read them. Later versions, which
    leave out one level of the encoder's names, open them too.
    """
    stock: Any = stock_model(pano)
    state = stock.to(dtype).state_dict()
    named = {name.replace(_TOWER, f"{_TOWER}vision_model."): value for name, value in state.items()}
    with quiet_transformers():
        stock.save_pretrained(folder, state_dict=named, save_original_format=False)
    stock_processor(pano).save_pretrained(folder)


@torch.no_grad()
def check_llava(folder: Path, pano: PanoLlava, dtype: torch.dtype) -> tuple[float, float]:
    """Opens what ``save_llava`` wrote with stock classes, and compares it with the model.

    The question is about one panorama of noise, in fp32. Weights of another ``dtype`` must be those of the model after
    the cast; the logits are then compared before it.

    Returns:
        The largest differences of logits: for the same pixels, and with those of the stock processor, which rounds
        them in another order. The latter grows with depth, so only the former decides, beside the pixels themselves.

    Raises:
        ValueError: other ids, other weights, pixels that differ by more than ``PIXELS``, or logits that differ by more
            than ``TOLERANCE`` for the same pixels.
    """
    with quiet_transformers():
        opened = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto").eval()
    processor = AutoProcessor.from_pretrained(folder)
    if dtype != torch.float32:
        stock = stock_model(pano)
        written = opened.state_dict()
        for name, weight in stock.state_dict().items():
            _require(torch.equal(written[name], weight.to(dtype)), f"has another {name} than the model")
        opened = stock
    for turns in (_turns(1), _turns(2)):
        same = _ids(processor, pano, turns) == pano.prompt.encode(turns, image_tokens=pano.image_tokens).ids
        _require(same, f"tokenises {_prompt_of(turns)!r} in another way")
    noise = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    panorama = np.asarray(Image.fromarray(noise).resize((512, 256), Image.Resampling.BICUBIC))
    views = pano.crop.views(pano.crop.whole(panorama))  # (V, 3, h, w)
    batch = pano.batch([views], [pano.encode(_QUESTIONS[0])])
    expected = pano.model(**{name: value for name, value in batch.model_inputs.items() if value is not None}).logits
    inputs, own = _inputs(processor, pictures(views), _turns(1)), pano.model.vision.tower.normalise(views)
    between = float((inputs["pixel_values"] - own).abs().max())
    _require(
        between <= PIXELS, f"normalises pixels in another way: they differ by {between:.3g}, allowed is {PIXELS:g}"
    )
    found = [
        float((opened(**{**inputs, "pixel_values": pixels}).logits[..., : expected.shape[-1]] - expected).abs().max())
        for pixels in (own, inputs["pixel_values"])
    ]
    reason = f"gives logits that differ by {found[0]:.3g} from the model's, allowed is {TOLERANCE:g}"
    _require(found[0] <= TOLERANCE, reason)
    return found[0], found[1]


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(f"The export {reason}. It was removed. {_REPORT}")


_REPORT = "Use layout=panollava, and report this with the versions of panollava and transformers."


def pictures(views: Tensor) -> list[Image.Image]:
    """Views ``(V, 3, h, w)`` uint8 as RGB pictures, as they are saved for tools that cannot cut panoramas."""
    return [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in views]


def _turns(count: int) -> list[tuple[str, str | None]]:
    return [*((question, "a ring") for question in _QUESTIONS[: count - 1]), (_QUESTIONS[count - 1], None)]


def _prompt_of(turns: list[tuple[str, str | None]]) -> str:
    return " / ".join(text for turn in turns for text in turn if text is not None)


def _ids(processor: Any, pano: PanoLlava, turns: list[tuple[str, str | None]]) -> list[int]:
    height, width = pano.model.vision.tower.image_size
    blank = torch.zeros(len(pano.crop.camera_rows), 3, height, width, dtype=torch.uint8)
    return _inputs(processor, pictures(blank), turns)["input_ids"][0].tolist()


def _inputs(processor: Any, views: list[Image.Image], turns: list[tuple[str, str | None]]) -> Any:
    """What a stock processor makes of a conversation whose first question is about the views."""
    messages = []
    for number, (question, answer) in enumerate(turns):
        shown = [{"type": "image", "image": view} for view in views] if number == 0 else []
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
