"""NVFP4 on both sides (`activations: nvfp4`): parity, and time beside the same weights decoded.

Every matrix that may be NVFP4 is, as in a folder by `hybrid quantize --only all`, so that all
products are measured in both forms.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gpu_kernels import choose, expert_branches, product_times
from gpu_steps import step_time
from hybrid.engine.model import EngineModel
from hybrid.engine.random_weights import random_weights
from hybrid.engine.weights import EngineWeights
from hybrid.gemma.config import GemmaConfig
from hybrid.kernels.experts import experts, experts_torch
from hybrid.kernels.launch import architecture
from hybrid.kernels.linear import linear, linear_gated, linear_gated_torch, linear_torch
from hybrid.kernels.native import NATIVE_ARCHITECTURES, NativeMatrix
from hybrid.types import Activations

_ALL = "experts", "mlp", "attention"
# What rounding an output to bfloat16 makes of a row, with room for sums in another order.
_ROUNDED = 0.004
# A gated number between two codes may fall to the other one, in some rows of experts.
_OTHER_CODES = 0.02


@dataclass(frozen=True, slots=True)
class Parity:
    """Errors of rows against the reference, relative to the row: the largest and the median."""

    name: str
    tokens: int
    largest: float
    median: float
    passed: bool


def missing_for_native(device: torch.device) -> str:
    """Why the device cannot multiply four bits by four bits; empty if it can."""
    if device.type != "cuda":
        return f"{device} has no tensor cores for four bits by four bits"
    if architecture(device) in NATIVE_ARCHITECTURES:
        return ""
    needed = ", ".join(f"{number / 10}" for number in NATIVE_ARCHITECTURES)
    found = f"compute capability {architecture(device) / 10}"
    return f"{torch.cuda.get_device_name(device)} has {found}; it takes one of {needed}"


def measure_native(
    config: GemmaConfig, batches: Sequence[int], context: int, device: torch.device
) -> dict[str, Any]:
    """Parity, and products and whole steps in both forms; or `skipped` or `error` and why."""
    missing = missing_for_native(device)
    if missing:
        return {"skipped": missing}
    try:
        return compare(config, batches, context, device)
    except Exception as error:  # all other measurements stand without this one
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def compare(
    config: GemmaConfig, batches: Sequence[int], context: int, device: torch.device
) -> dict[str, Any]:
    """What `measure_native` says where it measures; a CPU computes both by references.

    A form is loaded when the other one is gone.
    """
    parity: list[Parity] = []
    times: dict[tuple[str, int], dict[str, float]] = {}
    forms: tuple[Activations, Activations] = "float", "nvfp4"
    for form in forms:
        weights = random_weights(config, device, torch.bfloat16, _ALL, form)
        model = EngineModel(config, weights)
        for canvases in batches:
            tokens = canvases * config.canvas_length
            x = torch.randn(tokens, config.hidden_size, device=device, dtype=torch.bfloat16)
            if form == "nvfp4":
                parity += native_parity(weights, config, x)
            for name, ms, _ in product_times(weights, config, x):
                times.setdefault((name, tokens), {})[form] = round(ms, 4)
            step = step_time(model, canvases, context)
            times.setdefault(("whole step", tokens), {})[form] = step.step_ms
        del weights, model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {
        "passed": all(found.passed for found in parity),
        "parity": [asdict(found) for found in parity],
        "ms": [{"name": name, "tokens": tokens, **ms} for (name, tokens), ms in times.items()],
    }


def native_parity(weights: EngineWeights, config: GemmaConfig, x: Tensor) -> Iterator[Parity]:
    """Every operation that takes native matrices, on the first layer's, against its reference."""
    layer, branch = weights.layers[0].feed_forward, expert_branches(weights)[0]
    exact = x.double()
    inner = linear_gated(x, layer.gate_up)
    shares = choose(x, branch, config)
    matrices = layer.gate_up, layer.down, branch.gate_up, branch.down
    assert all(isinstance(matrix, NativeMatrix) for matrix in matrices)
    yield _parity("linear_gated", inner, linear_gated_torch(exact, layer.gate_up), _ROUNDED)
    yield _parity(
        "linear",
        linear(inner, layer.down),
        linear_torch(inner.double(), layer.down),
        _ROUNDED,
    )
    yield _parity(
        "experts",
        experts(x, *shares, branch.gate_up, branch.down),
        experts_torch(x, *shares, branch.gate_up, branch.down),
        _OTHER_CODES,
    )


def _parity(name: str, actual: Tensor, expected: Tensor, most: float) -> Parity:
    rows, exact = actual.double().flatten(0, -2), expected.double().flatten(0, -2)
    error = (rows - exact).norm(dim=-1) / exact.norm(dim=-1)
    largest, median = error.max().item(), error.median().item()
    passed = bool(error.isfinite().all()) and largest <= most and median <= _ROUNDED
    return Parity(name, len(actual), round(largest, 5), round(median, 5), passed)
