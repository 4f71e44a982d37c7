"""Linear layers, heads and experts: every tile that shipped settings have, at small sizes."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hybrid.kernels.experts import experts, experts_torch
from hybrid.kernels.gate.emulate.cases.case import (
    ARCHITECTURES,
    PRODUCT,
    Case,
    Tolerance,
    Trial,
    compare,
    native,
    normal,
    packed,
    plain,
)
from hybrid.kernels.linear import (
    linear,
    linear_gated,
    linear_gated_torch,
    linear_heads,
    linear_heads_torch,
    linear_torch,
)
from hybrid.kernels.native import NativeMatrix
from hybrid.kernels.nvfp4 import PackedMatrix

Weight = Tensor | PackedMatrix | NativeMatrix
_NATIVE = (100, 120)
_HEADS = Tolerance(of_largest=0.005, rms=0.004)
_EXPERTS = Tolerance(of_largest=0.01, rms=0.003)
_NATIVE_ROWS = Tolerance(relative=2**-8, of_largest=1e-6, rms=0.003)
_NATIVE_EXPERTS = Tolerance(of_largest=0.06, rms=0.02)  # a code may fall to the other side


def product_cases() -> list[Case]:
    """Tokens on either side of every size of tile; matrices that tiles do not divide."""
    kinds: dict[str, Callable[[int, int], Weight]] = {
        "bfloat16": plain,
        "packed": partial(packed, 1),
        "native": partial(native, 1),
    }
    cases = []
    for kind, make in kinds.items():
        tolerance = _NATIVE_ROWS if kind == "native" else PRODUCT
        architectures = _NATIVE if kind == "native" else ARCHITECTURES
        for tokens, rows, columns in (
            (1, 192, 704), (20, 192, 704), (60, 192, 320), (130, 256, 320), (520, 128, 192),
        ):  # fmt: skip
            trial = partial(_linear, make, tokens, rows, columns, tolerance)
            cases.append(Case(f"linear, {kind}, {tokens}", trial, architectures))
        for tokens in (1, 20, 70, 520):
            trial = partial(_gated, make, tokens, tolerance)
            cases.append(Case(f"linear gated, {kind}, {tokens}", trial, architectures))
    return [*cases, *_head_cases(), *_expert_cases()]


def _head_cases() -> list[Case]:
    makers: dict[str, Callable[[int, int], Weight]] = {
        "bfloat16": plain,
        "packed": partial(packed, 1),
    }
    return [
        Case(f"heads, {kind}, {dim} dimensions, {tokens}", partial(_heads, make, dim, tokens))
        for kind, make in makers.items()
        for dim in (256, 512)
        for tokens in (1, 20, 70)
    ]


def _expert_cases() -> list[Case]:
    cases = [
        Case(f"experts, packed, {tokens}", partial(_experts, packed, tokens, 8, _EXPERTS))
        for tokens in (1, 24, 60, 140)
    ]
    cases.append(Case("experts, packed, 220", partial(_experts, packed, 220, 4, _EXPERTS)))
    cases.append(Case("experts, bfloat16, 60", partial(_experts, plain, 60, 8, _EXPERTS)))
    return cases + [
        Case(
            f"experts, native, {tokens}",
            partial(_experts, native, tokens, number, _NATIVE_EXPERTS),
            _NATIVE,
        )
        for tokens, number in ((1, 8), (60, 8), (120, 4), (220, 4))
    ]


def _linear(
    make: Callable[[int, int], Weight], tokens: int, rows: int, columns: int, near: Tolerance
) -> Trial:
    return compare(linear, linear_torch, [normal(tokens, columns), make(rows, columns)], near)


def _gated(make: Callable[[int, int], Weight], tokens: int, near: Tolerance) -> Trial:
    arguments = [normal(tokens, 256), make(256, 256)]
    return compare(linear_gated, linear_gated_torch, arguments, near)


def _heads(make: Callable[[int, int], Weight], dim: int, tokens: int) -> Trial:
    """Two heads of queries and one of keys and values; the caches are outputs too."""
    heads, keys = 2, 1
    x, weight = normal(tokens, 192), make((heads + 2 * keys) * dim, 192)
    slots, norms = torch.randperm(tokens + 3)[:tokens], (normal(dim), normal(dim))
    cosine, sine = torch.rand(2, tokens, dim // 2)

    def call(operation: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        caches = [torch.zeros(tokens + 3, keys, dim, dtype=x.dtype) for _ in range(2)]
        query = operation(x, weight, *norms, cosine, sine, *caches, slots, heads, 1e-6)
        return query, caches[0], caches[1]

    return Trial(
        lambda: call(linear_heads, x),
        lambda: call(linear_heads_torch, x.double()),
        (_HEADS, _HEADS, _HEADS),
    )


def _experts(make: Callable[..., Weight], tokens: int, number: int, near: Tolerance) -> Trial:
    # Triton compiles no native product for sm_100 whose loop has a single turn.
    hidden, size, top_k = (640, 320, 2) if make is native else (256, 192, 2)
    chosen = torch.rand(tokens, number).topk(top_k).indices.int()
    weights = [make(number, 2 * size, hidden), make(number, hidden, size)]
    arguments = [normal(tokens, hidden), chosen, torch.rand(tokens, top_k), *weights]
    return compare(experts, experts_torch, arguments, near, widened=() if make is native else (0,))
