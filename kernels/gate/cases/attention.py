"""Attention over caches: canvases, prompts, decoded tokens."""

from functools import partial

import torch

from hybrid.kernels.attention import cached_attention
from hybrid.kernels.gate.cases.case import CANVAS, CONTEXT, NARROW, WIDE, WINDOW, Case, meta


def attention_cases() -> list[Case]:
    """Canvases of either kind of layer, then causal passes from one token up."""
    canvas = [
        Case(
            f"attention, {kind}, {rows} x {tokens} {'causal' if causal else 'canvas'}",
            partial(_attend, rows, tokens, kind == "sliding", causal),
            ("attend",),
            WIDE if tokens > 16 else NARROW,
        )
        for kind in ("sliding", "full")
        for rows, tokens, causal in (
            (1, CANVAS, False),
            (4, CANVAS, False),
            (8, CANVAS, False),
            (1, 512, True),
        )
    ]
    reading = [
        Case(
            f"attention, {kind}, {rows} x {tokens}",
            partial(_attend, rows, tokens, kind == "sliding", True),
            ("attend",),
            WIDE if tokens > 16 else NARROW,
        )
        for kind in ("sliding", "full")
        for rows in (1, 2, 4, 8)
        for tokens in (1, 16, 2, 4, 8, 64, CANVAS)
    ]
    return canvas + reading


def _attend(rows: int, tokens: int, is_sliding: bool, causal: bool) -> object:
    heads, head_dim, window = (8, 256, WINDOW) if is_sliding else (2, 512, 0)
    slots = WINDOW - 1 + 2 * CANVAS if is_sliding else CONTEXT + CANVAS
    cache = partial(meta, rows + 1, slots + 1, heads, head_dim)
    numbers = partial(meta, rows, dtype=torch.int32)
    return cached_attention(
        meta(rows, tokens, 16, head_dim),
        cache(),
        cache(),
        numbers(),
        numbers(),
        numbers(),
        window,
        causal,
        CONTEXT + CANVAS,
    )
