"""The interpreter that kernels are tested in: what is mended, and that it still has to be."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.interpreter import bfloat16_bits, bfloat16_values, e4m3_bits

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles here")
ALL_BFLOAT16 = torch.arange(65536).to(torch.uint16).view(torch.bfloat16)
ALL_E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


@triton.jit
def _copy(source, target, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(target + offsets, tl.load(source + offsets).to(target.dtype.element_ty))


@triton.jit
def _arithmetic(a, b, total, product, largest, fused, N: tl.constexpr):
    offsets = tl.arange(0, N)
    x, y = tl.load(a + offsets), tl.load(b + offsets)
    tl.store(total + offsets, x + y)
    tl.store(product + offsets, x * y)
    tl.store(largest + offsets, tl.maximum(x, y))
    tl.store(fused + offsets, tl.where(x < y, x, y))


@triton.jit
def _dot(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(c + m[:, None] * N + n[None, :], tl.dot(x, y))


@triton.jit
def _nvfp4_dot(a, a_scale, b, b_scale, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    k, s = tl.arange(0, K // 2), tl.arange(0, K // 16)
    x = tl.load(a + m[:, None] * (K // 2) + k[None, :])
    y = tl.load(b + n[None, :] * (K // 2) + k[:, None])
    xs = tl.load(a_scale + m[:, None] * (K // 16) + s[None, :])
    ys = tl.load(b_scale + n[:, None] * (K // 16) + s[None, :])
    place = c + m[:, None] * N + n[None, :]
    tl.store(place, tl.dot_scaled(x, xs, "e2m1", y, ys, "e2m1", tl.load(place)))


@triton.jit
def _count(target, N: tl.constexpr):
    for number in tl.range(tl.program_id(0), N, 2):
        tl.store(target + number, number)


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Equal as numbers, or both NaN."""
    return bool(((actual == expected) | (actual.isnan() & expected.isnan())).all())


def converted(source: Tensor, dtype: torch.dtype) -> Tensor:
    target = torch.empty(source.shape, dtype=dtype)
    _copy[(1,)](source, target, source.numel())
    return target


def nvfp4_operands(scale_codes: Tensor) -> tuple[Any, ...]:
    """Packed codes and scales [16, 64] and [32, 64] of both sides, and their product."""
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, 16, (n, 64), generator=generator) for n in (16, 32)]
    places = [torch.randint(len(scale_codes), (n, 4), generator=generator) for n in (16, 32)]
    scales = [scale_codes[place].view(torch.float8_e4m3fn) for place in places]
    values = [
        E2M1[code].double() * scale.double().repeat_interleave(16, 1)
        for code, scale in zip(codes, scales, strict=True)
    ]
    packed = [(code[:, 0::2] | code[:, 1::2] << 4).to(torch.uint8) for code in codes]
    return packed[0], scales[0], packed[1], scales[1], values[0] @ values[1].T


def test_every_bfloat16_becomes_its_float32_and_back() -> None:
    assert same_bits(converted(ALL_BFLOAT16, torch.float32), ALL_BFLOAT16.float())
    back = converted(ALL_BFLOAT16.float(), torch.bfloat16)
    assert same_bits(back.float(), ALL_BFLOAT16.float())


def test_float32_rounds_to_the_nearest_bfloat16_ties_to_even() -> None:
    finite = ALL_BFLOAT16[ALL_BFLOAT16.isfinite()].float()
    step = finite.view(torch.int32)[:, None] + torch.tensor([0x7FFF, 0x8000, 0x8001])
    between = step.flatten().view(torch.float32)[: 2**17]
    assert same_bits(converted(between, torch.bfloat16).float(), between.to(torch.bfloat16).float())
    bits = torch.from_numpy(bfloat16_bits(between.numpy()).astype(np.int32)).to(torch.uint16)
    assert torch.equal(bits.view(torch.bfloat16), between.to(torch.bfloat16))


def test_every_e4m3_becomes_its_float32_and_its_neighbours_round_to_it() -> None:
    assert same_bits(converted(ALL_E4M3, torch.float32), ALL_E4M3.float())
    finite = ALL_E4M3.float()[ALL_E4M3.float().isfinite()].sort().values
    between = torch.cat((finite, (finite[1:] + finite[:-1]) / 2, finite * 1.01, finite * 0.99))
    between = torch.cat((between, torch.tensor([1e9, -1e9])))
    between = between[: between.numel() // 2 * 2]
    padded = torch.nn.functional.pad(between, (0, 2048 - len(between)))
    expected = padded.clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(converted(padded, torch.float8_e4m3fn).float(), expected.float())
    assert torch.equal(torch.from_numpy(e4m3_bits(padded.numpy())), expected.view(torch.uint8))


def test_bfloat16_arithmetic_is_exact_then_rounded() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(4096, generator=generator).bfloat16() for _ in range(2))
    outputs = [torch.empty_like(a) for _ in range(4)]
    _arithmetic[(1,)](a, b, *outputs, 4096)
    expected = (a + b, a * b, torch.maximum(a, b), torch.minimum(a, b))
    assert all(torch.equal(o, e) for o, e in zip(outputs, expected, strict=True))
    assert np.array_equal(bfloat16_values(np.array([0x3F80, 0xC000], np.uint16)), [1.0, -2.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16])
def test_products_of_narrow_numbers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(32, 32, generator=generator).to(dtype) for _ in range(2))
    c = torch.empty(32, 32)
    _dot[(1,)](a, b, c, 32, 32, 32)
    torch.testing.assert_close(c, (a.double() @ b.double()).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale_codes", [range(0x7F), [1], [0x7E], [0, 0x38], range(8)])
def test_products_of_nvfp4(scale_codes: Sequence[int]) -> None:
    """Scales of every size on both sides, from 2^-9 to 448, added to what is there."""
    *operands, expected = nvfp4_operands(torch.tensor(scale_codes, dtype=torch.uint8))
    start = torch.randn(16, 32, generator=torch.Generator().manual_seed(1)) * expected.std()
    c = start.clone()
    _nvfp4_dot[(1,)](*operands, c, 16, 32, 64)
    exact = start.double() + expected
    assert ((c - exact).abs() <= 1e-6 * exact.abs().max()).all()


def test_a_program_counts_from_its_number() -> None:
    target = torch.zeros(7, dtype=torch.int32)
    _count[(2,)](target, 7)
    assert target.tolist() == list(range(7))


@pytest.mark.parametrize(
    ("what", "test"),
    [
        ("conversion", "test_float32_rounds_to_the_nearest_bfloat16_ties_to_even"),
        ("e4m3", "test_every_e4m3_becomes_its_float32_and_its_neighbours_round_to_it"),
        ("arithmetic", "test_bfloat16_arithmetic_is_exact_then_rounded"),
        ("dot", "test_products_of_narrow_numbers[dtype0]"),
        ("nvfp4", "test_products_of_nvfp4[scale_codes0]"),
    ],
)
def test_the_correction_is_still_needed(what: str, test: str) -> None:
    """Fails once Triton computes it right by itself: then the correction can go."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"{__file__}::{test}",
    ]
    environment = {**os.environ, "UNCORRECTED": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, f"{what}: Triton {triton.__version__} no longer needs mending"
