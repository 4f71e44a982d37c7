"""Products of attention and the dense branch."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hybrid.kernels.gate.cases.case import (
    CANVAS,
    CONTEXT,
    DENSE,
    HIDDEN,
    NARROW,
    WIDE,
    Case,
    Weight,
    meta,
    packed,
)
from hybrid.kernels.linear import linear, linear_gated, linear_heads
from hybrid.kernels.nvfp4 import TILE_COLUMNS, TILE_ROWS, PackedMatrix


def linear_cases() -> list[Case]:
    """Every product of a layer but the experts', from a decoded token to four canvases."""
    cases = []
    for tokens in (1, CANVAS, 4 * CANVAS, 32):
        matrix = WIDE if tokens > 16 else NARROW
        for name, call in products(tokens, meta).items():
            cases.append(Case(f"linear, {name}, {tokens}", call, ("linear_rows",), matrix))
        heads = {k: partial(_heads, tokens, k == "sliding") for k in ("sliding", "full")}
        for name, heading in heads.items():
            plain, four_bits = partial(heading, meta), partial(heading, partial(packed, 1))
            cases += [
                Case(f"heads, {name}, {tokens}", plain, ("linear_head",), matrix),
                Case(f"heads, packed, {name}, {tokens}", four_bits, ("linear_head",), NARROW),
            ]
        cases += [
            Case(
                f"linear, packed, {name}, {tokens}",
                call,
                ("linear_rows",),
                WIDE if tokens > 32 else NARROW,
                weights=TILE_ROWS * TILE_COLUMNS,
            )
            for name, call in products(tokens, partial(packed, 1)).items()
        ]
    return cases


def products(tokens: int, make: Callable[[int, int], Weight]) -> dict[str, Callable[[], object]]:
    """The products after attention and of the dense branch."""
    sizes = {"output": 16 * 256, "output, full": 16 * 512, "down": DENSE}
    products: dict[str, Callable[[], object]] = {
        name: partial(linear, meta(tokens, columns), make(HIDDEN, columns))
        for name, columns in sizes.items()
    }
    return {
        **products,
        "gated": partial(linear_gated, meta(tokens, HIDDEN), make(2 * DENSE, HIDDEN)),
    }


def _heads(
    tokens: int, is_sliding: bool, make: Callable[[int, int], Tensor | PackedMatrix]
) -> object:
    num_keys, head_dim = (8, 256) if is_sliding else (2, 512)
    rows = (16 + num_keys * (2 if is_sliding else 1)) * head_dim
    turn = partial(meta, tokens, head_dim // 2, dtype=torch.float32)
    cache = partial(meta, CONTEXT, num_keys, head_dim)
    norm, slots = meta(head_dim), meta(tokens, dtype=torch.int64)
    x, weight = meta(tokens, HIDDEN), make(rows, HIDDEN)
    return linear_heads(x, weight, norm, norm, turn(), turn(), cache(), cache(), slots, 16, 1e-6)
