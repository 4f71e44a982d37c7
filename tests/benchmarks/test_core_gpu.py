"""The GPU benchmark's parts, driven on a CPU at a tiny geometry: that they run, never how fast."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_gpu import geometry as real_geometry
from core_gpu import show

from gpu_kernels import measure_kernels
from gpu_parity import decode_is_exact
from gpu_steps import STEPS, step_time
from gpu_twin import measure_transformers
from hybrid.engine.model import EngineModel
from hybrid.engine.random_weights import random_weights
from hybrid.gemma.config import GemmaConfig
from tests.engine.test_engine_kernels import geometry

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
    show({**result, "transformers": {"step_ms": 100.0}})
    assert "10.0 x ours" in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("option", "code", "words"), [("--help", 0, "--output"), ("", 1, "CUDA")])
def test_without_a_gpu_the_command_says_so(option: str, code: int, words: str) -> None:
    command = [sys.executable, str(COMMAND), *option.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code and words in done.stdout + done.stderr
