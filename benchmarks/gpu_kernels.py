"""The time of each kernel of a denoising step, on a model's own weights."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gpu_timing import replayed_ms
from hybrid.engine.weights import EngineWeights, ExpertWeights, LayerWeights, Matrix
from hybrid.gemma.config import GemmaConfig
from hybrid.kernels.accept import FREE
from hybrid.kernels.attention import cached_attention
from hybrid.kernels.experts import experts
from hybrid.kernels.head import head_sample
from hybrid.kernels.linear import linear, linear_gated, linear_heads
from hybrid.kernels.norms import attention_residual, feed_forward_residual
from hybrid.kernels.route import route
from hybrid.kernels.soft_embed import soft_embed


@dataclass(frozen=True, slots=True)
class KernelTime:
    """Median milliseconds of one call; `weight_gb` is what it has to read of weights or cache."""

    name: str
    tokens: int
    ms: float
    weight_gb: float
    gb_s: float
    share_of_copy: float


def measure_kernels(
    weights: EngineWeights, config: GemmaConfig, canvases: int, context: int, copy_rate: float
) -> list[KernelTime]:
    """Each kernel for so many canvases, with its share of the device's copy bandwidth."""
    tokens = canvases * config.canvas_length
    return [
        KernelTime(name, tokens, *_rates(ms, size, copy_rate))
        for name, ms, size in kernel_times(weights, config, canvases, context)
    ]


def _rates(ms: float, size: float, copy_rate: float) -> tuple[float, float, float, float]:
    rate = size / 1e6 / ms
    return round(ms, 4), round(size / 1e9, 4), round(rate), round(rate / copy_rate, 3)


def nbytes(*weights: Matrix) -> int:
    """Bytes of matrices in the form in which they are read."""
    return sum(weight.nbytes for weight in weights)


def kernel_times(
    weights: EngineWeights, config: GemmaConfig, canvases: int, context: int
) -> Iterator[tuple[str, float, float]]:
    """Name, milliseconds and bytes of weights of each kernel of a step, over all layers."""
    device = weights.norm.device
    tokens, eps = canvases * config.canvas_length, config.rms_norm_eps
    x = torch.randn(tokens, config.hidden_size, device=device, dtype=torch.bfloat16)
    for kind in ("sliding", "full"):
        layers = _of_kind(weights, config, kind)
        yield (
            f"heads, {kind}",
            heads_time(layers, config, kind, x),
            nbytes(layers[0].attention.query_key_value),
        )
        yield f"attention, {kind}", *attention_time(config, kind, canvases, context, device)
    held = expert_branches(weights)
    yield (
        "route",
        replayed_ms(device, [partial(choose, x, branch, config) for branch in held]),
        nbytes(held[0].router),
    )
    yield from product_times(weights, config, x)
    norm = weights.norm
    yield (
        "attention residual",
        replayed_ms(device, [lambda: attention_residual(x, x, norm, norm, norm, eps)] * 30),
        6 * x.nbytes,
    )
    mixed = torch.randn(tokens, config.top_k_experts, config.hidden_size, device=device).bfloat16()
    yield (
        "feed-forward residual",
        replayed_ms(
            device,
            [lambda: feed_forward_residual(x, x, mixed, norm, norm, norm, 1.0, norm, eps)] * 30,
        ),
        4 * x.nbytes + mixed.nbytes,
    )
    yield from _vocabulary_times(weights, config, x)


def _of_kind(weights: EngineWeights, config: GemmaConfig, kind: str) -> list[LayerWeights]:
    pairs = zip(weights.layers, config.layers, strict=True)
    return [layer for layer, geometry in pairs if geometry.kind == kind]


def heads_time(layers: Sequence[LayerWeights], config: GemmaConfig, kind: str, x: Tensor) -> float:
    """Milliseconds of the projection before attention, with norms, rotation and cache."""
    geometry = next(layer for layer in config.layers if layer.kind == kind)
    shape = (len(x), geometry.num_key_value_heads, geometry.head_dim)
    keys, values = torch.empty(2, *shape, device=x.device, dtype=torch.bfloat16)
    angles = torch.rand(len(x), geometry.head_dim // 2, device=x.device)
    places = angles.cos(), angles.sin(), keys, values, torch.arange(len(x), device=x.device)

    def project(layer: LayerWeights) -> object:
        weights = layer.attention
        norms = weights.query_norm, weights.key_norm
        heads, eps = config.num_attention_heads, config.rms_norm_eps
        return linear_heads(x, weights.query_key_value, *norms, *places, heads, eps)

    return replayed_ms(x.device, [partial(project, layer) for layer in layers])


def output_time(
    layers: Sequence[LayerWeights], config: GemmaConfig, kind: str, tokens: int
) -> float:
    """Milliseconds of the projection after attention."""
    device = layers[0].attention.post_norm.device
    head_dim = next(layer.head_dim for layer in config.layers if layer.kind == kind)
    width = config.num_attention_heads * head_dim
    attended = torch.randn(tokens, width, device=device, dtype=torch.bfloat16)
    return replayed_ms(
        device, [partial(linear, attended, layer.attention.output) for layer in layers]
    )


def product_times(
    weights: EngineWeights, config: GemmaConfig, x: Tensor
) -> Iterator[tuple[str, float, float]]:
    """The products that NVFP4 weights may have on both sides: all but those of the heads."""

    def every(call: Callable[[LayerWeights], object]) -> float:
        return replayed_ms(x.device, [partial(call, layer) for layer in weights.layers])

    for kind in ("sliding", "full"):
        layers = _of_kind(weights, config, kind)
        yield (
            f"output, {kind}",
            output_time(layers, config, kind, len(x)),
            nbytes(layers[0].attention.output),
        )
    dense = weights.layers[0].feed_forward
    yield (
        "dense gate and up",
        every(lambda layer: linear_gated(x, layer.feed_forward.gate_up)),
        nbytes(dense.gate_up),
    )
    gated = linear_gated(x, dense.gate_up)
    yield (
        "dense down",
        every(lambda layer: linear(gated, layer.feed_forward.down)),
        nbytes(dense.down),
    )
    held = expert_branches(weights)
    calls = [
        partial(experts, x, *choose(x, branch, config), branch.gate_up, branch.down)
        for branch in held
    ]
    yield "experts", replayed_ms(x.device, calls), nbytes(held[0].gate_up, held[0].down)


def expert_branches(weights: EngineWeights) -> list[ExpertWeights]:
    """The experts of every layer."""
    branches = [layer.feed_forward.experts for layer in weights.layers]
    return [branch for branch in branches if branch is not None]


def choose(x: Tensor, branch: ExpertWeights, config: GemmaConfig) -> tuple[Tensor, Tensor]:
    """The experts of every row, and their weights."""
    return route(
        x,
        branch.router_scale,
        branch.router,
        branch.expert_scale,
        config.top_k_experts,
        config.rms_norm_eps,
    )


def _vocabulary_times(
    weights: EngineWeights, config: GemmaConfig, x: Tensor
) -> Iterator[tuple[str, float, float]]:
    temperature = torch.full((len(x),), 0.6, device=x.device)
    keys = torch.arange(len(x), device=x.device, dtype=torch.int32)
    arguments = x, weights.embedding, config.final_logit_softcapping, temperature, keys, None
    size = weights.embedding.nbytes
    yield (
        "head and sample",
        replayed_ms(x.device, [lambda: head_sample(*arguments)], repeats=10),
        size,
    )
    drawn = head_sample(*arguments)
    free = torch.full_like(keys, FREE)
    soft = partial(
        soft_embed, drawn.logits, drawn.log_sum_exp, weights.embedding, free, 53.0,
        drawn.tile_largest, 0.0,
    )  # fmt: skip
    yield "soft embedding", replayed_ms(x.device, [soft], repeats=10), size


def attention_time(
    config: GemmaConfig, kind: str, canvases: int, context: int, device: torch.device
) -> tuple[float, float]:
    """Milliseconds of one layer's attention at `context`, and the bytes of keys and values."""
    layer = next(layer for layer in config.layers if layer.kind == kind)
    window = config.sliding_window if kind == "sliding" else 0
    slots = context + config.canvas_length
    shape = (canvases, slots + 1, layer.num_key_value_heads, layer.head_dim)
    pairs = [torch.randn(2, *shape, device=device, dtype=torch.bfloat16) for _ in range(4)]
    query = torch.randn(
        canvases, config.canvas_length, config.num_attention_heads, layer.head_dim,
        device=device, dtype=torch.bfloat16,
    ) * layer.head_dim**-0.5  # fmt: skip
    rows = torch.arange(canvases, device=device, dtype=torch.int32)
    starts, lengths = torch.full_like(rows, context), torch.full_like(rows, config.canvas_length)
    calls = [
        partial(
            cached_attention, query, pair[0], pair[1], rows, starts, lengths, window, False, slots
        )
        for pair in pairs
    ]
    seen = min(slots, (window or slots) - 1 + config.canvas_length)
    return replayed_ms(device, calls), pairs[0].nbytes * seen / (slots + 1)
