"""Four bits to bfloat16, in the registers of the thread that feeds them to the tensor core.

The bits of a code are moved to where a bfloat16 keeps its sign, the two lowest bits of its exponent
and the highest of its mantissa: that number is the code's value times 2**-126 (codes of 0.5 are
subnormal). A scale's byte, moved likewise, is its value times 2**-120, and two products bring it to
2**119. So one product a weight gives ``value * scale * 2**-7``. All of it is exact: a weight has at
most six significant bits and lies between 2**-17 and 21. `RESTORE` makes up for the 2**-7 in sums.

Codes become fragments without leaving their thread. A word holds the columns that one thread of an
m16k16 fragment needs, and only broadcasts, shapes and permutes stand between load and product. The
compiler can follow those backwards, and loads words in the fragment's layout; with joins it sends
the decoded tile through shared memory again (8 stores, 8 loads of 16 bytes a thread, 16 barriers).
All in all the loop takes 4 instructions a weight on sm_90, 3.8 on sm_120.
"""

import triton
import triton.language as tl

RESTORE = tl.constexpr(128.0)
_CODE_BITS = tl.constexpr(-0x7E3F7E40)  # 0x81C081C0: sign, exponent and mantissa in both halves
_SIGN_BITS = tl.constexpr(-0x7FFF8000)  # 0x80008000


@triton.jit
def decode_tile(words, scales, ROWS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """bfloat16 [ROWS, 64] of int32 ``words`` [ROWS, 8] and ``scales`` [ROWS] in nvfp4.py's order.

    Column 32c + 8j + 2t + h is pair j, half h of word 2t + c.
    """
    pair = tl.reshape(tl.arange(0, 4), (1, 1, 1, 4, 1))
    word = tl.broadcast_to(tl.reshape(words, (ROWS, 4, 2, 1, 1)), (ROWS, 4, 2, 4, 2))
    shifted = (word << (3 * pair)) & _CODE_BITS
    scattered = ((word >> 4) & 0x00C000C0) | ((word >> 5) & 0x01000100) | ((word << 1) & _SIGN_BITS)
    codes = _halves(tl.where(pair < 3, shifted, scattered), ASSEMBLY)  # [row, t, c, j, h]

    group = tl.reshape(tl.arange(0, 2), (1, 1, 1, 2, 1))
    word = tl.broadcast_to(tl.reshape(scales, (ROWS // 16, 2, 8, 1, 1)), (ROWS // 16, 2, 8, 2, 2))
    scale = _halves(((word >> (8 * group)) & 0x00FF00FF) << 4, ASSEMBLY)  # [slab, c, row, j / 2, h]
    scale = tl.reshape(tl.permute(scale, (0, 4, 2, 1, 3)), (ROWS, 1, 2, 2, 1, 1))
    scale = scale * (2.0**120) * (2.0**119)

    values = tl.reshape(codes, (ROWS, 4, 2, 2, 2, 2)) * scale
    return tl.reshape(tl.permute(values, (0, 2, 3, 4, 1, 5)), (ROWS, 64))


@triton.jit
def _halves(bits, ASSEMBLY: tl.constexpr):
    """Half h of every int32 [..., h] as a bfloat16; both elements of a pair hold the same int32."""
    if ASSEMBLY:
        # Two equal registers go in and one comes out, which is both numbers already.
        numbers = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r,r", [bits], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        half = (bits >> (16 * tl.arange(0, 2))) & 0xFFFF
        numbers = half.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return numbers
