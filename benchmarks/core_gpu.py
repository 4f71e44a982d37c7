"""The GPU engine on this card, at the geometry of DiffusionGemma 26B-A4B and without its files.

    python benchmarks/core_gpu.py --output benchmarks/results/core_gpu.json

Weights are random, made on the device in their packed form. In this order: the exactness of the
NVFP4 decode, every kernel against its reference (the tests marked `gpu`), the card's copy
bandwidth, each kernel's time and the share of that bandwidth which it reads its weights at, whole
denoising steps as graph replays, and transformers' bfloat16 model of the same geometry. Prints
tables and, as its last line, everything as JSON. Needs torch, triton, rich; transformers and pytest
for their parts. Takes under ten minutes on an H100.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed can be measured too

# ruff: noqa: E402
from hybrid.engine.canvases import FREE, Canvases, Start
from hybrid.engine.model import EngineModel
from hybrid.engine.random_weights import random_weights
from hybrid.engine.rooms import Rooms
from hybrid.engine.weights import EngineWeights, LayerWeights, Matrix
from hybrid.gemma.cache import Cache
from hybrid.gemma.config import GemmaConfig, LayerConfig
from hybrid.kernels.attention import cached_attention
from hybrid.kernels.experts import experts
from hybrid.kernels.head import head_sample
from hybrid.kernels.linear import linear, linear_gated, linear_heads
from hybrid.kernels.norms import attention_residual, feed_forward_residual
from hybrid.kernels.nvfp4 import E2M1_VALUES, pack_matrix, pack_torch
from hybrid.kernels.route import route
from hybrid.kernels.soft_embed import soft_embed

CONTEXT = 4096
BATCHES = (1, 4, 8)
STEPS = (8, 16, 24, 48)
# The published throughput is of 16 steps: vLLM with FP8 on one H100, batch 1, without the prompt.
VLLM_FP8_H100 = 1008
DEVICE = torch.device("cuda")
console = Console()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KernelTime:
    """Median milliseconds of one call; `weight_gb` is what it has to read of weights or cache."""

    name: str
    tokens: int
    ms: float
    weight_gb: float
    gb_s: float
    share_of_copy: float


@dataclass(frozen=True, slots=True)
class StepTime:
    """One denoising step and one commit pass of `canvases` canvases at `CONTEXT` tokens each."""

    canvases: int
    step_ms: float
    commit_ms: float
    canvas_of_16_ms: float
    tokens_per_s: dict[int, float]
    peak_gb: float


def main() -> None:
    """Measure, print, and write the JSON."""
    arguments = _arguments()
    if not torch.cuda.is_available():
        sys.exit("core_gpu needs a CUDA device; this machine has none")
    result: dict[str, Any] = {"benchmark": "core_gpu", **environment()}
    with torch.inference_mode():
        result["decode_is_exact"] = report("exact decode of 16 codes x 254 scales", decode_is_exact)
        if not arguments.skip_parity:
            result["parity"] = report("kernels against references", run_gpu_tests)
        result["copy_gb_s"] = round(report("copy bandwidth", copy_gb_s))
        result.update(report("the engine", partial(measure_engine, result["copy_gb_s"])))
        if not arguments.skip_transformers:
            torch.cuda.empty_cache()
            result["transformers"] = report("transformers, bf16", measure_transformers)
    show(result)
    text = json.dumps(result)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=1) + "\n")
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the GPU engine.")
    parser.add_argument("--output", help="also write the JSON to this file")
    parser.add_argument("--skip-parity", action="store_true", help="leave the tests out")
    parser.add_argument("--skip-transformers", action="store_true", help="leave transformers out")
    return parser.parse_args()


def report(what: str, work: Callable[[], T]) -> T:
    """Say what is measured and how long that took."""
    started = time.perf_counter()
    with console.status(what):
        outcome = work()
    console.print(f"{what}: {time.perf_counter() - started:.0f} s")
    return outcome


def geometry() -> GemmaConfig:
    """DiffusionGemma 26B-A4B, from its published config.json."""
    sliding = LayerConfig("sliding", 256, 8, False, 10_000.0, 1.0)
    full = LayerConfig("full", 512, 2, True, 1_000_000.0, 0.25)
    return GemmaConfig(
        architecture="diffusion_gemma",
        tensor_prefix="model.decoder.",
        hidden_size=2816,
        layers=tuple(full if index % 6 == 5 else sliding for index in range(30)),
        num_attention_heads=16,
        intermediate_size=2112,
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=704,
        vocab_size=262_144,
        sliding_window=1024,
        max_position_embeddings=262_144,
        rms_norm_eps=1e-6,
        final_logit_softcapping=30.0,
        canvas_length=256,
        end_token_ids=frozenset((1, 106, 50)),
        pad_token_id=0,
    )


def decode_is_exact() -> bool:
    """Every code under every finite scale, read through the matrix product that decodes it."""
    codes = torch.arange(16, dtype=torch.uint8).expand(256, 16)
    scales = torch.arange(256, dtype=torch.uint8)[:, None].view(torch.float8_e4m3fn)
    finite = ~scales.float().isnan()[:, 0]
    packed = pack_torch(codes)[finite][None].to(DEVICE)
    weight = pack_matrix(
        packed, scales[finite][None].to(DEVICE), torch.ones(1, len(packed[0]), device=DEVICE)
    )
    values = torch.tensor((*E2M1_VALUES, *(-value for value in E2M1_VALUES)))
    expected = (values * scales[finite].float()).T
    x = torch.eye(16, device=DEVICE, dtype=torch.bfloat16)
    return torch.equal(linear(x, weight).float().cpu(), expected)


def run_gpu_tests() -> dict[str, Any]:
    """The tests that compare every kernel with its reference at real sizes."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/kernels", "tests/engine"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return {"passed": False, "summary": "not finished in 300 s"}
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    failed = [line for line in lines if line.startswith("FAILED")]
    return {"passed": done.returncode == 0, "summary": lines[-1], "failed": failed}


def copy_gb_s() -> float:
    """Bytes read and written a second by copying 4 GB."""
    source = torch.empty(2**31, dtype=torch.bfloat16, device=DEVICE).normal_()
    target = torch.empty_like(source)
    ms = replayed_ms([lambda: target.copy_(source)], repeats=10)
    return 2 * source.nbytes / 1e6 / ms


def replayed_ms(calls: Sequence[Callable[[], object]], repeats: int = 20) -> float:
    """Median milliseconds of one of `calls`, which are captured in one graph and replayed.

    Calls on different weights keep the second-level cache from answering.
    """
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return timed_ms(graph.replay, repeats) / len(calls)


def timed_ms(call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds by the device's own clock, after two calls to warm up."""
    times = []
    for repeat in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        if repeat >= 2:
            times.append(float(start.elapsed_time(end)))
    return statistics.median(times)


def measure_engine(copy_rate: float) -> dict[str, Any]:
    """Memory, kernels and whole steps."""
    torch.cuda.reset_peak_memory_stats()
    config = geometry()
    weights = random_weights(config, DEVICE, torch.bfloat16, packed=("experts",))
    loaded = torch.cuda.memory_allocated()
    model = EngineModel(config, weights)
    kernels = []
    for canvases in BATCHES:
        kernels += [
            KernelTime(name, canvases * config.canvas_length, *_rates(ms, size, copy_rate))
            for name, ms, size in kernel_times(weights, config, canvases)
        ]
    torch.cuda.empty_cache()
    steps = [step_time(model, canvases) for canvases in BATCHES]
    return {
        "weights_gb": round(loaded / 1e9, 3),
        "kernels": [asdict(kernel) for kernel in kernels],
        "steps": [asdict(step) for step in steps],
    }


def _rates(ms: float, size: float, copy_rate: float) -> tuple[float, float, float, float]:
    rate = size / 1e6 / ms
    return round(ms, 4), round(size / 1e9, 4), round(rate), round(rate / copy_rate, 3)


def nbytes(*weights: Matrix) -> int:
    """Bytes of matrices in the form in which they are read."""
    return sum(weight.nbytes for weight in weights)


def kernel_times(
    weights: EngineWeights, config: GemmaConfig, canvases: int
) -> Iterator[tuple[str, float, float]]:
    """Name, milliseconds and bytes of weights of each kernel of a step, over all layers."""
    tokens, eps = canvases * config.canvas_length, config.rms_norm_eps
    x = torch.randn(tokens, config.hidden_size, device=DEVICE, dtype=torch.bfloat16)
    sliding = _of_kind(weights, config, "sliding")
    full = _of_kind(weights, config, "full")

    def every(layers: Sequence[LayerWeights], call: Callable[[LayerWeights], object]) -> float:
        return replayed_ms([partial(call, layer) for layer in layers])

    for kind, layers in (("sliding", sliding), ("full", full)):
        yield (
            f"heads, {kind}",
            heads_time(layers, config, kind, x),
            nbytes(layers[0].attention.query_key_value),
        )
        yield (
            f"output, {kind}",
            output_time(layers, config, kind, tokens),
            nbytes(layers[0].attention.output),
        )
        yield f"attention, {kind}", *attention_time(config, kind, canvases)
    dense = weights.layers[0].feed_forward
    yield (
        "dense gate and up",
        every(weights.layers, lambda layer: linear_gated(x, layer.feed_forward.gate_up)),
        nbytes(dense.gate_up),
    )
    gated = linear_gated(x, dense.gate_up)
    yield (
        "dense down",
        every(weights.layers, lambda layer: linear(gated, layer.feed_forward.down)),
        nbytes(dense.down),
    )
    yield from _expert_times(weights, config, x)
    norm = weights.norm
    yield (
        "attention residual",
        replayed_ms([lambda: attention_residual(x, x, norm, norm, norm, eps)] * 30),
        6 * x.nbytes,
    )
    mixed = torch.randn(tokens, config.top_k_experts, config.hidden_size, device=DEVICE).bfloat16()
    yield (
        "feed-forward residual",
        replayed_ms(
            [lambda: feed_forward_residual(x, x, mixed, norm, norm, norm, 1.0, norm, eps)] * 30
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
    keys, values = torch.empty(2, *shape, device=DEVICE, dtype=torch.bfloat16)
    angles = torch.rand(len(x), geometry.head_dim // 2, device=DEVICE)
    slots = torch.arange(len(x), device=DEVICE)

    def project(layer: LayerWeights) -> object:
        weights = layer.attention
        norms = weights.query_norm, weights.key_norm
        places = angles.cos(), angles.sin(), keys, values, slots
        heads, eps = config.num_attention_heads, config.rms_norm_eps
        return linear_heads(x, weights.query_key_value, *norms, *places, heads, eps)

    return replayed_ms([partial(project, layer) for layer in layers])


def output_time(
    layers: Sequence[LayerWeights], config: GemmaConfig, kind: str, tokens: int
) -> float:
    """Milliseconds of the projection after attention."""
    head_dim = next(layer.head_dim for layer in config.layers if layer.kind == kind)
    width = config.num_attention_heads * head_dim
    attended = torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16)
    return replayed_ms([partial(linear, attended, layer.attention.output) for layer in layers])


def _expert_times(
    weights: EngineWeights, config: GemmaConfig, x: Tensor
) -> Iterator[tuple[str, float, float]]:
    branches = [layer.feed_forward.experts for layer in weights.layers]
    held = [branch for branch in branches if branch is not None]

    def choose(branch: Any) -> tuple[Tensor, Tensor]:
        chosen: tuple[Tensor, Tensor] = route(
            x,
            branch.router_scale,
            branch.router,
            branch.expert_scale,
            config.top_k_experts,
            config.rms_norm_eps,
        )
        return chosen

    yield "route", replayed_ms([partial(choose, branch) for branch in held]), nbytes(held[0].router)
    chosen = [choose(branch) for branch in held]
    calls = [
        partial(experts, x, ids, shares, branch.gate_up, branch.down)
        for branch, (ids, shares) in zip(held, chosen, strict=True)
    ]
    yield "experts", replayed_ms(calls), nbytes(held[0].gate_up, held[0].down)


def _vocabulary_times(
    weights: EngineWeights, config: GemmaConfig, x: Tensor
) -> Iterator[tuple[str, float, float]]:
    temperature = torch.full((len(x),), 0.6, device=DEVICE)
    keys = torch.arange(len(x), device=DEVICE, dtype=torch.int32)
    arguments = x, weights.embedding, config.final_logit_softcapping, temperature, keys, None
    size = weights.embedding.nbytes
    yield "head and sample", replayed_ms([lambda: head_sample(*arguments)], repeats=10), size
    drawn = head_sample(*arguments)
    free = torch.full_like(keys, FREE)
    soft = partial(
        soft_embed, drawn.logits, drawn.log_sum_exp, weights.embedding, free, 53.0,
        drawn.tile_largest, 0.0,
    )  # fmt: skip
    yield "soft embedding", replayed_ms([soft], repeats=10), size


def attention_time(config: GemmaConfig, kind: str, canvases: int) -> tuple[float, float]:
    """Milliseconds of one layer's attention at `CONTEXT`, and the bytes of keys and values."""
    layer = next(layer for layer in config.layers if layer.kind == kind)
    window = config.sliding_window if kind == "sliding" else 0
    slots = CONTEXT + config.canvas_length
    shape = (canvases, slots + 1, layer.num_key_value_heads, layer.head_dim)
    pairs = [torch.randn(2, *shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(4)]
    query = torch.randn(
        canvases, config.canvas_length, config.num_attention_heads, layer.head_dim,
        device=DEVICE, dtype=torch.bfloat16,
    ) * layer.head_dim**-0.5  # fmt: skip
    rows = torch.arange(canvases, device=DEVICE, dtype=torch.int32)
    starts, lengths = torch.full_like(rows, CONTEXT), torch.full_like(rows, config.canvas_length)
    calls = [
        partial(
            cached_attention, query, pair[0], pair[1], rows, starts, lengths, window, False, slots
        )
        for pair in pairs
    ]
    seen = min(slots, (window or slots) - 1 + config.canvas_length)
    return replayed_ms(calls), pairs[0].nbytes * seen / (slots + 1)


def step_time(model: EngineModel, canvases: int) -> StepTime:
    """Graph replays of the denoising step and of the commit pass."""
    torch.cuda.reset_peak_memory_stats()
    length = model.config.canvas_length
    cache, rooms, state, rows = prepare(model, canvases)
    idle = torch.full_like(rows, state.idle_row)
    step = partial(
        rooms.graphs.run, ("denoise", canvases), partial(state.step, rooms), (rows,), (idle,)
    )
    ids = torch.randint(0, model.config.vocab_size, (canvases, length), device=DEVICE)
    numbers = list(range(canvases))

    def commit() -> None:
        cache.rollback(numbers, [CONTEXT - length] * canvases)
        model.encode(ids, [length] * canvases, cache, numbers)

    def canvas() -> None:
        for _ in range(16):
            step()
        commit()

    step()
    step_ms, commit_ms, canvas_ms = (timed_ms(call, 10) for call in (step, commit, canvas))
    if not state.outcome[:-1].isfinite().all():
        raise RuntimeError(f"a step of {canvases} canvases made numbers that are not finite")
    rates = {n: canvases * length / (n * step_ms + commit_ms) * 1e3 for n in STEPS}
    return StepTime(
        canvases,
        round(step_ms, 3),
        round(commit_ms, 3),
        round(canvas_ms, 2),
        {n: round(rate) for n, rate in rates.items()},
        round(torch.cuda.max_memory_allocated() / 1e9, 3),
    )


def prepare(model: EngineModel, canvases: int) -> tuple[Cache, Rooms, Canvases, Tensor]:
    """Rows that have read `CONTEXT` tokens, each at the first step of a canvas that never ends."""
    length, vocabulary = model.config.canvas_length, model.config.vocab_size
    cache = model.new_cache(canvases, CONTEXT)
    prompt = torch.randint(0, vocabulary, (canvases, CONTEXT), device=DEVICE)
    model.encode(prompt, [CONTEXT] * canvases, cache, list(range(canvases)))
    state = Canvases(model, canvases)
    for row in range(canvases):
        ids = torch.randint(0, vocabulary, (length,)).tolist()
        start = Start(row, 0, CONTEXT, 2**30, 0.1, 0.4, 0.8, 1, 0.0, ids, [FREE] * length)
        state.begin(row, start)
    return cache, model.rooms(cache), state, torch.arange(canvases, device=DEVICE)


def measure_transformers() -> dict[str, Any]:
    """A step of transformers' own generate at the same geometry: bfloat16, random weights."""
    try:
        with bfloat16_by_default():
            model = random_twin()
        prompt = torch.randint(3, 262_144, (1, CONTEXT), device=DEVICE)

        def generate(steps: int) -> float:
            torch.cuda.synchronize()
            started = time.perf_counter()
            model.generate(
                prompt,
                max_new_tokens=256,
                max_denoising_steps=steps,
                confidence_threshold=1e-12,
            )
            torch.cuda.synchronize()
            return time.perf_counter() - started

        generate(2)
        few, many = generate(2), generate(10)
    except Exception as error:  # reported beside our own numbers, which stand without it
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    step_ms = 1e3 * (many - few) / 8
    return {"step_ms": round(step_ms, 2), "tokens_per_s_16": round(256e3 / (17 * step_ms))}


def random_twin() -> Any:
    """transformers' model on the device, with weights of a sane size."""
    from transformers import (
        DiffusionGemmaConfig,
        DiffusionGemmaForBlockDiffusion,
        DiffusionGemmaTextConfig,
        Gemma4VisionConfig,
    )

    config = geometry()
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1_000_000.0,
        },
    }
    text = DiffusionGemmaTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=len(config.layers),
        layer_types=[f"{layer.kind}_attention" for layer in config.layers],
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=8,
        head_dim=256,
        global_head_dim=512,
        num_global_key_value_heads=2,
        sliding_window=config.sliding_window,
        max_position_embeddings=config.max_position_embeddings,
        final_logit_softcapping=config.final_logit_softcapping,
        rope_parameters=rope,
        num_experts=config.num_experts,
        top_k_experts=config.top_k_experts,
        moe_intermediate_size=config.moe_intermediate_size,
    )
    vision = Gemma4VisionConfig(num_hidden_layers=1)
    whole = DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=256)
    with torch.device(DEVICE):
        model = DiffusionGemmaForBlockDiffusion(whole).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model


@contextmanager
def bfloat16_by_default() -> Iterator[None]:
    """New tensors are bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def environment() -> dict[str, Any]:
    """What the numbers hold for."""
    properties = torch.cuda.get_device_properties(DEVICE)
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        commit = None
    versions = {}
    for name in ("torch", "triton", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "device": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "multiprocessors": properties.multi_processor_count,
        "context": CONTEXT,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        **versions,
        "commit": commit,
    }


def show(result: dict[str, Any]) -> None:
    """Kernels and steps as tables."""
    table = Table("kernel", "tokens", "ms", "weights GB", "GB/s", "of copy")
    for row in result["kernels"]:
        share = f"{row['share_of_copy']:.0%}"
        cells = (row["ms"], row["weight_gb"], row["gb_s"])
        table.add_row(row["name"], str(row["tokens"]), *map(str, cells), share)
    console.print(table)
    rates = [f"tok/s at {n}" for n in STEPS]
    table = Table("canvases", "step ms", "commit ms", "16 steps ms", *rates, "peak GB")
    for row in result["steps"]:
        times = (row["canvases"], row["step_ms"], row["commit_ms"], row["canvas_of_16_ms"])
        table.add_row(*map(str, (*times, *row["tokens_per_s"].values(), row["peak_gb"])))
    console.print(table)
    ours = result["steps"][0]["tokens_per_s"][16]
    console.print(f"decode exact: {result['decode_is_exact']}; copy {result['copy_gb_s']} GB/s")
    console.print(f"against vLLM's published {VLLM_FP8_H100} tok/s: {ours / VLLM_FP8_H100:.2f} x")
    theirs = result.get("transformers", {})
    if "step_ms" in theirs:
        ratio = theirs["step_ms"] / result["steps"][0]["step_ms"]
        console.print(f"transformers: {theirs['step_ms']} ms a step, {ratio:.1f} x ours")
    console.print(f"parity: {result.get('parity', 'left out')}")


if __name__ == "__main__":
    main()
