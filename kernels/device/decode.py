"""Four bits to bfloat16, in the registers of the thread that feeds them to the tensor core.

The bits of a code are moved to where a bfloat16 keeps its sign, the two lowest bits of its exponent
and the highest of its mantissa: that number is the code's value times 2**-126. A scale's byte holds
the low bits of an exponent and three bits of a mantissa; a shift and a constant make a bfloat16 of
them, the scale's value times 2**119. So one product a weight gives ``value * scale * 2**-7``. All
of it is exact: a weight has at most six significant bits and lies between 2**-17 and 21. `RESTORE`
makes up for the 2**-7 in sums.

Codes of 0.5 are subnormal bfloat16 numbers, the only ones here: PTX keeps them in `mul.bf16x2` and
`fma.rn.bf16x2`, which have no flushing variant, and what they give is a normal number.

Codes become fragments without leaving their thread. A word holds the columns that one thread of an
m16k16 fragment needs, and only broadcasts, shapes and permutes stand between load and product. The
compiler can follow those backwards, and loads words in the fragment's layout; with joins it sends
the decoded tile through shared memory again (8 stores, 8 loads of 16 bytes a thread, 16 barriers).
Which element lies in which register is the compiler's choice, so every element takes its own half
of its word; numbers stay int32 as long as possible, or the compiler converts their layout.
"""

import triton
import triton.language as tl

RESTORE = tl.constexpr(128.0)
_CODE_BITS = tl.constexpr(-0x7E3F7E40)  # 0x81C081C0: sign, exponent and mantissa in both halves
_SCALE_BITS = tl.constexpr(0x70007000)  # the exponent's upper bits in both halves


@triton.jit
def decode_tile(words, scales, ROWS: tl.constexpr):
    """bfloat16 [ROWS, 64] of int32 ``words`` [ROWS, 8] and ``scales`` [ROWS] in nvfp4.py's order.

    Column 32c + 8j + 2t + h is pair j, half h of word 2t + c.
    """
    pair = tl.reshape(tl.arange(0, 4), (1, 1, 1, 4, 1))
    word = tl.broadcast_to(tl.reshape(words, (ROWS, 4, 2, 1, 1)), (ROWS, 4, 2, 4, 2))
    unsigned = word.to(tl.uint32, bitcast=True)
    rotated = ((unsigned >> 4) | (unsigned << 28)).to(tl.int32, bitcast=True)
    scattered = ((word << 2) & -0x7F3F7F40) | ((word >> 6) & 0x01000100)  # 0x80C080C0
    moved = tl.where(pair == 0, word, tl.where(pair == 1, word << 6, rotated)) & _CODE_BITS
    codes = tl.where(pair == 3, scattered, moved)  # [row, t, c, j, h]
    codes = tl.reshape(codes, (ROWS, 4, 2, 2, 2, 2))
    codes = _number(codes >> 16 * tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 1, 2)))

    group = tl.reshape(tl.arange(0, 2), (1, 1, 1, 2, 1))
    word = tl.broadcast_to(tl.reshape(scales, (ROWS // 16, 2, 8, 1, 1)), (ROWS // 16, 2, 8, 2, 2))
    bits = (tl.where(group == 0, word << 4, word >> 4) & 0x0FF00FF0) | _SCALE_BITS
    scale = bits >> 16 * tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 2))  # [slab, c, row, j / 2, h]
    scale = _number(tl.reshape(tl.permute(scale, (0, 4, 2, 1, 3)), (ROWS, 1, 2, 2, 1, 1)))

    return tl.reshape(tl.permute(codes * scale, (0, 2, 3, 4, 1, 5)), (ROWS, 64))


@triton.jit
def _number(bits):
    """The low half of every int32 as a bfloat16."""
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
