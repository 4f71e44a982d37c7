"""Products of the experts: plain weights and weights of four bits."""

from collections.abc import Callable
from functools import partial

import torch

from hybrid.kernels.experts import experts
from hybrid.kernels.gate.cases.case import (
    CANVAS,
    EXPERT_SIZE,
    EXPERTS,
    HIDDEN,
    NARROW,
    TOP_K,
    WIDE,
    Case,
    Weight,
    meta,
    packed,
)
from hybrid.kernels.nvfp4 import TILE_COLUMNS, TILE_ROWS


def expert_cases() -> list[Case]:
    """From a decoded token to eight canvases; plain weights only for a canvas."""
    expert = partial(call_experts, packed)
    sizes = [
        Case(
            f"experts, {tokens}",
            partial(expert, tokens),
            ("grouped_product",),
            WIDE if tokens > CANVAS else NARROW,
            weights=TILE_ROWS * TILE_COLUMNS,
        )
        for tokens in (1, CANVAS, 4 * CANVAS, 8 * CANVAS, 16, 32, 64, 128)
    ]
    plain = partial(call_experts, meta, CANVAS)
    return [*sizes, Case("experts, bfloat16", plain, ("grouped_product",))]


def call_experts(make: Callable[..., Weight], tokens: int) -> object:
    """The operation on weights that `make` makes."""
    return experts(
        meta(tokens, HIDDEN),
        meta(tokens, TOP_K, dtype=torch.int32),
        meta(tokens, TOP_K, dtype=torch.float32),
        make(EXPERTS, 2 * EXPERT_SIZE, HIDDEN),
        make(EXPERTS, HIDDEN, EXPERT_SIZE),
    )
