"""Attention over ring caches as it runs on a GPU.

The query heads of one key head share its keys, so the rows of a tile are (token, head) pairs of one
key head, BLOCK_G of them a token. A program runs over its share of the visible positions once, with
the softmax taken on the way: `largest` is the greatest score so far, and `total` the sum of the
exponentials of all scores less the greatest.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
# Below every score, yet finite: a row that has seen nothing yet is scaled by 2^0, not by NaN.
_NOTHING = tl.constexpr(-1e30)


@triton.jit
def attend(
    query,
    keys,
    values,
    rows,
    starts,
    lengths,
    output,
    largests,
    totals,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    D: tl.constexpr,
    SLOTS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    IS_SHARED: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Tile `program_id(0)` of queries over share `program_id(1)` of their positions.

    A program gives BLOCK_V columns of the output. With several shares, IS_SHARED, `output` is
    float32 [R, KEY_HEADS, splits, M, BLOCK_D], not yet divided by the totals, in whole tiles.
    """
    GROUP: tl.constexpr = HEADS // KEY_HEADS
    PIECES: tl.constexpr = BLOCK_D // BLOCK_V
    tile, split, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, key_head = pair // KEY_HEADS, pair % KEY_HEADS
    begin_m = tile // PIECES * BLOCK_M
    offs_m = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    offs_v = tile % PIECES * BLOCK_V + tl.arange(0, BLOCK_V)
    first_token = begin_m // BLOCK_G
    token, head = first_token + offs_m // BLOCK_G, offs_m % BLOCK_G
    in_pass = ((token < TOKENS) & (head < GROUP))[:, None]
    if TOKENS * BLOCK_G % BLOCK_M == 0 and GROUP == BLOCK_G:  # even true masks take registers
        in_pass = tl.full((BLOCK_M, 1), True, tl.int1)
    in_head, in_piece = (offs_d < D)[None, :], (offs_v < D)[None, :]
    # Relative to the tile, so that the addresses are known but for one number: addresses of their
    # own, kept until the end, would take the registers that the sums need.
    line = offs_m // BLOCK_G * HEADS + head
    first_line = (row * TOKENS + first_token).to(tl.int64) * HEADS + key_head * GROUP
    query += first_line * D
    q = tl.load(query + line[:, None] * D + offs_d[None, :], mask=in_pass & in_head, other=0.0)

    start = tl.load(starts + row)
    end = start + tl.load(lengths + row)
    newest = tl.minimum(start + token, end - 1)
    lower, upper = start, end
    if CAUSAL:
        lower = start + first_token
        reach = tl.minimum(end, lower + BLOCK_M // BLOCK_G)
        upper = tl.where(lower < end, reach, 0)  # a tile of padding sees nothing
    lower = tl.maximum(lower - WINDOW + 1, 0) if WINDOW else 0
    first = lower // BLOCK_N * BLOCK_N
    splits = tl.num_programs(1) if IS_SHARED else 1
    share = tl.cdiv(tl.cdiv(upper - first, BLOCK_N), splits) * BLOCK_N
    begin = first + split * share
    stop = tl.minimum(begin + share, upper)

    held = tl.load(rows + row).to(tl.int64) * ((SLOTS + 1) * KEY_HEADS * D) + key_head * D
    keys += held
    values += held
    offs_n = tl.arange(0, BLOCK_N)
    largest = tl.full((BLOCK_M,), _NOTHING, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    attended = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for begin_n in range(begin, stop, BLOCK_N):
        position = begin_n + offs_n
        seen = (position >= lower) & (position < upper)
        slot = begin_n % SLOTS + offs_n
        # Blocks start at multiples of BLOCK_N: other numbers of slots wrap inside one.
        if SLOTS < BLOCK_N:
            slot = slot % SLOTS
        elif SLOTS % BLOCK_N:
            slot = tl.where(slot < SLOTS, slot, slot - SLOTS)
        offs = slot[:, None] * (KEY_HEADS * D)
        k = tl.load(keys + offs + offs_d[None, :], mask=seen[:, None] & in_head, other=0.0)
        scores = tl.dot(q, tl.trans(k))
        if CAUSAL:
            visible = seen[None, :] & (position[None, :] <= newest[:, None])
            if WINDOW:
                visible &= position[None, :] > newest[:, None] - WINDOW
            scores = tl.where(visible, scores, -float("inf"))
        else:
            scores = tl.where(seen[None, :], scores, -float("inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        shares = tl.exp2(scores * _LOG2_E - (new_largest * _LOG2_E)[:, None])
        shrink = tl.exp2((largest - new_largest) * _LOG2_E)
        largest = new_largest
        total = total * shrink + tl.sum(shares, 1)
        v = tl.load(values + offs + offs_v[None, :], mask=seen[:, None] & in_piece, other=0.0)
        attended = tl.dot(shares.to(v.dtype), v, attended * shrink[:, None])

    if not IS_SHARED:
        attended *= (1 / tl.where(total > 0, total, 1.0))[:, None]
        output += first_line * D
        offs_o = line[:, None] * D + offs_v[None, :]
        tl.store(output + offs_o, attended.to(query.dtype.element_ty), mask=in_pass & in_piece)
    else:
        part = (pair * splits + split) * (tl.num_programs(0) // PIECES * BLOCK_M) + begin_m
        tl.store(largests + part + offs_m, largest)
        tl.store(totals + part + offs_m, total)
        output += part.to(tl.int64) * BLOCK_D
        tl.store(output + offs_m[:, None] * BLOCK_D + offs_v[None, :], attended)


@triton.jit(do_not_specialize=["tokens", "splits", "queries"])
def merge(
    parts,
    largests,
    totals,
    output,
    tokens,
    splits,
    queries,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`output` [R, tokens, HEADS, D] from parts [R, KEY_HEADS, splits, queries, WIDTH]."""
    GROUP: tl.constexpr = HEADS // KEY_HEADS
    pair = tl.program_id(2)
    row, key_head = pair // KEY_HEADS, pair % KEY_HEADS
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = tl.arange(0, BLOCK_S)
    held = (split < splits)[:, None]
    at = (pair * splits + split)[:, None] * queries + offs_m[None, :]
    largest = tl.load(largests + at, mask=held, other=_NOTHING)
    total = tl.load(totals + at, mask=held, other=0.0)
    weight = tl.exp2((largest - tl.max(largest, 0)[None, :]) * _LOG2_E)
    total = tl.sum(total * weight, 0)
    offs_p = at.to(tl.int64)[:, :, None] * WIDTH + offs_d[None, None, :]
    part = tl.load(parts + offs_p, mask=held[:, :, None], other=0.0)
    attended = tl.sum(part * weight[:, :, None], 0) / tl.where(total > 0, total, 1.0)[:, None]
    token, head = offs_m // BLOCK_G, offs_m % BLOCK_G
    line = (row * tokens + token).to(tl.int64) * HEADS + key_head * GROUP + head
    inside = ((token < tokens) & (head < GROUP))[:, None] & (offs_d < D)[None, :]
    offs_o = line[:, None] * D + offs_d[None, :]
    tl.store(output + offs_o, attended.to(output.dtype.element_ty), mask=inside)
