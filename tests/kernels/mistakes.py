"""Kernels that a GPU would be slow with or could not run, for the gate to find: run as a script."""

import json
from functools import partial

import torch
import triton
import triton.language as tl

from hybrid.kernels.gate.cases.case import NARROW, WIDE, Case, meta
from hybrid.kernels.gate.findings import examine
from hybrid.kernels.gate.jobs import Job
from hybrid.kernels.launch import launch, recording


@triton.jit
def fine(a, b, c, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, 64)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, K, 64):
        x = tl.load(a + m[:, None] * K + start + k[None, :])
        y = tl.load(b + n[None, :] * K + start + k[:, None])
        total = tl.dot(x, y, total)
    tl.store(c + m[:, None] * N + n[None, :], total)


@triton.jit
def waits(a, b, c, stride, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, 64)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, K, 64):
        x = tl.load(a + (m[:, None] * stride + start + k[None, :]) * stride)
        y = tl.load(b + n[None, :] * K + start + k[:, None])
        total = tl.dot(x, y, total)
    tl.store(c + m[:, None] * N + n[None, :], total)


@triton.jit
def twice(a, b, c, stride, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """A short loop that is well, and a longer one that waits."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, 64)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, K, 64):
        x = tl.load(a + m[:, None] * K + start + k[None, :])
        y = tl.load(b + n[None, :] * K + start + k[:, None])
        total = tl.dot(x, y, total)
    for start in range(0, K, 64):
        x = tl.load(a + (m[:, None] * stride + start + k[None, :]) * stride)
        y = tl.load(b + n[None, :] * K + start + k[:, None])
        total = tl.dot(x, y, total)
    tl.store(c + m[:, None] * N + n[None, :], total)


@triton.jit
def sums(a, b, c, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    m, k = tl.arange(0, M), tl.arange(0, K)
    tl.store(c + m, tl.sum(tl.load(a + m[:, None] * K + k[None, :]).to(tl.float32), 1))


@triton.jit
def broken(a, b, c, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    tl.store(c + tl.arange(0, M), tl.load(a + tl.arange(0, N)))


def run(kernel, m: int, n: int, **numbers: int) -> None:
    k = 256 if kernel is sums else 4096
    arguments = meta(m, k), meta(n, k), meta(m, n, dtype=torch.float32)
    launch(kernel, (1,), *arguments, **numbers, K=k, M=m, N=n)


def problems(
    kernel, m: int, n: int, num_warps: int = 4, recorded: list[int] | None = None, **numbers: int
):
    """What the gate says of one launch."""
    call = partial(run, kernel, m, n, **numbers)
    matrix = WIDE if m >= 64 else NARROW
    with recording(90) as launches:
        call()
    job = Job(Case("mistake", call, (kernel.__name__,), matrix), launches[0], 90)
    return examine(job, recorded).problems


if __name__ == "__main__":
    found = {
        "fine": problems(fine, 64, 64),
        "longer than recorded": problems(fine, 64, 64, recorded=[5]),
        "spills": problems(fine, 256, 256),
        "waits": problems(waits, 64, 64, stride=3),
        "waits in its second loop": problems(twice, 64, 64, stride=3),
        "longer in its second loop": problems(twice, 64, 64, stride=3, recorded=[1000, 5]),
        "no matrix instruction": problems(sums, 64, 64),
        "does not compile": problems(broken, 64, 32),
    }
    print(json.dumps(found))
