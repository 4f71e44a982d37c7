"""Device code of linear.py; neighbouring programs share weight rows, so that one reads memory."""

import triton
import triton.language as tl

from hybrid.kernels.device.product import (
    activation_tile,
    gelu_gate,
    multiply,
    restore,
    weight_rows,
    weight_tile,
)


@triton.jit(do_not_specialize=["tokens"])
def linear_rows(
    x,
    weight,
    scales,
    factors,
    output,
    tokens,
    N: tl.constexpr,
    K: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PACKED: tl.constexpr,
):
    """`output` [tokens, N], or [tokens, N / 2] where rows are gates and ups in turn."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    token = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_row = (tl.program_id(0) // blocks) * ROWS
    valid = token < tokens
    acc = multiply(
        x + token.to(tl.int64) * K,
        valid,
        weight,
        scales,
        first_row,
        (K + BLOCK_K - 1) // BLOCK_K,
        N,
        K,
        ROWS,
        BLOCK_M,
        BLOCK_K,
        PACKED,
    )
    acc = restore(acc, factors, first_row, N, ROWS, PACKED)
    width: tl.constexpr = N // 2 if GATED else N
    if GATED:
        gate, up = tl.split(tl.reshape(acc.T, (BLOCK_M, ROWS // 2, 2)))
        result = gelu_gate(gate, up).to(tl.bfloat16)
        row = first_row // 2 + tl.arange(0, ROWS // 2)
    else:
        result = acc.to(tl.bfloat16).T
        row = first_row + tl.arange(0, ROWS)
    place = output + token.to(tl.int64)[:, None] * width + row[None, :]
    tl.store(place, result, mask=valid[:, None] & (row < width)[None, :])


@triton.jit(do_not_specialize=["tokens"])
def linear_head(
    x,
    weight,
    scales,
    factors,
    query_norm,
    key_norm,
    cosine,
    sine,
    keys,
    values,
    slots,
    query,
    tokens,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PACKED: tl.constexpr,
):
    """One head of BLOCK_M tokens, as two products of HEAD / 2 rows, which turn into each other.

    ROWS is HEAD / 2 or, for heads smaller than a tensor core's tile, more: rows behind a half are
    computed and left out.
    """
    blocks = tl.cdiv(tokens, BLOCK_M)
    token = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(0) // blocks
    valid = token < tokens
    HALF: tl.constexpr = HEAD // 2
    x_rows = x + token.to(tl.int64) * K
    low_rows, low_scales = weight_rows(weight, scales, head * HEAD, N, K, ROWS, PACKED)
    high_rows, high_scales = weight_rows(weight, scales, head * HEAD + HALF, N, K, ROWS, PACKED)
    low = tl.zeros((ROWS, BLOCK_M), tl.float32)
    high = tl.zeros((ROWS, BLOCK_M), tl.float32)
    for step in tl.range(0, (K + BLOCK_K - 1) // BLOCK_K):
        activations = activation_tile(x_rows, valid, step, K, BLOCK_K).T
        tile = weight_tile(low_rows, low_scales, step, K, ROWS, BLOCK_K, PACKED)
        low = tl.dot(tile, activations, low)
        tile = weight_tile(high_rows, high_scales, step, K, ROWS, BLOCK_K, PACKED)
        high = tl.dot(tile, activations, high)
    low = restore(low, factors, head * HEAD, N, ROWS, PACKED)
    high = restore(high, factors, head * HEAD + HALF, N, ROWS, PACKED)

    row = tl.arange(0, ROWS)
    inside = row < HALF
    squares = tl.where(inside[:, None], low * low + high * high, 0.0)
    inverse = tl.rsqrt(tl.sum(squares, 0) / HEAD + eps)[None, :]
    low, high = low * inverse, high * inverse
    mask = valid[:, None] & inside[None, :]
    token = token.to(tl.int64)
    slot = tl.load(slots + token, mask=valid, other=0)
    if head >= QUERIES:
        key_head = (head - QUERIES) % KEYS
        place = (slot * (KEYS * HEAD) + key_head * HEAD)[:, None] + row[None, :]
        if N == (QUERIES + KEYS) * HEAD or head >= QUERIES + KEYS:
            tl.store(values + place, low.to(tl.bfloat16).T, mask=mask)
            tl.store(values + place + HALF, high.to(tl.bfloat16).T, mask=mask)
    if head < QUERIES + KEYS:
        norm = query_norm if head < QUERIES else key_norm
        low *= tl.load(norm + row, mask=inside, other=0.0).to(tl.float32)[:, None]
        high *= tl.load(norm + HALF + row, mask=inside, other=0.0).to(tl.float32)[:, None]
        angle = token[None, :] * HALF + row[:, None]
        turns = valid[None, :] & inside[:, None]
        cos = tl.load(cosine + angle, mask=turns, other=0.0)
        sin = tl.load(sine + angle, mask=turns, other=0.0)
        first = (low * cos - high * sin).to(tl.bfloat16).T
        second = (high * cos + low * sin).to(tl.bfloat16).T
        if head < QUERIES:
            place = (token * (QUERIES * HEAD) + head * HEAD)[:, None] + row[None, :]
            tl.store(query + place, first, mask=mask)
            tl.store(query + place + HALF, second, mask=mask)
        else:
            place = (slot * (KEYS * HEAD) + (head - QUERIES) * HEAD)[:, None] + row[None, :]
            tl.store(keys + place, first, mask=mask)
            tl.store(keys + place + HALF, second, mask=mask)
