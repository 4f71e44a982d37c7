"""NVFP4 on a GPU, a block of 16 values at a time: each has 8 bytes of codes and one of scale.

The e4m3 scale is rounded and decoded by integer arithmetic, because GPUs before sm_89 have no
instruction for it; divisions are IEEE's, because Triton's `/` may be off by a unit in the last
place and the results are to be the references', bit for bit.
"""

import triton
import triton.language as tl

_BLOCK = tl.constexpr(16)
_E2M1_MAX = tl.constexpr(6.0)
_E4M3_MAX = tl.constexpr(448.0)
_BIAS = tl.constexpr(127 - 7)  # from e4m3's exponents to float32's
_LEAST_NORMAL = tl.constexpr(2.0**-6)
_LEAST = tl.constexpr(2.0**-9)
_LEAST_LARGEST = tl.constexpr(2.0**-100)  # as in quantize.py
_ULP_IS_LEAST = tl.constexpr(2.0**14)  # adding it rounds a float32 to multiples of 2^-9


@triton.jit
def _encode_e4m3(value):
    """The nearest e4m3 code of each float32 from 0 to 448, ties to even."""
    bits = value.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (_BIAS << 3)
    rounded = (value + _ULP_IS_LEAST).to(tl.int32, bitcast=True)
    small = rounded - ((127 + 14) << 23)
    return tl.where(value < _LEAST_NORMAL, small, normal)


@triton.jit
def _decode_e4m3(code):
    """The float32 of each e4m3 code, 0 to 255."""
    magnitude = code & 0x7F
    normal = ((magnitude << 20) + (_BIAS << 23)).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 8, magnitude.to(tl.float32) * _LEAST, normal)
    value = tl.where(magnitude == 0x7F, float("nan"), value)
    return _with_sign(value, code >> 7)


@triton.jit
def _encode_e2m1(value):
    """The nearest e2m1 code of each float32, ties to even, without its sign."""
    size = tl.abs(value)
    code = (size > 0.25).to(tl.int32) + (size >= 0.75).to(tl.int32) + (size > 1.25).to(tl.int32)
    code += (size >= 1.75).to(tl.int32) + (size > 2.5).to(tl.int32) + (size >= 3.5).to(tl.int32)
    return code + (size > 5.0).to(tl.int32)


@triton.jit
def _decode_e2m1(code):
    """The float32 of each e2m1 code, 0 to 15."""
    magnitude = code & 7
    normal = ((magnitude << 22) + (126 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 2, magnitude.to(tl.float32) * 0.5, normal)
    return _with_sign(value, code >> 3)


@triton.jit
def _with_sign(magnitude, sign):
    """`magnitude` with its sign bit set where `sign` is 1: minus would make zero positive."""
    return (magnitude.to(tl.int32, bitcast=True) | (sign << 31)).to(tl.float32, bitcast=True)


@triton.jit
def _encode_blocks(values, factor, BLOCK_B: tl.constexpr):
    """Bytes of codes [BLOCK_B, 8] and of scales [BLOCK_B] of `values` [BLOCK_B, 16]."""
    largest = tl.max(tl.abs(values), 1)
    wanted = tl.div_rn(tl.div_rn(largest, tl.full(largest.shape, _E2M1_MAX, tl.float32)), factor)
    scale = _encode_e4m3(tl.minimum(wanted, _E4M3_MAX))
    step = _decode_e4m3(scale) * factor
    has_step = (step > 0)[:, None]
    steps = tl.broadcast_to(tl.where(step > 0, step, 1.0)[:, None], values.shape)
    sign = (values.to(tl.int32, bitcast=True) >> 28) & 8
    code = tl.where(has_step, _encode_e2m1(tl.div_rn(values, steps)) | sign, 0)
    even, odd = tl.split(tl.reshape(code, (BLOCK_B, _BLOCK // 2, 2)))
    return (even | (odd << 4)).to(tl.uint8), scale.to(tl.uint8)


@triton.jit
def quantize_blocks(
    x,
    factors,
    packed,
    scales,
    BLOCKS: tl.constexpr,
    BLOCKS_PER_FACTOR: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """`packed` uint8 [BLOCKS, 8] and `scales` uint8 [BLOCKS] of `x` [BLOCKS, 16]."""
    block = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    inside = block < BLOCKS
    factor = tl.load(factors + block // BLOCKS_PER_FACTOR, mask=inside, other=1.0)
    offs = block[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    values = tl.load(x + offs, mask=inside[:, None], other=0.0).to(tl.float32)
    codes, scale = _encode_blocks(values, factor, BLOCK_B)
    offs_p = block[:, None] * (_BLOCK // 2) + tl.arange(0, _BLOCK // 2)[None, :]
    tl.store(packed + offs_p, codes, mask=inside[:, None])
    tl.store(scales + block, scale, mask=inside)


@triton.jit
def quantize_row(
    x,
    packed,
    scales,
    factors,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """One row of `x` [T, K], under a factor of its own, in PADDED columns."""
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_B)
    column = block[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    values = tl.load(x + row * K + column, mask=column < K, other=0.0).to(tl.float32)
    largest = tl.max(tl.max(tl.abs(values), 1), 0)
    # As a vector: division of numbers that are not tensors has no rounding to choose.
    wide = tl.full((BLOCK_B,), 0.0, tl.float32) + largest
    factor = tl.div_rn(wide, tl.full((BLOCK_B,), _E2M1_MAX * _E4M3_MAX, tl.float32))
    factor = tl.where(wide > _LEAST_LARGEST, factor, 1.0)
    codes, scale = _encode_blocks(values, factor, BLOCK_B)
    inside = block < PADDED // _BLOCK
    offs_p = block[:, None] * (_BLOCK // 2) + tl.arange(0, _BLOCK // 2)[None, :]
    tl.store(packed + row * (PADDED // 2) + offs_p, codes, mask=inside[:, None])
    tl.store(scales + row * (PADDED // _BLOCK) + block, scale, mask=inside)
    tl.store(factors + row + block, factor, mask=block == 0)


@triton.jit
def dequantize_blocks(
    packed,
    scales,
    factors,
    output,
    BLOCKS: tl.constexpr,
    BLOCKS_PER_FACTOR: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """`output` float32 [BLOCKS, 16], the inverse of `quantize_blocks`."""
    block = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    inside = block < BLOCKS
    factor = tl.load(factors + block // BLOCKS_PER_FACTOR, mask=inside, other=1.0)
    scale = _decode_e4m3(tl.load(scales + block, mask=inside, other=0).to(tl.int32))
    offs_p = block[:, None] * (_BLOCK // 2) + tl.arange(0, _BLOCK // 2)[None, :]
    pair = tl.load(packed + offs_p, mask=inside[:, None], other=0).to(tl.int32)
    code = tl.reshape(tl.join(pair & 15, pair >> 4), (BLOCK_B, _BLOCK))
    values = _decode_e2m1(code) * scale[:, None] * factor[:, None]
    offs = block[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    tl.store(output + offs, values, mask=inside[:, None])
