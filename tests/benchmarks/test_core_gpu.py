"""The GPU benchmark's parts, driven on a CPU at a tiny geometry: that they run, never how fast."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_gpu import geometry as real_geometry
from core_gpu import show, show_native

import gpu_native
from gpu_kernels import measure_kernels
from gpu_native import compare, measure_native, missing_for_native, native_parity
from gpu_parity import decode_is_exact
from gpu_steps import STEPS, step_time
from gpu_twin import measure_transformers
from hybrid.engine.model import EngineModel
from hybrid.engine.random_weights import random_weights
from hybrid.gemma.config import GemmaConfig
from hybrid.kernels.launch import interpreted
from hybrid.kernels.linear import linear
from tests.engine.test_engine_kernels import ALL, geometry
from tests.interpreter import correct

CPU = torch.device("cpu")
COMMAND = Path(__file__).resolve().parents[2] / "benchmarks" / "core_gpu.py"


def tiny() -> GemmaConfig:
    return replace(geometry(), sliding_window=24)


@torch.inference_mode()
def test_every_kernel_and_whole_steps() -> None:
    config = tiny()
    weights = random_weights(config, CPU, torch.bfloat16)
    kernels = measure_kernels(weights, config, 2, 40, 1.0)
    names = [kernel.name for kernel in kernels]
    assert len(names) == len({*names}) == 14
    assert all(kernel.tokens == 2 * config.canvas_length for kernel in kernels)
    assert all(kernel.ms > 0 and kernel.weight_gb >= 0 for kernel in kernels)
    step = step_time(EngineModel(config, weights), 2, 40)
    assert step.canvases == 2 and {*step.tokens_per_s} == {*STEPS}


PRODUCTS = "output, sliding", "output, full", "dense gate and up", "dense down", "experts"


@torch.inference_mode()
def test_four_bits_by_four_bits(capsys: pytest.CaptureFixture[str]) -> None:
    """On references, which differ from themselves in float64 by what bfloat16 rounds off."""
    native = compare(tiny(), (1, 2), 40, CPU)
    canvas = tiny().canvas_length
    timed = {(row["name"], row["tokens"]): row for row in native["ms"]}
    names = (*PRODUCTS, "whole step")
    assert {*timed} == {(name, tokens) for name in names for tokens in (canvas, 2 * canvas)}
    assert all(row["float"] > 0 and row["nvfp4"] > 0 for row in native["ms"])
    checked = [(row["name"], row["tokens"]) for row in native["parity"]]
    assert checked == [
        (name, tokens)
        for tokens in (canvas, 2 * canvas)
        for name in ("linear_gated", "linear", "experts")
    ]
    assert native["passed"] and all(row["passed"] for row in native["parity"])
    show_native(json.loads(json.dumps(native)))
    shown = capsys.readouterr().out
    assert shown.count("passed") == 6 and shown.count("whole step") == 2


@torch.inference_mode()
def test_parity_of_the_kernels() -> None:
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    correct()
    weights = random_weights(tiny(), CPU, torch.bfloat16, ALL, "nvfp4")
    with interpreted():
        found = [*native_parity(weights, tiny(), torch.randn(16, 64).bfloat16())]
    assert all(row.passed for row in found), found


@torch.inference_mode()
@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_parity_sees_what_is_wrong(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    weights = random_weights(tiny(), CPU, torch.bfloat16, ALL, "nvfp4")
    monkeypatch.setattr(gpu_native, "linear", lambda x, weight: wrong * linear(x, weight))
    found = native_parity(weights, tiny(), torch.randn(16, 64).bfloat16())
    assert [row.name for row in found if not row.passed] == ["linear"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(90, "Card has compute capability 9.0; it takes one of 10.0, "), (120, "")],
)
def test_which_cards_have_four_bit_products(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(gpu_native, "architecture", lambda device: number)
    missing = missing_for_native(torch.device("cuda"))
    assert missing.startswith(words) and bool(missing) == bool(words)


def test_a_cpu_has_none() -> None:
    native = measure_native(tiny(), (1,), 40, CPU)
    assert native == {"skipped": "cpu has no tensor cores for four bits by four bits"}


def test_an_error_is_reported_beside_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_native, "missing_for_native", lambda device: "")
    native = measure_native(tiny(), (0,), 40, CPU)
    assert {*native} == {"error"}
    show_native(native)
    assert "four bits by four bits: error, " in capsys.readouterr().out


@torch.inference_mode()
def test_the_decode_that_the_benchmark_checks() -> None:
    assert decode_is_exact(CPU)


@torch.inference_mode()
def test_transformers_at_the_same_geometry() -> None:
    found = measure_transformers(replace(tiny(), vocab_size=300), 30, CPU)
    assert "error" not in found, found
    assert {*found} == {"step_ms", "tokens_per_s_16"}


def test_the_geometry_is_the_published_one() -> None:
    """26 billion parameters, vision aside."""
    config = real_geometry()
    queries = config.num_attention_heads
    heads = [
        (2 * queries + layer.num_key_value_heads * (1 if layer.key_is_value else 2))
        * layer.head_dim
        for layer in config.layers
    ]
    inner = config.num_experts * config.moe_intermediate_size + config.intermediate_size
    rows = sum(heads) + 30 * (3 * inner + config.num_experts) + 3 * config.intermediate_size
    assert config.hidden_size * (rows + config.vocab_size) == pytest.approx(25.25e9, rel=1e-3)


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "name": "heads",
        "tokens": 256,
        "ms": 0.1,
        "weight_gb": 1,
        "gb_s": 2,
        "share_of_copy": 0.5,
    }
    step: dict[str, Any] = {
        "canvases": 1,
        "step_ms": 10.0,
        "commit_ms": 5.0,
        "canvas_of_16_ms": 165.0,
    }
    step["tokens_per_s"], step["peak_gb"] = dict.fromkeys(STEPS, 1500), 20.0
    result = {"kernels": [row], "steps": [step], "decode_is_exact": True, "copy_gb_s": 3000}
    show({**result, "native": {"skipped": "because"}, "transformers": {"step_ms": 100.0}})
    shown = " ".join(capsys.readouterr().out.split())
    assert "10.0 x ours" in shown and "four bits by four bits: skipped, because" in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("option", "code", "words"), [("--help", 0, "--output"), ("", 1, "CUDA")])
def test_without_a_gpu_the_command_says_so(option: str, code: int, words: str) -> None:
    command = [sys.executable, str(COMMAND), *option.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code and words in done.stdout + done.stderr
