"""The chunked state-space scan against a loop over steps and against transformers' Mamba-2 in torch, in one run.

python experiments/benchmarks/scan.py [--rounds 7] [--threads 2 1] [--output scan.json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer, mamba2_chunk_scan

from panollava.model.state_space.layer import BidirectionalStateSpace
from panollava.model.state_space.scan import CHUNK, state_space_scan

logger = logging.getLogger(__name__)

LENGTHS = (256, 1024, 2048, 8192)
WIDTH, STATE, HEAD_WIDTH, CONV, EXPAND = 1024, 64, 64, 4, 2
"""Those of ``resampler=bimamba`` with real encoders; the scan has ``EXPAND * WIDTH`` channels."""

LAYERS = ((8, 256, 256), (1, 2048, 256), (8, 256, WIDTH), (1, 2048, WIDTH))
"""Sequences, tokens and width of the layers that are compared."""

THEIR_CHUNK = 256
"""Default of transformers; it is measured with our chunk too."""

OURS, LINEAR = "panollava", "the linear maps alone"
LOOP, UNBOUND_LOOP = "loop over steps", "loop over steps, unbound first"
LONGEST_LOOP = 2048
"""The plain loop's gradient is quadratic in the length: that of each step it takes out is as large as all of them."""

TRANSFORMERS = {f"transformers, chunk {chunk}": chunk for chunk in (THEIR_CHUNK, CHUNK)}

Actions = Mapping[str, Callable[[], Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="how often each way is taken, in turn with the others")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({os.cpu_count() or 1, 1}, reverse=True))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it warns that it has no kernels, as intended
    results: dict[str, Any] = {"machine": _machine(), "scans": [], "layers": []}
    for threads in options.threads:
        torch.set_num_threads(threads)
        for length in LENGTHS:
            ways = _scans(length)
            measured = _measured(f"scan of {length} tokens, {threads} threads", ways, options.rounds)
            results["scans"].append({"tokens": length, "threads": threads, **measured})
        for count, length, width in LAYERS:
            measured = _measured(
                f"layer, {count} x {length} x {width}, {threads} threads", _layers(count, length, width), options.rounds
            )
            results["layers"].append({"shape": [count, length, width], "threads": threads, **measured})
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    logger.info("%s\nWritten to %s.", _growth(results["scans"]), options.output)


def _scans(length: int) -> Actions:
    """Ways through one sequence, forward and backward: each returns the output."""
    torch.manual_seed(0)
    heads = EXPAND * WIDTH // HEAD_WIDTH
    values = torch.randn(1, length, heads, HEAD_WIDTH)
    step = torch.rand(1, length, heads) * 0.1
    rate, skip = torch.rand(heads) * 15 + 1, torch.randn(heads)
    write, read = torch.randn(1, length, STATE), torch.randn(1, length, STATE)
    leaves = [x.requires_grad_() for x in (values, step, rate, write, read, skip)]

    def ours() -> Tensor:
        return state_space_scan(*(x.unsqueeze(0) for x in leaves)).squeeze(0)

    def theirs(chunk: int) -> Callable[[], Tensor]:
        # Without a cast of its own it computes in float32, as ours does.
        return lambda: mamba2_chunk_scan(
            values, step, -rate, write.unsqueeze(2), read.unsqueeze(2), chunk_size=chunk, D=skip
        )

    ways = {OURS: ours, **{name: theirs(chunk) for name, chunk in TRANSFORMERS.items()}}
    ways[UNBOUND_LOOP] = lambda: _loop(*leaves, unbound=True)
    if length <= LONGEST_LOOP:
        ways[LOOP] = lambda: _loop(*leaves, unbound=False)
    return {name: _with_backward(way, leaves) for name, way in ways.items()}


def _loop(
    values: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor, skip: Tensor, *, unbound: bool
) -> Tensor:
    """The recurrence as it is written down.

    Args:
        values, step, rate, write, read, skip: as ``state_space_scan`` takes them for one set of rates.
        unbound: whether the steps are taken apart at once, for a gradient that is linear in the length.
    """
    weighted, decay = values * step.unsqueeze(-1), torch.exp(-step * rate)[..., None, None]
    state = values.new_zeros(*values[:, 0].shape, write.shape[-1])
    outputs = []
    by_step = (weighted.unsqueeze(-1), decay, write[:, :, None, None], read[:, :, None, :, None])
    apart = [x.unbind(1) for x in by_step] if unbound else None
    for t in range(values.shape[1]):
        value, factor, to_write, to_read = (x[t] for x in apart) if apart else (x[:, t] for x in by_step)
        state = state * factor + value * to_write
        outputs.append((state @ to_read).squeeze(-1))
    return torch.stack(outputs, dim=1) + values * skip.unsqueeze(-1)


def _layers(count: int, length: int, width: int) -> Actions:
    """Ways through a bidirectional layer, with the same weights."""
    torch.manual_seed(0)
    layer = BidirectionalStateSpace(width=width, state=STATE, conv=CONV, expand=EXPAND, head_width=HEAD_WIDTH)
    tokens = torch.randn(count, length, width, requires_grad=True)
    linear = [layer.gate_projection, layer.mixed_projection, layer.step_projection]

    def maps_alone() -> Tensor:
        projected = [module(tokens) for module in linear]
        both = projected[0].unflatten(-1, (2, -1))
        outward = layer.out_projection.weight.unflatten(0, (2, -1))
        return sum(both[:, :, index] @ outward[index].T for index in range(2)) + sum(x.sum() for x in projected[1:])

    ways: dict[str, Callable[[], Tensor]] = {OURS: lambda: layer(tokens), LINEAR: maps_alone}
    modules: list[nn.Module] = [layer]
    for name, chunk in TRANSFORMERS.items():
        pair = _BothWays(layer, width, chunk)
        modules.append(pair)
        ways[name] = lambda pair=pair: pair(tokens)  # type: ignore[misc]
    leaves = [tokens, *(parameter for module in modules for parameter in module.parameters())]
    return {name: _with_backward(way, leaves) for name, way in ways.items()}


class _BothWays(nn.Module):
    """Our layer made of two mixers of transformers, one for each direction, that have our layer's weights."""

    def __init__(self, layer: BidirectionalStateSpace, width: int, chunk: int) -> None:
        super().__init__()
        heads = EXPAND * width // HEAD_WIDTH
        config = Mamba2Config(
            hidden_size=width, num_heads=heads, head_dim=HEAD_WIDTH, state_size=STATE, n_groups=1, expand=EXPAND,
            conv_kernel=CONV, chunk_size=chunk, num_hidden_layers=1, layer_norm_epsilon=1e-5,
        )  # fmt: skip
        self.norm = nn.RMSNorm(width)
        self.mixers = nn.ModuleList(Mamba2Mixer(config, 0) for _ in range(2))
        for index, mixer in enumerate(self.mixers):
            projections = (layer.gate_projection, layer.mixed_projection, layer.step_projection)
            weights = {
                "in_proj.weight": torch.cat([module.weight.chunk(2)[index] for module in projections]),
                "conv1d.weight": layer.conv_weight[index].T.unsqueeze(1),
                "conv1d.bias": layer.conv_bias.chunk(2)[index],
                "dt_bias": layer.step_bias.chunk(2)[index],
                "A_log": layer.log_rate.chunk(2)[index],
                "D": layer.skip.chunk(2)[index],
                "norm.weight": layer.gate_norm.chunk(2)[index],
                "out_proj.weight": layer.out_projection.weight.chunk(2)[index],
            }
            mixer.load_state_dict({name: weight.detach() for name, weight in weights.items()})

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        forward, backward = self.mixers
        return tokens + 0.5 * (forward(normed) + backward(normed.flip(1)).flip(1))


def _with_backward(way: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], Tensor]:
    def action() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        output = way()
        output.backward(torch.ones_like(output))
        return output.detach()

    return action


def _measured(title: str, ways: Actions, rounds: int) -> dict[str, Any]:
    """Median milliseconds by way, what each keeps for its gradient, and how far its output is from ours."""
    kept: dict[str, float] = {}
    gaps: dict[str, float] = {}
    expected = ways[OURS]()
    for name, action in ways.items():
        output, kept[name] = _kept(action)
        if name != LINEAR:
            gaps[name] = float((output - expected).abs().max() / expected.abs().max())
    wrong = {name: gap for name, gap in gaps.items() if gap > 1e-4}
    if wrong:
        raise RuntimeError(f"{title}: not the same function, relative to the largest entry: {wrong}")
    times = _interleaved(ways, rounds)
    lines = [f"| {title} | ms | to ours | MB kept |", "|---|---|---|---|"]
    lines += [f"| {name} | {times[name]:.1f} | {times[name] / times[OURS]:.2f} | {kept[name]:.0f} |" for name in ways]
    logger.info("%s\n", "\n".join(lines))
    return {"milliseconds": times, "megabytes_kept": kept, "relative_gap": gaps}


def _interleaved(ways: Actions, rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, action in ways.items():
            start = time.perf_counter()
            action()
            taken[name].append((time.perf_counter() - start) * 1000)
    return {name: round(statistics.median(times), 2) for name, times in taken.items()}


def _kept(action: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """An action's output, and the megabytes of all that autograd keeps on the way, each storage once."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = action()
    return output, round(sum(sizes.values()) / 2**20, 1)


def _growth(scans: Sequence[Mapping[str, Any]]) -> str:
    """How much longer four times the tokens take."""
    lines = []
    for threads in dict.fromkeys(scan["threads"] for scan in scans):
        times = {scan["tokens"]: scan["milliseconds"][OURS] for scan in scans if scan["threads"] == threads}
        lines.append(f"{threads} threads: 8192 tokens take {times[8192] / times[2048]:.2f} times as long as 2048.")
    return "\n".join(lines)


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


if __name__ == "__main__":
    main()
