"""Products of four bits by four bits, by the tensor core of a Blackwell GPU; see native.py.

The B200's takes 128 rows of its first operand and 16 or more of its second, so weights come first,
as in product.py. Scales of activations are read as words of four: single bytes would be too few for
every thread of a program to copy four at a time, and then loads wait.

The number of turns is an argument although it is known: the assembler would unroll loops of known
length, 22 turns of them, and their instructions would push each other out of the cache.
"""

import triton
import triton.language as tl

from hybrid.kernels.device.product import gelu_gate


@triton.jit
def multiply_native(
    x,
    x_scales,
    source,
    x_mask,
    codes,
    scales,
    steps,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """float32 [128, BLOCK_M]: a panel of weight rows times rows `source` [BLOCK_M] of `x`.

    Both still lack their factors. ``x_scales`` are int32, four scales each. Rows under a false mask
    count as zero.
    """
    TILES: tl.constexpr = (K + 63) // 64
    row = tl.arange(0, 128)[:, None]
    byte, scale = tl.arange(0, BLOCK_K // 2), tl.arange(0, BLOCK_K // 16)
    word = tl.arange(0, BLOCK_K // 64)
    x_rows = (x + source.to(tl.int64) * (TILES * 32))[:, None] + byte[None, :]
    x_words = (x_scales + source.to(tl.int64) * TILES)[:, None] + word[None, :]
    codes += row * 32 + ((byte // 32) * 4096 + byte % 32)[None, :]
    scales += row * 4 + ((scale // 4) * 512 + scale % 4)[None, :]
    mask = x_mask[:, None]
    acc = tl.zeros((128, BLOCK_M), tl.float32)
    for step in tl.range(0, steps):
        if TILES * 64 % BLOCK_K == 0:
            activations = tl.load(x_rows + step * (BLOCK_K // 2), mask=mask, other=0)
            words = tl.load(x_words + step * (BLOCK_K // 64), mask=mask, other=0)
            weights = tl.load(codes + step * (64 * BLOCK_K))
            weight_scales = tl.load(scales + step * (8 * BLOCK_K))
        else:
            left = TILES - step * (BLOCK_K // 64)
            has_byte, has_word = (byte // 32 < left)[None, :], (word < left)[None, :]
            activations = tl.load(x_rows + step * (BLOCK_K // 2), mask=mask & has_byte, other=0)
            words = tl.load(x_words + step * (BLOCK_K // 64), mask=mask & has_word, other=0)
            weights = tl.load(codes + step * (64 * BLOCK_K), mask=has_byte, other=0)
            has_scale = (scale // 4 < left)[None, :]
            weight_scales = tl.load(scales + step * (8 * BLOCK_K), mask=has_scale, other=0.0)
        four = tl.broadcast_to(
            tl.reshape(words, (BLOCK_M, BLOCK_K // 64, 1)), (BLOCK_M, BLOCK_K // 64, 4)
        )
        bits = (four >> (8 * tl.reshape(tl.arange(0, 4), (1, 1, 4)))) & 0xFF
        numbers = bits.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
        activation_scales = tl.reshape(numbers, (BLOCK_M, BLOCK_K // 16))
        acc = tl.dot_scaled(
            weights, weight_scales, "e2m1", activations.T, activation_scales, "e2m1", acc
        )
    return acc


@triton.jit(do_not_specialize=["tokens"])
def linear_native(
    x,
    x_scales,
    x_factors,
    codes,
    scales,
    factors,
    output,
    tokens,
    steps,
    N: tl.constexpr,
    K: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`output` [tokens, N], or [tokens, N / 2] where rows are gates and ups in turn."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    token = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    panel = tl.program_id(0) // blocks
    TILES: tl.constexpr = (K + 63) // 64
    valid = token < tokens
    acc = multiply_native(
        x,
        x_scales,
        token,
        valid,
        codes + panel.to(tl.int64) * (TILES * 4096),
        scales + panel.to(tl.int64) * (TILES * 512),
        steps,
        K,
        BLOCK_M,
        BLOCK_K,
    )
    row = panel * 128 + tl.arange(0, 128)
    acc *= tl.load(factors + row, mask=row < N, other=0.0)[:, None]
    acc *= tl.load(x_factors + token, mask=valid, other=0.0)[None, :]
    width: tl.constexpr = N // 2 if GATED else N
    if GATED:
        gate, up = tl.split(tl.reshape(acc.T, (BLOCK_M, 64, 2)))
        result = gelu_gate(gate, up).to(tl.bfloat16)
        row = panel * 64 + tl.arange(0, 64)
    else:
        result = acc.to(tl.bfloat16).T
    place = output + token.to(tl.int64)[:, None] * width + row[None, :]
    tl.store(place, result, mask=valid[:, None] & (row < width)[None, :])


@triton.jit
def grouped_native(
    x,
    x_scales,
    x_factors,
    codes,
    scales,
    factors,
    shares,
    tiles,
    rows,
    count,
    output,
    steps,
    N: tl.constexpr,
    K: tl.constexpr,
    TOP_K: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """As `grouped_product` of experts.py, with its plan, on a native matrix."""
    PANELS: tl.constexpr = (N + 127) // 128
    TILES: tl.constexpr = (K + 63) // 64
    width: tl.constexpr = N // 2 if GATED else N
    for unit in tl.range(tl.program_id(0), tl.load(count) * PANELS, tl.num_programs(0)):
        panel = unit % PANELS
        expert = tl.load(tiles + unit // PANELS).to(tl.int64)
        assignment = tl.load(rows + (unit // PANELS) * BLOCK_M + tl.arange(0, BLOCK_M))
        valid = assignment >= 0
        source = assignment // TOP_K if GATED else assignment
        acc = multiply_native(
            x,
            x_scales,
            source,
            valid,
            codes + (expert * PANELS + panel) * (TILES * 4096),
            scales + (expert * PANELS + panel) * (TILES * 512),
            steps,
            K,
            BLOCK_M,
            BLOCK_K,
        )
        row = panel * 128 + tl.arange(0, 128)
        acc *= tl.load(factors + expert * N + row, mask=row < N, other=0.0)[:, None]
        acc *= tl.load(x_factors + source, mask=valid, other=0.0)[None, :]
        if GATED:
            gate, up = tl.split(tl.reshape(acc.T, (BLOCK_M, 64, 2)))
            result = gelu_gate(gate, up).to(tl.bfloat16)
            row = panel * 64 + tl.arange(0, 64)
        else:
            share = tl.load(shares + assignment, mask=valid, other=0.0)
            result = (acc * share[None, :]).to(tl.bfloat16).T
        place = output + assignment.to(tl.int64)[:, None] * width + row[None, :]
        tl.store(place, result, mask=valid[:, None] & (row < width)[None, :])
