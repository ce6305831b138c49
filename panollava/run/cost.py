"""What a micro-batch of a stage costs: memory by part and FLOPs, from the shapes of its layers alone.

The forecast before a stage, the plan of a run and the largest batch that fits are all of these formulas. They read
shapes, so a model without weights has the same costs.

FLOPs: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B: 2 a weight and token forward, and backward 2 for the
gradients of inputs and 2 for those of weights, here of trained ones alone; for attention 4 a query and key forward. Its
backward pass has 10 instead of 8, as kernels compute the scores again: Dao et al. 2022, arXiv:2205.14135, appendix B.
Activations: Korthikanti et al. 2022, arXiv:2205.05198, section 4; here frozen layers keep no inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from panollava.model.vision import VisionTower
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.stages.language import PART
from panollava.stages.protocol import Stage
from panollava.stages.vision import OverlapStage
from panollava.training.options import StageOptions

if TYPE_CHECKING:  # a run needs Hydra, and what is here does not
    from panollava.run.run import Run

GRADIENT, MOMENTS = 4, 8
"""Bytes of a weight's gradient and of AdamW's two moments, all fp32."""
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits of a weight in NF4 with scales of 64 that are quantised too. Source: arXiv:2305.14314, section 3."""
GAPS = 1.4
"""Memory that a CPU's allocator takes for a byte of activations: it keeps what intermediates below 32 MB have freed.

Fitted with glibc (experiments/benchmarks/memory.py). A GPU's allocator is left 10 % of the memory in the plan.
"""
NORM = 4
"""Bytes of a number in a norm, which computes in fp32."""


@dataclass(frozen=True)
class MicroBatch:
    """What goes through a stage at once.

    Attributes:
        panoramas, views: panoramas, and views of each.
        encoded: views in one call of the encoder.
        rows, length: sequences of the language model, and tokens of each.
        targets: tokens with a label, of all rows.
        is_ragged: whether the texts have different lengths, so that attention needs a mask.
        prefix: first tokens of a row that need no mask.
        is_stored: whether the encoder's features come from the store.
        window: micro-batches of an optimiser step, whose views are on the device together.
    """

    panoramas: int
    views: int
    encoded: int
    rows: int = 0
    length: int = 0
    targets: int = 0
    is_ragged: bool = False
    prefix: int = 0
    is_stored: bool = False
    window: int = 1

    @classmethod
    def of(cls, run: Run, stage: Stage, options: StageOptions, text: int) -> MicroBatch:
        """That of a run's stage, with texts of ``text`` tokens, all of which are targets."""
        samples, views, image = options.batch_size, len(run.backbones.crop.camera_rows), run.backbones.image_tokens
        is_stored = run.store.enabled and not _trained_from(stage.vision.tower) and not run.data.augment.is_on
        encoded = views if is_stored else samples * views  # what the store lacks is encoded by itself
        if stage.composite is None:
            return cls(samples, views, encoded, is_stored=is_stored, window=options.accumulate)
        together = min(samples, run.data.records_a_panorama) if run.data.shared_prefix else 1
        rows = -(-samples // together)
        return cls(
            panoramas=rows,
            views=views,
            encoded=encoded,
            rows=rows,
            length=image + together * text,
            targets=samples * text,
            is_ragged=samples > 1,
            prefix=image if together > 1 else 0,
            is_stored=is_stored,
            window=options.accumulate,
        )


@dataclass(frozen=True)
class Setting:
    """How a stage computes.

    Attributes:
        dtype: of frozen weights and of autocast.
        recomputes: ``trainer.checkpoint_activations``.
        attention: kernel of the language model.
        is_gpu: on a GPU dropout keeps a byte a number, on a CPU a number; allocators differ too.
        shards: processes that have a part of the weights each.
        is_4bit: whether the language model, which is not in four bits here, will be.
    """

    dtype: torch.dtype
    recomputes: bool = False
    attention: str = "sdpa"
    is_gpu: bool = True
    shards: int = 1
    is_4bit: bool = False

    @classmethod
    def of(cls, run: Run) -> Setting:
        """That of a run on its device, or on the one that it is planned for."""
        language = run.cfg.model.language
        return cls(
            run.compute.dtype,
            recomputes=run.trainer.checkpoint_activations,
            attention=language.attn_implementation,
            is_gpu=run.compute.device.type != "cpu",
            shards=run.procs.world_size if run.is_sharded else 1,
            is_4bit=language.load_in_4bit and not run.backbones.weights,
        )

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize


@dataclass(frozen=True)
class Memory:
    """Memory of a step on one device, in bytes, by part."""

    weights: int  # and their copies in the type of autocast
    gradients: int
    optimiser: int
    activations: int  # what the backward pass needs, and the largest intermediates
    logits: int  # with their loss and gradient
    views: int  # or stored features

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, part.name) for part in fields(self))

    @property
    def step(self) -> int:
        """What grows with the batch."""
        return self.activations + self.logits + self.views


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a micro-batch; a product and a sum are two."""

    encoder: int  # forward pass of an encoder that is frozen; 0 where it trains
    forward: int  # of all else
    backward: int  # with what is computed again


@dataclass(frozen=True)
class Block:
    """A transformer block, for one token."""

    width: int  # of the residual stream
    weights: int  # of its matrices, with those of an adapter
    trained: int  # those of them that train
    queries: int  # width of all heads' queries
    kept: int  # bytes for the backward pass, without attention scores
    largest: int  # numbers at a time where no backward pass follows


def memory(stage: Stage, batch: MicroBatch, setting: Setting) -> Memory:
    """Memory of a step by part.

    Gradients and activations are added, although the last of one and the first of the other are not there together.
    """
    trained = list(stage.trained().values())
    count, size = sum(weight.numel() for weight in trained), setting.size
    copies = size * sum(weight.numel() for weight in trained if weight.ndim > 1) if size < NORM else 0
    tower, model = stage.vision.tower, stage.composite
    views = batch.panoramas * batch.views
    kept = views * sum(tokens * _kept(part, size) for part, tokens in _between(stage).items())
    logits = 0
    if model is not None:
        kept += _language(model, batch, setting)
        vocabulary = model.config.get_text_config().vocab_size
        at_once = batch.targets * vocabulary
        if stage.parts_logits:
            at_once = min(at_once, max(PART, vocabulary))
        logits = 3 * 4 * at_once  # logits, their log-probabilities and the gradient, all fp32
    encoder = _encoder(tower, batch, setting)
    # A frozen encoder has freed its intermediates before the others are computed.
    activations = kept + encoder if _trained_from(tower) else max(kept, encoder)
    picture = _patches(tower) * tower.width * size if batch.is_stored else _pixels(tower)
    return Memory(
        weights=_weights(stage, setting) + copies,
        gradients=GRADIENT * count // setting.shards,
        optimiser=MOMENTS * count // setting.shards,
        activations=round(activations * (1 if setting.is_gpu else GAPS)),
        logits=logits,
        views=views * picture * batch.window,
    )


def flops(stage: Stage, batch: MicroBatch, setting: Setting) -> Flops:
    """FLOPs of a micro-batch: of matrices, convolutions and attention; sums, norms and scans are not counted.

    Attention is counted in full, although a causal kernel without a mask leaves out half of the scores.
    """
    tower, model = stage.vision.tower, stage.composite
    patches, views = _patches(tower), batch.panoramas * batch.views
    blocks = [measure(block, setting) for block in tower.blocks]
    encoder = sum(_forward(block, views, patches) for block in blocks)
    encoder += 2 * views * patches * _matrices(tower.model, nn.Conv2d)
    forward = backward = 0
    if first := _trained_from(tower):
        encoder, forward = 0, encoder
        backward = sum(_backward(block, views, patches, recomputes=setting.recomputes) for block in blocks[-first:])
    for part, tokens in _between(stage).items():
        product = 2 * views * tokens * _matrices(part, nn.Linear, nn.Conv1d, nn.Conv2d)
        forward, backward = forward + product, backward + 2 * product
    if model is not None:
        for block in (measure(one, setting) for one in model.language_blocks):
            forward += _forward(block, batch.rows, batch.length)
            backward += _backward(block, batch.rows, batch.length, recomputes=setting.recomputes)
        head: Any = model.get_output_embeddings()
        product = 2 * batch.targets * head.in_features * head.out_features
        in_parts = stage.parts_logits and batch.targets * head.out_features > PART  # then computed again
        forward += product
        backward += product * (1 + in_parts + head.weight.requires_grad)
    return Flops(encoder, forward, backward)


def _between(stage: Stage) -> dict[nn.Module, int]:
    """The parts between encoder and language model, which all train, and how many tokens of a view each computes."""
    vision, model = stage.vision, stage.composite
    parts: dict[nn.Module, int] = {vision.resampler: max(_patches(vision.tower), vision.resampled_per_view)}
    others = [part for part in stage.children() if part not in (vision, model)]
    if model is not None:
        others.append(model.projector)
    of_resampler = isinstance(stage, OverlapStage)  # whose head reads the resampler's tokens before they are pooled
    return parts | dict.fromkeys(others, vision.resampled_per_view if of_resampler else vision.tokens_per_view)


def measure(block: nn.Module, setting: Setting) -> Block:
    """Counts a block's matrices, and what its backward pass needs.

    That are the inputs of norms, activation functions and products, queries, keys, values and outputs of the attention
    (keys and values repeated for each query head), the inputs of layers that train, and of an adapter its dropped
    inputs, its mask and its inner states.
    """
    size = setting.size
    named = [(n, one) for n, one in block.named_modules() if isinstance(one, nn.Linear) and "lora_" not in n]
    attention = [layer for name, layer in named if "attn" in name or "attention" in name]
    mlp = [layer for _, layer in named if layer not in attention]
    width = named[0][1].in_features if named else 0
    queries = attention[-1].in_features if attention else 0
    hidden = sum(layer.out_features for layer in mlp[:-1])
    inner = mlp[-1].in_features if mlp else 0
    kept = size * (4 * queries + hidden + (inner if hidden > inner else 0))  # a gate's product keeps both factors
    reads = _readers(block)
    for group in (attention, mlp):  # the first layers of each read the same input
        kept += size * width * any(layer in reads for layer in group[:-1])
    kept += size * inner * bool(mlp and mlp[-1] in reads)
    for norm in filter(_is_norm, _modules(block)):
        numbers = norm.weight.numel() if norm.weight.numel() >= width else queries  # of the queries' or keys' heads
        kept += numbers * (NORM + size * norm.weight.requires_grad)
    weights = sum(layer.in_features * layer.out_features for _, layer in named)  # in four bits two share an entry
    trained = sum(layer.weight.numel() for _, layer in named if layer.weight.requires_grad)
    for one in _modules(block):
        if hasattr(one, "lora_A"):
            for name, down in one.lora_A.items():
                up = one.lora_B[name]
                count = down.weight.numel() + up.weight.numel()
                weights, trained = weights + count, trained + count * down.weight.requires_grad
                drops = isinstance(one.lora_dropout[name], nn.Dropout)
                kept += size * down.out_features + down.in_features * drops * (size + (1 if setting.is_gpu else 4))
    return Block(width, weights, trained, queries, kept, 2 * width + max(4 * queries, hidden + inner))


def _readers(block: nn.Module) -> set[nn.Module]:
    """Linear layers whose backward pass needs their input as it is: they train, or an adapter without dropout does."""
    layers = (one for one in block.modules() if isinstance(one, nn.Linear))
    found: set[nn.Module] = {layer for layer in layers if layer.weight.requires_grad}
    for one in _modules(block):
        if hasattr(one, "lora_A"):
            plain = [name for name, drop in one.lora_dropout.items() if not isinstance(drop, nn.Dropout)]
            if any(one.lora_A[name].weight.requires_grad for name in plain):
                found.add(one.base_layer)
    return found


def _forward(block: Block, rows: int, length: int) -> int:
    return rows * length * (2 * block.weights + 4 * length * block.queries)


def _backward(block: Block, rows: int, length: int, *, recomputes: bool) -> int:
    linear = 2 * (block.weights + block.trained)
    scores = 10 * length * block.queries  # two products forward; four backward, and one again for the scores
    return rows * length * (linear + scores) + recomputes * _forward(block, rows, length)


def _language(model: PanoLlavaForConditionalGeneration, batch: MicroBatch, setting: Setting) -> int:
    """Bytes that the language model keeps, without its head; all its blocks pass gradients on to the image tokens."""
    config, tokens = model.config.get_text_config(), batch.rows * batch.length
    blocks = [measure(block, setting) for block in model.language_blocks]
    masked = batch.rows * (batch.length - batch.prefix) * batch.length
    scores = masked * setting.size if batch.is_ragged and setting.attention == "sdpa" else 0
    if setting.attention == "eager":  # probabilities in fp32, and in the type of the values
        numbers = batch.rows * batch.length**2 * config.num_attention_heads
        scores = numbers * (4 + (setting.size if setting.size < 4 else 0))
    each = [tokens * block.kept + scores for block in blocks]
    if setting.recomputes:  # each block keeps its input, and one at a time all it computes
        each = [tokens * block.width * setting.size for block in blocks] + [max(each)]
    ends = tokens * config.hidden_size * (2 * setting.size + NORM)  # embeddings, before and after fusion; last norm
    gradients = tokens * max(block.kept for block in blocks)  # of one block at a time
    return sum(each) + ends + gradients


def _encoder(tower: VisionTower, batch: MicroBatch, setting: Setting) -> int:
    """Bytes that a trained encoder keeps, or that a frozen one takes while it computes."""
    patches, size = _patches(tower), setting.size
    blocks = [measure(block, setting) for block in tower.blocks]
    pixels = _pixels(tower) * (4 + (size if size < 4 else 0))  # normalised in fp32
    if first := _trained_from(tower):
        each = [block.width * size if setting.recomputes else block.kept for block in blocks[-first:]]
        largest = max(block.kept for block in blocks)  # its gradients, or what is computed again
        return batch.panoramas * batch.views * (patches * (sum(each) + largest) + pixels)
    largest = max((block.largest for block in blocks), default=0)
    return batch.encoded * (patches * largest * size + pixels)


def _patches(tower: VisionTower) -> int:
    return tower.grid[0] * tower.grid[1]


def _pixels(tower: VisionTower) -> int:
    """Numbers of a view, which are its bytes in uint8."""
    return 3 * tower.image_size[0] * tower.image_size[1]


def _trained_from(tower: VisionTower) -> int:
    """How many of the last blocks keep activations: from the first that trains on. 0 for a frozen encoder."""
    trains = [any(weight.requires_grad for weight in block.parameters()) for block in tower.blocks]
    return len(trains) - trains.index(True) if True in trains else 0


def _weights(stage: Stage, setting: Setting) -> int:
    """Bytes of the weights; shards are of all but a frozen encoder, which each process runs by itself."""
    model = stage.composite
    own = [*stage.parameters(), *stage.buffers()]
    found = sum(one.numel() * one.element_size() for one in own)
    if setting.is_4bit and model is not None:
        held = [one.weight for one in model.language_blocks.modules() if isinstance(one, nn.Linear)]
        frozen = [weight for weight in held if not weight.requires_grad]
        found += round(sum(one.numel() * (NF4_BITS / 8 - one.element_size()) for one in frozen))
    whole = 0
    if not _trained_from(stage.vision.tower):
        whole = sum(one.numel() * one.element_size() for one in stage.vision.tower.parameters())
    return whole + (found - whole) // setting.shards


def _kept(part: nn.Module, size: int) -> int:
    """Bytes for one token of a part that trains: inputs and outputs of its linear layers and of its norms."""
    linear = (one.in_features + one.out_features for one in part.modules() if isinstance(one, nn.Linear))
    return size * sum(linear) + NORM * sum(one.weight.numel() for one in _modules(part) if _is_norm(one))


def _matrices(part: nn.Module, *kinds: type) -> int:
    matrices: list[Any] = [one for one in part.modules() if isinstance(one, kinds)]
    return sum(one.weight.numel() for one in matrices)


def _modules(part: nn.Module) -> list[Any]:
    return list(part.modules())


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), nn.Parameter)
