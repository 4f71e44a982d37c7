"""The head on a GPU: a tile of logits a program, and what each row of it comes to."""

import triton
import triton.language as tl

from hybrid.kernels.device.noise import counted, gumbel


@triton.jit
def capped(products, SOFTCAP: tl.constexpr):
    """``cap * tanh(products / cap)``; a cap of 0 caps nothing."""
    if SOFTCAP == 0.0:
        return products
    else:
        return SOFTCAP * (2.0 / (1.0 + tl.exp(products * (-2.0 / SOFTCAP))) - 1.0)


@triton.jit
def products_of(
    hidden, embedding, first_m, first_v, tokens, V: tl.constexpr, H: tl.constexpr,
    IS_FULL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """``hidden . embedding^T`` [BLOCK_M, BLOCK_V] in float32, of rows from `first_m` on and ids
    from `first_v` on.

    The embedding is the left operand where there are few rows, so that its tile fills the
    instruction. Addresses are relative to the tile and tiles that are IS_FULL of rows have no
    mask: it is true for them and yet takes 13 instructions a turn and more.
    """
    offs_m, offs_v, offs_h = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_H)
    hidden += first_m.to(tl.int64) * H
    embedding += first_v.to(tl.int64) * H
    rows = offs_m[:, None] * H + offs_h[None, :]
    columns = offs_v[:, None] * H + offs_h[None, :]
    is_row, is_column = (first_m + offs_m < tokens)[:, None], (first_v + offs_v < V)[:, None]
    SWAP: tl.constexpr = BLOCK_M < 64
    if SWAP:
        total = tl.zeros((BLOCK_V, BLOCK_M), tl.float32)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for start in range(0, H, BLOCK_H):
        inside = (start + offs_h < H)[None, :]
        if H % BLOCK_H == 0:
            inside = tl.full((1, BLOCK_H), True, tl.int1)
        if IS_FULL and H % BLOCK_H == 0:
            x = tl.load(hidden + rows + start)
        else:
            x = tl.load(hidden + rows + start, mask=is_row & inside, other=0.0)
        if V % BLOCK_V == 0 and H % BLOCK_H == 0:
            y = tl.load(embedding + columns + start)
        else:
            y = tl.load(embedding + columns + start, mask=is_column & inside, other=0.0)
        total = tl.dot(y, x.T, total) if SWAP else tl.dot(x, y.T, total)
    if SWAP:
        total = total.T
    return total


@triton.jit(do_not_specialize=["tokens"])
def plain_tile(
    hidden, embedding, logits, tokens, V: tl.constexpr, H: tl.constexpr,
    SOFTCAP: tl.constexpr, IS_FULL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Capped logits, float32. Programs on one tile of the vocabulary are neighbours."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    program = tl.program_id(0)
    first_m, first_v = program % blocks * BLOCK_M, program // blocks * BLOCK_V
    offs_m, offs_v = first_m + tl.arange(0, BLOCK_M), first_v + tl.arange(0, BLOCK_V)
    total = products_of(
        hidden, embedding, first_m, first_v, tokens, V, H, IS_FULL, BLOCK_M, BLOCK_V, BLOCK_H
    )
    places = offs_m.to(tl.int64)[:, None] * V + offs_v[None, :]
    mask = (offs_m < tokens)[:, None] & (offs_v < V)[None, :]
    tl.store(logits + places, capped(total, SOFTCAP), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def score_tile(
    hidden, embedding, token_ids, largest, sums, best, given, tokens, V: tl.constexpr,
    H: tl.constexpr, SOFTCAP: tl.constexpr, IS_FULL: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """A tile's largest logit and where it is, its sum of exponentials, the given tokens' logits."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    program = tl.program_id(0)
    tile, TILES = program // blocks, tl.cdiv(V, BLOCK_V)
    first_m, first_v = program % blocks * BLOCK_M, tile * BLOCK_V
    offs_m, offs_v = first_m + tl.arange(0, BLOCK_M), first_v + tl.arange(0, BLOCK_V)
    total = products_of(
        hidden, embedding, first_m, first_v, tokens, V, H, IS_FULL, BLOCK_M, BLOCK_V, BLOCK_H
    )
    z = tl.where((offs_v < V)[None, :], capped(total, SOFTCAP), float("-inf"))
    top = tl.max(z, 1)
    places, is_row = offs_m * TILES + tile, offs_m < tokens
    tl.store(largest + places, top, mask=is_row)
    tl.store(sums + places, tl.sum(tl.exp(z - top[:, None]), 1), mask=is_row)
    tl.store(best + places, first_at(z, top, offs_v, V), mask=is_row)
    token = tl.load(token_ids + offs_m, mask=is_row, other=-1)
    is_given = offs_v[None, :] == token[:, None]
    is_here = is_row & (token // BLOCK_V == tile)
    tl.store(given + offs_m, tl.sum(tl.where(is_given, z, 0.0), 1), mask=is_here)


@triton.jit  # canvases: `tokens` is a multiple of 16, and that keeps registers from spilling
def sample_tile(
    hidden, embedding, temperature, keys, banned_tokens, logits, largest, sums, moments, best,
    noisy, drawn, tokens, V: tl.constexpr, H: tl.constexpr, J: tl.constexpr, SOFTCAP: tl.constexpr,
    BANNED_LOGIT: tl.constexpr, IS_FULL: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """What `merge_samples` needs of a tile; exponents and moments are relative to its largest."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    program = tl.program_id(0)
    tile, TILES = program // blocks, tl.cdiv(V, BLOCK_V)
    first_m, first_v = program % blocks * BLOCK_M, tile * BLOCK_V
    offs_m, offs_v = first_m + tl.arange(0, BLOCK_M), first_v + tl.arange(0, BLOCK_V)
    is_row, is_column = offs_m < tokens, offs_v < V
    total = products_of(
        hidden, embedding, first_m, first_v, tokens, V, H, IS_FULL, BLOCK_M, BLOCK_V, BLOCK_H
    )
    z = capped(total, SOFTCAP)
    for j in range(J):  # unrolled, 16 bans spill on sm_90
        token = tl.load(banned_tokens + offs_m * J + j, mask=is_row, other=-1)
        z = tl.where(offs_v[None, :] == token[:, None], BANNED_LOGIT, z)
    z = z / tl.load(temperature + offs_m, mask=is_row, other=1.0)[:, None]
    if V % BLOCK_V != 0:
        z = tl.where(is_column[None, :], z, float("-inf"))
    cells = offs_m.to(tl.int64)[:, None] * V + offs_v[None, :]
    mask = is_row[:, None] & is_column[None, :]
    tl.store(logits + cells, z.to(logits.dtype.element_ty), mask=mask)
    top = tl.max(z, 1)
    places = offs_m * TILES + tile
    tl.store(largest + places, top, mask=is_row)
    tl.store(best + places, first_at(z, top, offs_v, V), mask=is_row)
    below = z - top[:, None]
    weight = tl.exp(below)
    if V % BLOCK_V != 0:  # minus infinity times nothing would be no number
        below = tl.where(is_column[None, :], below, 0.0)
    tl.store(sums + places, tl.sum(weight, 1), mask=is_row)
    tl.store(moments + places, tl.sum(weight * below, 1), mask=is_row)
    key = tl.load(keys + offs_m, mask=is_row, other=0)
    z += gumbel(counted(key[:, None], offs_v[None, :]))
    top = tl.max(z, 1)
    tl.store(noisy + places, top, mask=is_row)
    tl.store(drawn + places, first_at(z, top, offs_v, V), mask=is_row)


@triton.jit
def first_at(values, top, ids, NONE: tl.constexpr):
    """The least of `ids` where `values` are at their row's `top`."""
    return tl.min(tl.where(values == top[:, None], ids[None, :], NONE), 1)


@triton.jit
def first_in_range(is_top, ids, V: tl.constexpr):
    """The least of `ids` that `is_top`, below V even where NaN equals nothing: it is an address."""
    return tl.minimum(tl.min(tl.where(is_top, ids, V), 0), V - 1)


@triton.jit
def merge_scores(
    largest, sums, best, given, scores, chosen, TILES: tl.constexpr, V: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):  # fmt: skip
    """One row: log-probability of its given token, and the best token."""
    row, tiles = tl.program_id(0), tl.arange(0, BLOCK_TILES)
    places, mask = row * TILES + tiles, tiles < TILES
    tops = tl.load(largest + places, mask=mask, other=float("-inf"))
    top = tl.max(tops, 0)
    total = tl.sum(tl.load(sums + places, mask=mask, other=0.0) * tl.exp(tops - top), 0)
    tl.store(scores + row, tl.load(given + row) - top - tl.log(total))
    ids = tl.load(best + places, mask=mask, other=V)
    tl.store(chosen + row, first_in_range(tops == top, ids, V))


@triton.jit
def merge_samples(
    tile_largest, sums, moments, tile_best, noisy, drawn, largest, log_sum_exp, entropy, best,
    sample, TILES: tl.constexpr, V: tl.constexpr, BLOCK_TILES: tl.constexpr,
):  # fmt: skip
    """One row. Entropy is ``log sum - mean(z - top)``, both of which are exact near zero."""
    row, tiles = tl.program_id(0), tl.arange(0, BLOCK_TILES)
    places, mask = row * TILES + tiles, tiles < TILES
    tops = tl.load(tile_largest + places, mask=mask, other=float("-inf"))
    top = tl.max(tops, 0)
    below = tl.where(mask, tops - top, 0.0)
    scale = tl.where(mask, tl.exp(below), 0.0)
    shares = tl.load(sums + places, mask=mask, other=0.0)
    total = tl.sum(shares * scale, 0)
    # Zero where a tile has no weight: minus infinity times nothing would be no number.
    lacks = tl.load(moments + places, mask=mask, other=0.0) + shares * below
    mean = tl.sum(tl.where(scale > 0.0, lacks * scale, 0.0), 0) / total
    tl.store(largest + row, top)
    tl.store(log_sum_exp + row, top + tl.log(total))
    tl.store(entropy + row, tl.log(total) - mean)
    ids = tl.load(tile_best + places, mask=mask, other=V)
    tl.store(best + row, first_in_range(tops == top, ids, V))
    highest = tl.load(noisy + places, mask=mask, other=float("-inf"))
    ids = tl.load(drawn + places, mask=mask, other=V)
    tl.store(sample + row, first_in_range(highest == tl.max(highest, 0), ids, V))
