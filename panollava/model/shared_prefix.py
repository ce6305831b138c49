"""Texts about one panorama begin with the same tokens, up to its last one: their part is computed once.

For generation the cache of that prefix is copied to each text. For training the prefix and the texts lie behind each
other in one sequence: positions restart at the prefix's end, and each text sees the prefix and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from panollava.batch import PAD, PREFIX, image_end

if TYPE_CHECKING:
    from panollava.model.vlm import PanoLlavaForConditionalGeneration

PICTURE_INPUTS = ("pixel_values", "vision_features", "cameras", "view_mask")
"""Arguments of ``forward`` with a row a panorama."""
SPLIT = "panollava_shared_prefix"
"""Attention kernel: that of PyTorch, but prefixes that begin all rows alike attend with its causal form."""
KERNELS = ("eager", "sdpa", SPLIT)
"""Attention kernels that take the masks of shared prefixes."""


def packed_mask(segments: Tensor) -> Tensor:
    """Which keys each query sees, ``(B, 1, T, T)`` bool, of segments ``(B, T)``: earlier ones of its text and prefix.

    A pad sees itself and earlier pads, so that no row of the softmax is empty.
    """
    query, key = segments[:, :, None], segments[:, None, :]
    order = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    return (((key == query) | ((key == PREFIX) & (query != PAD))) & order)[:, None]


def attend_split(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of transformers, ``(B, heads, T, D)`` -> ``(B, T, heads, D)``; a mask may lack its first queries.

    Those are all in the prefix, and attend causally: PyTorch then needs no mask, computes half of the scores, and has
    its fastest kernel.
    """
    start = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[2]
    if attention_mask is None or start == 0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    options.pop("is_causal", None)
    query_before, key_before, value_before = (each[:, :, :start] for each in (query, key, value))
    prefix, _ = sdpa_attention_forward(module, query_before, key_before, value_before, None, is_causal=True, **options)
    rest, _ = sdpa_attention_forward(
        module, query[:, :, start:], key, value, attention_mask, is_causal=False, **options
    )
    return torch.cat([prefix, rest], dim=1), None


AttentionInterface.register(SPLIT, attend_split)
AttentionMaskInterface.register(SPLIT, sdpa_mask)


def mask_for(language_model: Any, segments: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask of packed rows as a language model's kernel takes it; SDPA becomes its form that splits."""
    mask = packed_mask(segments)  # (B, 1, T, T)
    kernel = language_model.config._attn_implementation
    if kernel == "eager":  # adds its mask to the scores
        return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    if kernel == "sdpa":
        language_model.set_attn_implementation(SPLIT)
    start = int((segments == PREFIX).all(dim=0).long().cumprod(0).sum())
    return mask[:, :, start:]


def repeat_last(image_tokens: Tensor, counts: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Image tokens ``(sum of counts, Dl)`` of panoramas ``(B,)``, the last token of each ``more`` times again."""
    times = torch.ones(len(image_tokens), dtype=torch.int64, device=image_tokens.device)
    times[counts.cumsum(0) - 1] += more
    return image_tokens.repeat_interleave(times, dim=0), counts + more


def unshareable(model: Any, length: int) -> str:
    """Why a language model cannot share prefixes of sequences of this length, and the way out; empty if it can."""
    config = model.config
    kernel = config._attn_implementation
    if kernel not in KERNELS:
        return f"model.language.attn_implementation={kernel} takes no mask of its own. Use sdpa or eager"
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and length > window:
        return (
            f"the language model attends to {window} tokens back, and sequences have up to {length}. Lower "
            "max_text_length or crop.overlap"
        )
    return ""


def prefill(model: PanoLlavaForConditionalGeneration, inputs: dict[str, Any], beams: int) -> dict[str, Any]:
    """Computes what comes before the questions once for each panorama.

    Args:
        inputs: of ``forward``, on the device: ``(B, T)`` ids and mask, padded on the left, fewer panoramas, and
            ``picture_index`` ``(B,)``.
        beams: rows of the cache for each question.

    Returns:
        Inputs of ``generate``: ids and mask with all prefixes padded to one length, and their cache.
    """
    ids, seen = inputs["input_ids"].cpu(), inputs["attention_mask"].cpu().bool()
    rows = [row[real].tolist() for row, real in zip(ids, seen, strict=True)]
    ends = [image_end(row, int(model.config.image_token_id or 0)) for row in rows]
    pictures = inputs["picture_index"].tolist()
    keys = [(picture, tuple(row[:end])) for picture, row, end in zip(pictures, rows, ends, strict=True)]
    groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    prefixes = _padded([prefix for _, prefix in groups], model.device)
    views = {name: inputs[name] for name in PICTURE_INPUTS if name in inputs}
    index = torch.tensor([picture for picture, _ in groups], device=model.device)
    cache = model(*prefixes, **views, picture_index=index, use_cache=True, logits_to_keep=1).past_key_values
    index = torch.tensor([groups[key] for key in keys], device=model.device)
    cache.batch_select_indices(index.repeat_interleave(beams))
    rest = _padded([row[end:] for row, end in zip(rows, ends, strict=True)], model.device)
    ids, seen = (torch.cat([before[index], after], dim=1) for before, after in zip(prefixes, rest, strict=True))
    return {"input_ids": ids, "attention_mask": seen, "past_key_values": cache}


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows, padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
