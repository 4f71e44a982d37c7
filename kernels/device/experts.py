"""Device code of experts.py: the plan, and the grouped product that runs twice."""

import triton
import triton.language as tl

from hybrid.kernels.device.product import gelu_gate, multiply, restore


@triton.jit(do_not_specialize=["assignments"])
def plan_rows(
    experts,
    tiles,
    rows,
    count,
    assignments,
    EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program an expert: its tiles and the assignments in them, in their order, -1 behind.

    Every program counts all assignments, so that none has to wait for another.
    """
    expert = tl.program_id(0)
    bin_ = tl.arange(0, BINS)
    counts = tl.zeros((BINS,), tl.int32)
    for start in tl.range(0, assignments, CHUNK):
        index = start + tl.arange(0, CHUNK)
        chosen = tl.load(experts + index, mask=index < assignments, other=EXPERTS)
        counts += tl.histogram(chosen, BINS)
    needed = tl.where(bin_ < EXPERTS, (counts + BLOCK_M - 1) // BLOCK_M, 0)
    first = tl.sum(tl.where(bin_ < expert, needed, 0))
    held = tl.sum(tl.where(bin_ == expert, counts, 0))
    mine = (held + BLOCK_M - 1) // BLOCK_M
    if expert == EXPERTS - 1:
        tl.store(count, first + mine)
    for tile in tl.range(0, mine):
        tl.store(tiles + first + tile, expert)
    rows += first * BLOCK_M
    position = held + tl.arange(0, BLOCK_M)
    tl.store(rows + position, -1, mask=position < mine * BLOCK_M)
    for start in tl.range(0, assignments, CHUNK):
        index = start + tl.arange(0, CHUNK)
        chosen = tl.load(experts + index, mask=index < assignments, other=EXPERTS)
        is_mine = (chosen == expert).to(tl.int32)
        tl.store(rows + tl.cumsum(is_mine) - 1, index, mask=is_mine > 0)
        rows += tl.sum(is_mine)


@triton.jit
def grouped_product(
    x,
    weight,
    scales,
    factors,
    shares,
    tiles,
    rows,
    count,
    output,
    turns,
    N: tl.constexpr,
    K: tl.constexpr,
    TOP_K: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PACKED: tl.constexpr,
):
    """The first product (GATED): rows of `x` by token, gelu(gate) * up; the second: by assignment.

    Programs walk over (tile, 128 weight rows), weight rows fastest: what runs at one time are all
    weights of a few experts, each read once, and the rows of `x` that they share.

    `turns` is the number of steps over K, for plain weights: the assembler would unroll all 11 of
    the second product's, from which the gate could not tell what waits in a step.
    """
    ROWS: tl.constexpr = 128
    num_n: tl.constexpr = (N + ROWS - 1) // ROWS
    num_k: tl.constexpr = (K + 63) // 64
    width: tl.constexpr = N // 2 if GATED else N
    for unit in tl.range(tl.program_id(0), tl.load(count) * num_n, tl.num_programs(0)):
        first_row = (unit % num_n) * ROWS
        expert = tl.load(tiles + unit // num_n).to(tl.int64)
        assignment = tl.load(rows + (unit // num_n) * BLOCK_M + tl.arange(0, BLOCK_M))
        valid = assignment >= 0
        source = assignment // TOP_K if GATED else assignment
        if PACKED:
            expert_weight = weight + expert * (num_n * num_k * 1024)
            expert_scales = scales + expert * (num_n * num_k * 128)
        else:
            expert_weight = weight + expert * (N * K)
            expert_scales = scales
        acc = multiply(
            x + source.to(tl.int64) * K,
            valid,
            expert_weight,
            expert_scales,
            first_row,
            num_k if PACKED else turns,
            N,
            K,
            ROWS,
            BLOCK_M,
            64,
            PACKED,
        )
        acc = restore(acc, factors + expert * N, first_row, N, ROWS, PACKED)
        row = first_row + tl.arange(0, ROWS)
        if GATED:
            gate, up = tl.split(tl.reshape(acc.T, (BLOCK_M, ROWS // 2, 2)))
            result = gelu_gate(gate, up).to(tl.bfloat16)
            row = first_row // 2 + tl.arange(0, ROWS // 2)
        else:
            share = tl.load(shares + assignment, mask=valid, other=0.0)
            result = (acc * share[None, :]).to(tl.bfloat16).T
        place = output + assignment.to(tl.int64)[:, None] * width + row[None, :]
        tl.store(place, result, mask=valid[:, None] & (row < width)[None, :])
