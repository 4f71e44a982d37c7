"""The GPU engine on this card, at the geometry of DiffusionGemma 26B-A4B and without its files.

    python benchmarks/core_gpu.py --output benchmarks/results/core_gpu.json

Weights are random, made on the device in their packed form. In this order: the exactness of the
NVFP4 decode, every kernel against its reference (the tests marked `gpu`), the card's copy
bandwidth, each kernel's time and the share of that bandwidth which it reads its weights at, whole
denoising steps as graph replays, on a Blackwell GPU four bits by four bits (parity, and time beside
bfloat16 activations), and transformers' bfloat16 model of the same geometry. Prints tables and, as
its last line, everything as JSON. Needs torch, triton, rich; transformers and pytest for their
parts. Takes under ten minutes on an H100.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed can be measured too

# ruff: noqa: E402
from gpu_kernels import measure_kernels
from gpu_native import measure_native
from gpu_parity import decode_is_exact, run_gpu_tests
from gpu_steps import STEPS, step_time
from gpu_timing import copy_gb_s
from gpu_twin import measure_transformers
from hybrid.engine.model import EngineModel
from hybrid.engine.random_weights import random_weights
from hybrid.gemma.config import GemmaConfig, LayerConfig

CONTEXT = 4096
BATCHES = (1, 4, 8)
# The published throughput is of 16 steps: vLLM with FP8 on one H100, batch 1, without the prompt.
VLLM_FP8_H100 = 1008
DEVICE = torch.device("cuda")
console = Console()
T = TypeVar("T")


def main() -> None:
    """Measure, print, and write the JSON."""
    arguments = _arguments()
    if not torch.cuda.is_available():
        sys.exit("core_gpu needs a CUDA device; this machine has none")
    result: dict[str, Any] = {"benchmark": "core_gpu", **environment()}
    with torch.inference_mode():
        result["decode_is_exact"] = report(
            "exact decode of 16 codes x 254 scales", partial(decode_is_exact, DEVICE)
        )
        if not arguments.skip_parity:
            result["parity"] = report("kernels against references", run_gpu_tests)
        result["copy_gb_s"] = round(report("copy bandwidth", partial(copy_gb_s, DEVICE)))
        result.update(report("the engine", partial(measure_engine, result["copy_gb_s"])))
        torch.cuda.empty_cache()
        result["native"] = report(
            "four bits by four bits", partial(measure_native, geometry(), BATCHES, CONTEXT, DEVICE)
        )
        if not arguments.skip_transformers:
            torch.cuda.empty_cache()
            result["transformers"] = report(
                "transformers, bf16", partial(measure_transformers, geometry(), CONTEXT, DEVICE)
            )
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


def measure_engine(copy_rate: float) -> dict[str, Any]:
    """Memory, kernels and whole steps."""
    torch.cuda.reset_peak_memory_stats()
    config = geometry()
    weights = random_weights(config, DEVICE, torch.bfloat16, packed=("experts",))
    loaded = torch.cuda.memory_allocated()
    model = EngineModel(config, weights)
    kernels = [
        kernel
        for canvases in BATCHES
        for kernel in measure_kernels(weights, config, canvases, CONTEXT, copy_rate)
    ]
    torch.cuda.empty_cache()
    steps = [step_time(model, canvases, CONTEXT) for canvases in BATCHES]
    return {
        "weights_gb": round(loaded / 1e9, 3),
        "kernels": [asdict(kernel) for kernel in kernels],
        "steps": [asdict(step) for step in steps],
    }


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
    show_native(result["native"])


def show_native(native: dict[str, Any]) -> None:
    """Products and steps by activations in bfloat16 and in NVFP4, or why there are none."""
    for outcome in ("skipped", "error"):
        if outcome in native:
            console.print(f"four bits by four bits: {outcome}, {native[outcome]}")
            return
    table = Table("NVFP4 weights", "tokens", "by bf16, ms", "by NVFP4, ms", "faster")
    for row in native["ms"]:
        cells = row["tokens"], row["float"], row["nvfp4"]
        table.add_row(row["name"], *map(str, cells), f"{row['float'] / row['nvfp4']:.2f} x")
    console.print(table)
    table = Table("four bits by four bits", "tokens", "largest error", "median", "parity")
    for row in native["parity"]:
        errors = row["largest"], row["median"]
        verdict = "passed" if row["passed"] else "FAILED"
        table.add_row(row["name"], str(row["tokens"]), *map(str, errors), verdict)
    console.print(table)


if __name__ == "__main__":
    main()
