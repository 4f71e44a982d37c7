"""Whether kernels compute what they should on this device."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hybrid.kernels.linear import linear
from hybrid.kernels.nvfp4 import E2M1_VALUES, pack_matrix, pack_torch

ROOT = Path(__file__).resolve().parents[1]


def decode_is_exact(device: torch.device) -> bool:
    """Every code under every finite scale, read through the matrix product that decodes it."""
    codes = torch.arange(16, dtype=torch.uint8).expand(256, 16)
    scales = torch.arange(256, dtype=torch.uint8)[:, None].view(torch.float8_e4m3fn)
    finite = ~scales.float().isnan()[:, 0]
    packed = pack_torch(codes)[finite][None].to(device)
    weight = pack_matrix(
        packed, scales[finite][None].to(device), torch.ones(1, len(packed[0]), device=device)
    )
    values = torch.tensor((*E2M1_VALUES, *(-value for value in E2M1_VALUES)))
    expected = (values * scales[finite].float()).T
    x = torch.eye(16, device=device, dtype=torch.bfloat16)
    return torch.equal(linear(x, weight).float().cpu(), expected)


def run_gpu_tests() -> dict[str, Any]:
    """The tests that compare every kernel with its reference at real sizes."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/kernels", "tests/engine"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=480)
    except subprocess.TimeoutExpired:
        return {"passed": False, "summary": "not finished in 480 s"}
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    failed = [line for line in lines if line.startswith("FAILED")]
    return {"passed": done.returncode == 0, "summary": lines[-1], "failed": failed}
