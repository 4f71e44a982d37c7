"""NVFP4: 4-bit weights with two scales, as the published checkpoints store them.

A value is ``e2m1(code) * e4m3(weight_scale) * weight_scale_2``: a 4-bit float (sign, two exponent
bits, one mantissa bit), one 8-bit scale for every 16 consecutive columns, and one float32 scale a
matrix. Two codes share a byte, the even column in the low nibble; scales are row-major [N, K/16].
The e2m1 x e4m3 product has at most six significant bits, so it is exact in bfloat16.

Two conventions are published and differ only in the last factor: ModelOpt *multiplies* by
``weight_scale_2 = amax / (6 * 448)``; compressed-tensors *divides* by ``weight_global_scale``, its
reciprocal. Everything here speaks ModelOpt's.

Source: NVIDIA Model-Optimizer and vllm-project/compressed-tensors, checkpoint headers.

`PackedMatrix` is the layout that our kernels multiply with: the same bits, cut into tiles of 128
rows and 64 columns that lie together in memory, 4 KB of codes and 512 bytes of scales each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 16  # columns that share one e4m3 scale
E2M1_MAX = 6.0
E4M3_MAX = 448.0
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # magnitude of codes 0-7; bit 3 is the sign

# Midpoints between neighbouring magnitudes. A value on a midpoint goes to the even code, so the
# midpoints above even codes round down and those above odd codes round up.
_TIES_DOWN = (0.25, 1.25, 2.5, 5.0)
_TIES_UP = (0.75, 1.75, 3.5)


def encode_e2m1_torch(values: Tensor) -> Tensor:
    """The nearest e2m1 code (uint8, 0-15) of each value, ties to even, saturating at 6."""
    magnitude = values.abs()
    code = torch.zeros_like(values, dtype=torch.uint8)
    for midpoint in _TIES_DOWN:
        code += magnitude > midpoint
    for midpoint in _TIES_UP:
        code += magnitude >= midpoint
    return code | (torch.signbit(values).to(torch.uint8) << 3)


def decode_e2m1_torch(codes: Tensor) -> Tensor:
    """The float32 value of each e2m1 code (uint8, 0-15)."""
    table = torch.tensor((*E2M1_VALUES, *(-v for v in E2M1_VALUES)), device=codes.device)
    return table[codes.long()]


def pack_torch(codes: Tensor) -> Tensor:
    """Codes [..., K] as bytes [..., K/2], even columns in the low nibbles."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_torch(packed: Tensor) -> Tensor:
    """Bytes [..., K/2] as codes [..., K]; the inverse of `pack_torch`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def quantize_torch(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize matrices [..., N, K] to (packed, weight_scale, weight_scale_2).

    Shapes and dtypes: uint8 [..., N, K/2], float8_e4m3fn [..., N, K/16], float32 [...].
    K must be a multiple of 16. An all-zero matrix gets ``weight_scale_2 = 1``.
    """
    if weight.shape[-1] % BLOCK:
        raise ValueError(f"NVFP4 needs a multiple of {BLOCK} columns, not {weight.shape[-1]}")
    weight = weight.float()
    amax = weight.abs().amax((-2, -1))
    weight_scale_2 = torch.where(amax > 0, amax / (E2M1_MAX * E4M3_MAX), 1.0)
    blocks = weight.reshape(*weight.shape[:-1], -1, BLOCK)
    outer = weight_scale_2[..., None, None]
    weight_scale = (blocks.abs().amax(-1) / E2M1_MAX / outer).to(torch.float8_e4m3fn)
    step = (weight_scale.float() * outer)[..., None]
    codes = encode_e2m1_torch(torch.where(step > 0, blocks / step, 0.0))
    return pack_torch(codes.flatten(-2)), weight_scale, weight_scale_2


def dequantize_torch(packed: Tensor, weight_scale: Tensor, weight_scale_2: Tensor) -> Tensor:
    """The float32 matrices [..., N, K] that (packed, weight_scale, weight_scale_2) stand for."""
    values = decode_e2m1_torch(unpack_torch(packed))
    inner = values * weight_scale.float().repeat_interleave(BLOCK, dim=-1)
    return inner * weight_scale_2[..., None, None]


TILE_ROWS, TILE_COLUMNS = 128, 64


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """E matrices [rows, columns] in tiles: 4.5 bits a weight and one float32 factor a row.

    ``words`` int32 [E, N/128, K/64, 128, 8]; ``scales`` uint8 [E, N/128, K/64, 128, 4];
    ``factors`` float32 [E, rows], which multiply what comes out. N and K are `rows` and `columns`
    rounded up to whole tiles, and the tiles are zero where the matrix ends.

    Word 2t + c of a row has the codes of columns 32c + 8j + 2t + h, for j < 4 and h < 2: what
    thread t of four holds of a tensor core's fragment. A shift or a rotation and a mask bring a
    code's three bits to bits 6 to 8 and its sign to bit 15 of half h. Pair 0 stands there; pair 1
    stands six bits lower; pair 2 has its bits four higher and its sign at bit 3 of the other half,
    since the word is rotated. Pair 3 has what is left: bits 4, 5 and 14, and its sign at bit 13.

    A scale byte has five bits of exponent, biased by 22, and three of mantissa: every e4m3 number
    but zero is normal so. A zero scale is byte 0, and its codes are zero; NaN is byte 255.

    The scale bytes of 16 rows are two blocks, c, of eight words. Word r of block c has the scales
    of columns 32c and 32c + 16 of row r, then those of row r + 8.
    """

    words: Tensor
    scales: Tensor
    factors: Tensor
    rows: int
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        return self.words.nbytes + self.scales.nbytes + self.factors.nbytes


def pack_matrix(packed: Tensor, weight_scale: Tensor, factors: Tensor) -> PackedMatrix:
    """The tiles of matrices ``packed`` uint8 [E, N, K/2] with ``weight_scale`` e4m3 [E, N, K/16].

    ``factors`` float32 [E, N] hold whatever multiplies a whole row, first of all weight_scale_2. A
    negative scale, which NVFP4 has no use for, becomes positive and its codes change their sign.
    """
    rows, columns = packed.shape[1], 2 * packed.shape[2]
    scale_bytes = weight_scale.view(torch.uint8)
    signs = ((scale_bytes >> 7) * 0x88).repeat_interleave(BLOCK // 2, -1)
    kept = ((scale_bytes & 0x7F) != 0).repeat_interleave(BLOCK // 2, -1)
    codes = tiles((packed ^ signs) * kept, TILE_COLUMNS // 2)
    scales = tiles(_to_scale_bytes(weight_scale), TILE_COLUMNS // BLOCK)
    return PackedMatrix(
        words=_to_words(codes),
        scales=_exchanged(scales, (-1, 2, 8, 2, 2)),
        factors=factors,
        rows=rows,
        columns=columns,
    )


def unpack_matrix(matrix: PackedMatrix) -> tuple[Tensor, Tensor, Tensor]:
    """(packed, weight_scale, factors) as `pack_matrix` took them, bit for bit unless negative.

    Codes under a zero scale are zero.
    """
    scales = _exchanged(matrix.scales, (-1, 2, 8, 2, 2))
    scales = untiled(scales)[:, : matrix.rows, : matrix.columns // BLOCK]
    packed = untiled(_from_words(matrix.words))
    packed = packed[:, : matrix.rows, : matrix.columns // 2]
    return packed.contiguous(), _from_scale_bytes(scales.contiguous()), matrix.factors


def dense(matrix: PackedMatrix, dtype: torch.dtype) -> Tensor:
    """The matrices [E, rows, columns] as numbers; computed in float32 at least, rounded once."""
    return decode(*unpack_matrix(matrix), dtype)


def decode(packed: Tensor, scales: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers [..., N, K] of codes [..., N, K/2] and their scales [..., N, K/16], rounded once.

    ``factors`` float32 [..., N]: one a row.
    """
    exact = torch.promote_types(dtype, torch.float32)
    values = decode_e2m1_torch(unpack_torch(packed)).to(exact)
    values *= scales.to(exact).repeat_interleave(BLOCK, dim=-1)
    return (values * factors[..., None].to(exact)).to(dtype)


@dataclass(frozen=True, slots=True)
class Operand:
    """A weight as kernels take it; of a plain one, `scales` and `factors` are fillers."""

    values: Tensor
    scales: Tensor
    factors: Tensor
    rows: int
    columns: int
    packed: bool


def operand(weight: Tensor | PackedMatrix) -> Operand:
    """The parts of a matrix ([N, K], [E, N, K] or packed) for a kernel's arguments."""
    if isinstance(weight, Tensor):
        return Operand(weight, weight, weight, weight.shape[-2], weight.shape[-1], packed=False)
    scales = weight.scales.view(torch.int32)
    return Operand(weight.words, scales, weight.factors, weight.rows, weight.columns, packed=True)


def tiles(rows: Tensor, width: int) -> Tensor:
    """Bytes [E, N, B] as tiles [E, N/128, B/width, 128, width], filled up with zeros."""
    filled = pad(rows, (0, -rows.shape[2] % width, 0, -rows.shape[1] % TILE_ROWS))
    tiles = filled.view(len(rows), filled.shape[1] // TILE_ROWS, TILE_ROWS, -1, width)
    return tiles.transpose(2, 3).contiguous()


def untiled(tiles: Tensor) -> Tensor:
    """The inverse of `tiles`, without taking the filling away."""
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _exchanged(scales: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Scale bytes [..., 128, 4] with row halves and column halves exchanged: its own inverse.

    (slab, row half, row, column half, column) becomes (slab, column half, row, row half, column).
    """
    leading = scales.shape[:-2]
    return scales.view(*leading, *shape).transpose(-4, -2).reshape(scales.shape)


def _to_words(packed: Tensor) -> Tensor:
    """int32 words [..., 128, 8] of bytes [..., 128, 32]; a byte has the two codes of a pair."""
    axes = [*range(packed.dim() - 1)]
    pairs = packed.view(*packed.shape[:-1], 2, 4, 4).permute(*axes, -1, -3, -2)
    four = pairs.contiguous().view(torch.int32)  # the bytes of a word, the lowest first
    words = torch.zeros_like(four)
    for pair in range(4):
        byte = four >> 8 * pair & 0xFF
        codes = (byte | byte << 12) & 0x000F000F
        bits, sign = codes & 0x00070007, codes & 0x00080008
        if pair == 0:
            words |= bits << 6 | sign << 12
        elif pair == 1:
            words |= bits | sign << 6
        elif pair == 2:
            words |= bits << 10 | sign << 16 | sign >> 16
        else:
            words |= (bits & 0x00030003) << 4 | (bits & 0x00040004) << 12 | sign << 10
    return words.flatten(-3)


def _from_words(words: Tensor) -> Tensor:
    """The bytes [..., 128, 32] of int32 words [..., 128, 8]."""
    words = words.view(*words.shape[:-1], 4, 2)
    pairs = []
    for pair in range(4):
        if pair == 0:
            codes = words >> 6 & 0x00070007 | words >> 12 & 0x00080008
        elif pair == 1:
            codes = words & 0x00070007 | words >> 6 & 0x00080008
        elif pair == 2:
            codes = words >> 10 & 0x00070007 | words >> 16 & 0x8 | (words & 0x8) << 16
        else:
            codes = words >> 4 & 0x00030003 | words >> 12 & 0x00040004 | words >> 10 & 0x00080008
        pairs.append((codes | codes >> 12).to(torch.uint8))
    axes = [*range(words.dim() - 2)]
    return torch.stack(pairs, -1).permute(*axes, -2, -1, -3).flatten(-3)


_SCALE_OFFSET = 127 - 22 << 3  # between the exponents of float32 and of a scale byte


def _to_scale_bytes(scales: Tensor) -> Tensor:
    """Magnitudes of e4m3 scales in the bytes of `PackedMatrix`."""
    high = scales.float().abs().view(torch.int32) >> 20  # exponent, three bits of mantissa
    return (high - _SCALE_OFFSET).clamp_(0, 255).to(torch.uint8)


def _from_scale_bytes(scales: Tensor) -> Tensor:
    """The e4m3 scales of such bytes."""
    high = torch.where(scales > 0, scales.int() + _SCALE_OFFSET, 0)
    return (high << 20).view(torch.float32).to(torch.float8_e4m3fn)
