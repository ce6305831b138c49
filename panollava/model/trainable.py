"""Which weights of a backbone train, in which number format, and what they are called in checkpoints."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Blocks = Annotated[int, Ge(0)] | Literal["all"]  # of a backbone train its last N blocks, or every weight
ENCODER, LANGUAGE_MODEL = "vision.tower.", "language_model."  # how names of the backbones' weights begin


def train_language(model: Any, blocks: Blocks) -> None:
    """Freezes the language model of a ``PanoLlavaForConditionalGeneration`` but its last blocks and its adapter.

    0 trains the adapter alone; N also the last N blocks, ``"all"`` also embeddings and output layer.
    """
    count = len(model.language_blocks)
    check_language_blocks(blocks, count)
    for name, parameter in model.language_model.named_parameters():
        parameter.requires_grad_(blocks == "all" or is_adapter(name))
    if blocks != "all":
        for block in list(model.language_blocks)[count - blocks :]:
            block.requires_grad_(True)


def check_language_blocks(blocks: Blocks, count: int) -> None:
    """Raises ValueError if a language model has only ``count`` blocks, and more are to train."""
    if blocks != "all" and not 0 <= blocks <= count:
        raise ValueError(
            f"language_trainable_blocks={blocks}: the language model has {count} blocks, so 0 to {count} or all are "
            "possible."
        )


def make_fp32(parameters: Iterable[nn.Parameter]) -> None:
    """Gives weights that train the type of optimiser and gradients; ties between them stay."""
    for parameter in parameters:
        parameter.data = parameter.data.float()


def emit_as(module: nn.Module, dtype: torch.dtype) -> RemovableHandle:
    """Casts the output of a module that works in fp32 to the type of the frozen ones that read it."""

    def cast(_module: nn.Module, _inputs: object, output: Any) -> Any:
        return output.to(dtype) if isinstance(output, Tensor) else (output[0].to(dtype), *output[1:])

    return module.register_forward_hook(cast)


def is_adapter(name: str) -> bool:
    """Whether a weight is an adapter's."""
    return "lora_" in name


def is_backbone(name: str) -> bool:
    """Whether a weight belongs to the encoder or the language model itself, which a checkpoint usually lacks."""
    return name.startswith((ENCODER, LANGUAGE_MODEL)) and not is_adapter(name)


def plain_name(name: str) -> str:
    """A weight's name in checkpoints: an adapter's as it is, a backbone's without the adapter's wrappers."""
    if is_adapter(name):
        return name
    return name.replace(f"{LANGUAGE_MODEL}base_model.model.", LANGUAGE_MODEL).replace(".base_layer.", ".")


def named_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """All weights by the names they have in checkpoints."""
    return {plain_name(name): parameter for name, parameter in module.named_parameters()}


def refuse_buffers(module: nn.Module, key: str, *, constants: bool = False) -> None:
    """Refuses a module outside the backbones whose buffers a checkpoint, which has parameters alone, would lose.

    Args:
        key: names the module in the message.
        constants: allow buffers that are not persistent. An opened export leaves those undefined.

    Raises:
        ValueError: there is such a buffer; the message names it.
    """
    for path, part in module.named_modules():
        for name, _ in part.named_buffers(recurse=False):
            full = f"{path}.{name}".lstrip(".")
            is_constant = constants and name in part._non_persistent_buffers_set
            if not is_constant and not full.removeprefix("model.").startswith((ENCODER, LANGUAGE_MODEL)):
                raise ValueError(
                    f"{key}: checkpoints keep parameters alone, and would lose the buffer {full} of "
                    f"{type(part).__name__}. Take LayerNorm or GroupNorm in place of a BatchNorm, compute constants "
                    f"where they are used{' (or persistent=False)' if constants else ''}, and make what is learnt an "
                    "nn.Parameter."
                )


NEW_PARTS = ("vision.resampler.", "resampler.", "position.", "projector.")
"""Parts of a composite and of a ``PanoVision`` that no pretrained model has: a checkpoint has all weights of one."""


@torch.no_grad()
def load_trained(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copies all of a checkpoint's tensors into a model; ValueError where either lacks one, or their shapes differ."""
    parameters = named_weights(model)
    wrong = [
        f"{name} {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if name not in parameters or parameters[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(
            f"{source} does not fit the model its metadata describes: {len(wrong)} tensors have no place "
            f"(first: {', '.join(wrong[:3])}). The folder is damaged or mixes the files of two runs."
        )
    for part in NEW_PARTS:
        its = {name for name in parameters if name.startswith(part)}
        if its & tensors.keys() and (lacking := sorted(its - tensors.keys())):
            raise ValueError(
                f"{source} does not fit the model its metadata describes: it lacks {len(lacking)} weights (first: "
                f"{', '.join(lacking[:3])}), which would be random. Open it with the panollava that wrote it."
            )
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
