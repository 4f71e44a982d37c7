"""NVFP4 on both sides: matrices for tensor cores that multiply four bits by four bits themselves.

Blackwell's tensor cores take codes and e4m3 scales as they are stored, those of both operands, so
nothing is decoded. The price is accuracy: activations rounded to four bits are off by 9 % of their
size. The choice is made where a matrix gets its form: a product with a `NativeMatrix` rounds its
activations, however many rows there are, and a product with any other matrix does not.

The instructions want the two codes of a byte to be neighbouring columns. `PackedMatrix` has them
where decoding is cheap, so a matrix is brought from one form into the other when it is loaded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.kernels.launch import architecture, launch, multiprocessors
from hybrid.kernels.nvfp4 import (
    BLOCK,
    TILE_COLUMNS,
    TILE_ROWS,
    PackedMatrix,
    decode,
    tiles,
    unpack_matrix,
    untiled,
)
from hybrid.kernels.quantize import quantize_rows

# The B200, the B300 and the RTX 5090. Triton 3.6 and 3.7 do not compile native products for 121.
NATIVE_ARCHITECTURES = (100, 103, 120)


@dataclass(frozen=True, slots=True)
class NativeMatrix:
    """E matrices [rows, columns] in tiles of 128 rows and 64 columns, for `tl.dot_scaled`.

    ``codes`` uint8 [E, N/128, K/64, 128, 32], the even column in the low nibble; ``scales``
    float8_e4m3fn [E, N/128, K/64, 128, 4]; ``factors`` float32 [E, rows], which multiply what comes
    out. N and K are `rows` and `columns` rounded up to whole tiles, zero where the matrix ends.
    """

    codes: Tensor
    scales: Tensor
    factors: Tensor
    rows: int
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        return self.codes.nbytes + self.scales.nbytes + self.factors.nbytes


def native_matrix(matrix: PackedMatrix) -> NativeMatrix:
    """The same numbers, bit for bit."""
    packed, scales, factors = unpack_matrix(matrix)
    return NativeMatrix(
        codes=tiles(packed, TILE_COLUMNS // 2),
        scales=tiles(scales.view(torch.uint8), TILE_COLUMNS // BLOCK).view(torch.float8_e4m3fn),
        factors=factors,
        rows=matrix.rows,
        columns=matrix.columns,
    )


def unpack_native(matrix: NativeMatrix) -> tuple[Tensor, Tensor, Tensor]:
    """(packed, weight_scale, factors) as `unpack_matrix` gives them."""
    packed = untiled(matrix.codes)[:, : matrix.rows, : matrix.columns // 2]
    scales = untiled(matrix.scales.view(torch.uint8))[:, : matrix.rows, : matrix.columns // BLOCK]
    return packed.contiguous(), scales.contiguous().view(torch.float8_e4m3fn), matrix.factors


def dense_native(matrix: NativeMatrix, dtype: torch.dtype) -> Tensor:
    """The matrices [E, rows, columns] as numbers; computed in float32 at least, rounded once."""
    return decode(*unpack_native(matrix), dtype)


def linear_native(x: Tensor, weight: NativeMatrix, gated: bool) -> Tensor:
    """What `linear` or `linear_gated` gives of ``x`` bfloat16 [T, K], by kernels."""
    from hybrid.kernels.device.native import linear_native as kernel

    rounded = quantize_rows(x)
    # Smaller tiles for a canvas or two: 88 to 132 programs for the narrow matrices of a model.
    most_by_tile = ((16, 16), (32, 32), (64, 512))
    settings = _settings(x, next((tile for tile, most in most_by_tile if len(x) <= most), 128))
    output = torch.empty(
        len(x), weight.rows // 2 if gated else weight.rows, dtype=x.dtype, device=x.device
    )
    blocks = -(-len(x) // settings.block_m)
    launch(
        kernel,
        (blocks * -(-weight.rows // TILE_ROWS),),
        *_operands(rounded, weight),
        output,
        tokens=len(x),
        **_numbers(weight, settings),
        GATED=gated,
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
    )
    return output


def grouped_native(
    x: Tensor,
    weight: NativeMatrix,
    plan: tuple[Tensor, Tensor, Tensor],
    shares: Tensor | None,
    chosen: torch.Size,
    block_m: int,
) -> Tensor:
    """One of the two products of `experts`: gated [T * k, N / 2] of ``x`` [T, K] without shares,
    else weighted [T * k, N] of ``x`` [T * k, K]. `plan` is that of `experts`, for `block_m` rows.
    """
    from hybrid.kernels.device.native import grouped_native as kernel

    rounded = quantize_rows(x)
    settings = _settings(x, block_m)
    width = weight.rows // 2 if shares is None else weight.rows
    output = torch.empty(chosen.numel(), width, dtype=x.dtype, device=x.device)
    units = len(plan[0]) * -(-weight.rows // TILE_ROWS)
    launch(
        kernel,
        (min(units, multiprocessors(x.device) * settings.resident),),
        *_operands(rounded, weight),
        weight.factors if shares is None else shares,
        *plan,
        output,
        **_numbers(weight, settings),
        TOP_K=chosen[1],
        GATED=shares is None,
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
    )
    return output


def _operands(rounded: tuple[Tensor, Tensor, Tensor], weight: NativeMatrix) -> tuple[Tensor, ...]:
    """What both kernels begin with: activations and weights, each with scales and factors."""
    packed, scales, factors = rounded
    return (
        packed,
        scales.view(torch.int32),
        factors,
        weight.codes,
        weight.scales,
        weight.factors,
    )


@dataclass(frozen=True, slots=True)
class _Settings:
    """A program computes 128 weight rows times `block_m` tokens, `block_k` columns at a time.

    `resident` is how many programs a multiprocessor holds at a time.
    """

    block_m: int
    block_k: int
    num_warps: int
    num_stages: int
    resident: int


def _settings(x: Tensor, block_m: int) -> _Settings:
    """By registers: programs of four warps take up to 152 a thread for 32 tokens, 254 for 64.

    The B200's accumulators are beside them, 64 columns of 512 for up to 32 tokens, 128 for 64.
    """
    if architecture(x.device) // 10 == 10:
        if block_m == 128:
            return _Settings(128, 256, 8, 3, 1)
        return _Settings(block_m, 256, 4, 4, 3) if block_m < 64 else _Settings(64, 256, 4, 3, 2)
    if block_m == 128:
        return _Settings(128, 128, 8, 3, 1)
    return _Settings(block_m, 128, 4, 3, 4 if block_m < 64 else 2)


def _numbers(weight: NativeMatrix, settings: _Settings) -> dict[str, int]:
    return {
        "steps": -(-weight.columns // settings.block_k),
        "N": weight.rows,
        "K": weight.columns,
        "BLOCK_M": settings.block_m,
        "BLOCK_K": settings.block_k,
    }
