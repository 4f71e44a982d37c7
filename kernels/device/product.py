"""The loop of every matrix product here: a tile of weight rows times a tile of activation rows.

The weights are the tensor core's first operand, so the result is [weight rows, activation rows].
That lets few activation rows fill a product (Hopper's takes 64 rows of the first operand and 8 or
more of the second), and it is the only operand that may come from registers, where weights of four
bits are decoded.
"""

import triton
import triton.language as tl

from hybrid.kernels.device.decode import decode_tile


@triton.jit
def multiply(
    x_rows,
    x_mask,
    weight,
    scales,
    first_row,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PACKED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """float32 [ROWS, BLOCK_M]: weight rows from `first_row` on times the rows of `x`.

    ``x_rows`` [BLOCK_M] are pointers; rows under a false mask count as zero. ``weight`` is bfloat16
    [N, K], whose last row is repeated beyond N, or a packed matrix's words, ``scales`` as int32.
    """
    column = tl.arange(0, BLOCK_K)
    row = first_row + tl.arange(0, ROWS)
    if PACKED:
        panel = (row // 128) * ((K + 63) // 64)
        weight_rows = weight + panel * 1024 + (row % 128) * 8
        scale_rows = scales + panel * 128 + row % 128
    else:
        weight_rows = weight + tl.minimum(row, N - 1).to(tl.int64) * K
    acc = tl.zeros((ROWS, BLOCK_M), tl.float32)
    for step in tl.range(0, (K + BLOCK_K - 1) // BLOCK_K):
        offset = step * BLOCK_K + column
        if K % BLOCK_K == 0:
            x = tl.load(x_rows[:, None] + offset[None, :], mask=x_mask[:, None], other=0.0)
        else:
            mask = x_mask[:, None] & (offset < K)[None, :]
            x = tl.load(x_rows[:, None] + offset[None, :], mask=mask, other=0.0)
        if PACKED:
            words = tl.load(weight_rows[:, None] + step * 1024 + tl.arange(0, 8)[None, :])
            tile = decode_tile(words, tl.load(scale_rows + step * 128), ROWS, ASSEMBLY)
        elif K % BLOCK_K == 0:
            tile = tl.load(weight_rows[:, None] + offset[None, :])
        else:
            mask = (offset < K)[None, :]
            tile = tl.load(weight_rows[:, None] + offset[None, :], mask=mask, other=0.0)
        acc = tl.dot(tile, x.T, acc)
    return acc
