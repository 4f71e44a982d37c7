"""Expected embeddings on a GPU: a share of the vocabulary a program, then the shares' sum."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens"])
def expect(
    logits, log_sum_exp, embedding, tile_largest, parts, totals, tokens, V: tl.constexpr,
    H: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
    SKIP_BELOW: tl.constexpr, IS_FULL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """``sum_v exp(logit - log_sum_exp) * embedding_v`` of a share, float32, not yet normalised."""
    blocks, columns = tl.cdiv(tokens, BLOCK_M), tl.cdiv(H, BLOCK_H)
    program = tl.program_id(0)
    first_m = program % blocks * BLOCK_M
    offs_m = first_m + tl.arange(0, BLOCK_M)
    column, split = program // blocks % columns, program // (blocks * columns)
    offs_h = column * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_v = tl.arange(0, BLOCK_V)
    is_row, is_column = offs_m < tokens, offs_h < H
    if IS_FULL:  # even true masks take registers
        is_row = tl.full((BLOCK_M,), True, tl.int1)
    normaliser = tl.load(log_sum_exp + offs_m, mask=is_row, other=0.0)
    logits += first_m.to(tl.int64) * V  # addresses relative to the tile take fewer registers
    rows = tl.arange(0, BLOCK_M)[:, None] * V
    sums = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    # Whole tiles of the vocabulary, so that a tile's largest logit speaks for all of a share's.
    SHARE: tl.constexpr = (V + SPLITS * TILE - 1) // (SPLITS * TILE) * TILE
    TILES: tl.constexpr = (V + TILE - 1) // TILE
    first = split * SHARE
    for start in range(first, tl.minimum(first + SHARE, V), BLOCK_V):
        ids = start + offs_v
        weigh = is_row
        if SKIP_BELOW > 0.0:
            tops = tl.load(tile_largest + offs_m * TILES + start // TILE, mask=is_row, other=0.0)
            weigh = is_row & (tl.exp(tops - normaliser) >= SKIP_BELOW)
        if SKIP_BELOW == 0.0 or tl.max(weigh.to(tl.int32), 0) > 0:
            is_id = ids < V
            mask = weigh[:, None] & is_id[None, :]
            z = tl.load(logits + rows + ids[None, :], mask=mask, other=float("-inf"))
            p = tl.exp(z.to(tl.float32) - normaliser[:, None])
            total += tl.sum(p, 1)
            table = embedding + ids.to(tl.int64)[:, None] * H + offs_h[None, :]
            if V % BLOCK_V == 0 and H % BLOCK_H == 0:
                e = tl.load(table)
            else:
                e = tl.load(table, mask=is_id[:, None] & is_column[None, :], other=0.0)
            sums = tl.dot(p.to(e.dtype), e, sums)
    part = split * tokens + first_m
    parts += part.to(tl.int64) * H
    places = tl.arange(0, BLOCK_M)[:, None] * H + offs_h[None, :]
    tl.store(parts + places, sums, mask=is_row[:, None] & is_column[None, :])
    if column == 0:
        tl.store(totals + part + tl.arange(0, BLOCK_M), total, mask=is_row)


@triton.jit(do_not_specialize=["tokens"])
def merge_shares(
    parts, totals, embedding, fixed_ids, output, tokens, H: tl.constexpr,
    SPLITS: tl.constexpr, SCALE: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One row: the shares' sum over the probabilities' sum, or the embedding of a fixed token."""
    row, offs_h = tl.program_id(0), tl.arange(0, BLOCK_H)
    inside = offs_h < H
    summed, total = tl.zeros((BLOCK_H,), tl.float32), 0.0
    for split in tl.static_range(SPLITS):
        part = (split * tokens + row).to(tl.int64)
        summed += tl.load(parts + part * H + offs_h, mask=inside, other=0.0)
        total += tl.load(totals + part)
    token = tl.load(fixed_ids + row)
    place = tl.maximum(token, 0).to(tl.int64) * H + offs_h
    fixed = tl.load(embedding + place, mask=inside & (token >= 0), other=0.0).to(tl.float32)
    value = tl.where(token < 0, summed / total, fixed) * SCALE
    tl.store(output + row.to(tl.int64) * H + offs_h, value.to(output.dtype.element_ty), mask=inside)
