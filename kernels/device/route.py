"""Router logits by split bfloat16 products, and the largest of them, on a GPU."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens"])
def choose(
    x,
    scale,
    weight,
    expert_scale,
    experts,
    weights,
    tokens,
    H: tl.constexpr,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """`BLOCK_T` tokens a program, against all experts."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    offs_e, offs_h = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_H)
    rows = token.to(tl.int64)[:, None] * H
    logits = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    squares = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, H, BLOCK_H):
        columns = start + offs_h
        inside = columns < H
        mask = (token < tokens)[:, None] & inside[None, :]
        part = tl.load(x + rows + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        squares += tl.sum(part * part, 1)
        # The same row for every token: one row alone is too little to be loaded ahead.
        factor = tl.load(scale + token[:, None] * 0 + columns[None, :], mask=mask, other=0.0)
        wide = part * factor.to(tl.float32)
        high = wide.to(tl.bfloat16)
        low = (wide - high.to(tl.float32)).to(tl.bfloat16)
        mask = inside[:, None] & (offs_e < E)[None, :]
        column = tl.load(weight + offs_e[None, :] * H + columns[:, None], mask=mask, other=0.0)
        logits = tl.dot(high, column, logits)
        logits = tl.dot(low, column, logits)
    logits *= (tl.rsqrt(squares / H + EPS) * H**-0.5)[:, None]
    logits = tl.where((offs_e < E)[None, :], logits, float("-inf"))
    _store_largest(
        logits, expert_scale, experts, weights, token, tokens, E, TOP_K, BLOCK_T, BLOCK_E
    )


@triton.jit
def _store_largest(
    logits,
    expert_scale,
    experts,
    weights,
    token,
    tokens,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Take the largest `TOP_K` times over, then the softmax of what was taken.

    NaN equals nothing: such a token takes the last expert, and its weights are NaN.
    """
    offs_e = tl.arange(0, BLOCK_E)
    BLOCK_K: tl.constexpr = triton.next_power_of_2(TOP_K)
    offs_k = tl.arange(0, BLOCK_K)
    chosen = tl.zeros((BLOCK_T, BLOCK_K), tl.int32)
    values = tl.full((BLOCK_T, BLOCK_K), float("-inf"), tl.float32)
    for choice in tl.static_range(TOP_K):
        largest = tl.max(logits, 1)
        at_largest = logits == largest[:, None]
        number = tl.minimum(tl.min(tl.where(at_largest, offs_e[None, :], BLOCK_E), 1), E - 1)
        is_here = (offs_k == choice)[None, :]
        chosen = tl.where(is_here, number[:, None], chosen)
        values = tl.where(is_here, largest[:, None], values)
        logits = tl.where(offs_e[None, :] == number[:, None], float("-inf"), logits)
    shares = tl.exp(values - tl.max(values, 1)[:, None])
    shares = shares / tl.sum(shares, 1)[:, None]
    mask = (token < tokens)[:, None] & (offs_k < TOP_K)[None, :]
    shares *= tl.load(expert_scale + chosen, mask=mask, other=0.0)
    places = token[:, None] * TOP_K + offs_k[None, :]
    tl.store(experts + places, chosen, mask=mask)
    tl.store(weights + places, shares, mask=mask)
