"""The loop of every matrix product here: a tile of weight rows times a tile of activation rows.

The weights are the tensor core's first operand, so the result is [weight rows, activation rows].
That lets few activation rows fill a product (Hopper's takes 64 rows of the first operand and 8 or
more of the second), and it is the only operand that may come from registers, where weights of four
bits are decoded.

A weight is bfloat16 [N, K], or the words of a packed matrix with its scales as int32. Loops end
with the tile that holds column K - 1; of `x` and of plain weights nothing behind it is read.
"""

import triton
import triton.language as tl

from hybrid.kernels.device.decode import RESTORE, decode_tile


@triton.jit
def multiply(
    x_rows,
    x_mask,
    weight,
    scales,
    first_row,
    turns,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PACKED: tl.constexpr,
):
    """float32 [ROWS, BLOCK_M]: weight rows from `first_row` on times the rows of `x`.

    ``x_rows`` [BLOCK_M] are pointers; rows under a false mask count as zero. Weight rows beyond N
    repeat the last one. `turns` times BLOCK_K columns make K, rounded up. What packed weights give
    still lacks their factors, see `restore`.
    """
    rows, scale_rows = weight_rows(weight, scales, first_row, N, K, ROWS, PACKED)
    acc = tl.zeros((ROWS, BLOCK_M), tl.float32)
    for step in tl.range(0, turns):
        x = activation_tile(x_rows, x_mask, step, K, BLOCK_K)
        tile = weight_tile(rows, scale_rows, step, K, ROWS, BLOCK_K, PACKED)
        acc = tl.dot(tile, x.T, acc)
    return acc


@triton.jit
def restore(acc, factors, first_row, N: tl.constexpr, ROWS: tl.constexpr, PACKED: tl.constexpr):
    """The product [ROWS, BLOCK_M] with the factors of packed weight rows."""
    if PACKED:
        row = first_row + tl.arange(0, ROWS)
        factor = tl.load(factors + row, mask=row < N, other=0.0)
        acc *= (factor * RESTORE)[:, None]
    return acc


@triton.jit
def weight_rows(
    weight,
    scales,
    first_row,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    PACKED: tl.constexpr,
):
    """Pointers to the first tile of rows [ROWS], and to that of their scales."""
    row = first_row + tl.arange(0, ROWS)
    if PACKED:
        panel = (row // 128) * ((K + 63) // 64)
        rows = weight + panel * 1024 + (row % 128) * 8
        scale_rows = scales + panel * 128 + row % 128
    else:
        rows = weight + tl.minimum(row, N - 1).to(tl.int64) * K
        scale_rows = rows
    return rows, scale_rows


@triton.jit
def weight_tile(
    rows,
    scale_rows,
    step,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PACKED: tl.constexpr,
):
    """bfloat16 [ROWS, BLOCK_K], the step's columns of weight rows."""
    column = step * BLOCK_K + tl.arange(0, BLOCK_K)
    if PACKED:
        words = tl.load(rows[:, None] + step * 1024 + tl.arange(0, 8)[None, :])
        tile = decode_tile(words, tl.load(scale_rows + step * 128), ROWS)
    elif K % BLOCK_K == 0:
        tile = tl.load(rows[:, None] + column[None, :])
    else:
        tile = tl.load(rows[:, None] + column[None, :], mask=(column < K)[None, :], other=0.0)
    return tile


@triton.jit
def activation_tile(x_rows, x_mask, step, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """bfloat16 [BLOCK_M, BLOCK_K], the step's columns of the rows of `x`."""
    column = step * BLOCK_K + tl.arange(0, BLOCK_K)
    if K % BLOCK_K == 0:
        tile = tl.load(x_rows[:, None] + column[None, :], mask=x_mask[:, None], other=0.0)
    else:
        mask = x_mask[:, None] & (column < K)[None, :]
        tile = tl.load(x_rows[:, None] + column[None, :], mask=mask, other=0.0)
    return tile


@triton.jit
def gelu_gate(gate, up):
    """``gelu(gate) * up`` by a sigmoid, as arithmetic.py has it; float32 of the inputs' shape."""
    slope = 1.5957691216057308 + 0.07135481627260025 * gate * gate
    return gate * tl.sigmoid(gate * slope) * up
