"""Attention over caches: decoded tokens, prompts and canvases, with one split and with several."""

from functools import partial

import torch

from hybrid.kernels.attention import cached_attention, cached_attention_torch
from hybrid.kernels.gate.emulate.cases.case import Case, Tolerance, Trial, compare, normal

_NEAR = Tolerance(of_largest=2**-7, rms=3e-3)


def attention_cases() -> list[Case]:
    """The model's two kinds of layers, with its dimensions and heads a key head."""
    cases = []
    for kind in ("sliding", "full"):
        for rows, tokens, causal in (
            (2, 1, True), (1, 4, True), (1, 16, True), (1, 64, True), (1, 32, False), (2, 40, False)
        ):  # fmt: skip
            way = "causal" if causal else "canvas"
            trial = partial(_attend, rows, tokens, kind == "sliding", causal, 100)
            cases.append(Case(f"attention, {kind}, {rows} x {tokens} {way}", trial))
        for rows, tokens, causal in (
            (1, 1, True), (2, 1, True), (1, 4, True), (1, 8, True), (1, 16, True), (1, 64, True),
            (1, 64, False),
        ):  # fmt: skip
            way = "causal" if causal else "canvas"
            trial = partial(_attend, rows, tokens, kind == "sliding", causal, 700)
            name = f"attention, {kind}, {rows} x {tokens} {way} in splits"
            cases.append(Case(name, trial, multiprocessors=108))
    return cases


def _attend(rows: int, tokens: int, is_sliding: bool, causal: bool, held: int) -> Trial:
    key_heads, dim = (2, 256) if is_sliding else (1, 512)
    heads = key_heads * (2 if is_sliding else 8)
    window = (48 if held < 300 else 600) if is_sliding else 0
    context = held + tokens
    slots = window - 1 + 2 * tokens if is_sliding else context + 8
    caches = [normal(rows + 1, slots + 1, key_heads, dim) for _ in range(2)]
    starts = torch.tensor([held - 7 * row for row in range(rows)], dtype=torch.int32)
    lengths = torch.full((rows,), tokens, dtype=torch.int32)
    numbers = [torch.arange(rows, dtype=torch.int32), starts, lengths]
    query = normal(rows, tokens, heads, dim, scale=0.06)
    arguments = [query, *caches, *numbers, window, causal, context]
    return compare(cached_attention, cached_attention_torch, arguments, _NEAR)
