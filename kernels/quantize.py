"""NVFP4 on the device: weights and activations to 4 bits and back.

A weight matrix gets one float32 scale from its own maximum (see nvfp4.py), and so does every row of
activations. Checkpoints bring one scale for all rows instead, calibrated beforehand; a row's own
never saturates, needs no calibration and costs a second look at numbers that are in registers.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from hybrid.kernels.launch import launch, uses_triton
from hybrid.kernels.nvfp4 import (
    BLOCK,
    E2M1_MAX,
    E4M3_MAX,
    TILE_COLUMNS,
    decode,
    dequantize_torch,
    encode_e2m1_torch,
    pack_torch,
    quantize_torch,
)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize matrices [..., N, K] to (packed, weight_scale, weight_scale_2).

    As `quantize_torch`, bit for bit.
    """
    if not uses_triton(weight):
        return quantize_torch(weight)
    _check_columns(weight)
    largest = torch.maximum(weight.amax((-2, -1)), -weight.amin((-2, -1))).float()
    # By a tensor: torch multiplies by the reciprocal of a number on CUDA, which rounds otherwise.
    range_size = torch.full((), E2M1_MAX * E4M3_MAX, device=weight.device)
    weight_scale_2 = torch.where(largest > 0, largest / range_size, 1.0)
    packed, weight_scale = _quantize_blocks(weight, weight_scale_2)
    return packed, weight_scale, weight_scale_2


def dequantize(packed: Tensor, weight_scale: Tensor, weight_scale_2: Tensor) -> Tensor:
    """The float32 matrices [..., N, K] that (packed, weight_scale, weight_scale_2) stand for.

    As `dequantize_torch`, bit for bit.
    """
    if not uses_triton(packed):
        return dequantize_torch(packed, weight_scale, weight_scale_2)
    from hybrid.kernels.device.quantize import dequantize_blocks

    blocks = weight_scale.numel()
    shape = (*packed.shape[:-1], 2 * packed.shape[-1])
    output = torch.empty(shape, dtype=torch.float32, device=packed.device)
    launch(
        dequantize_blocks,
        (-(-blocks // _BLOCKS),),
        packed.contiguous(),
        weight_scale.contiguous().view(torch.uint8),
        weight_scale_2.contiguous(),
        output,
        BLOCKS=blocks,
        BLOCKS_PER_FACTOR=blocks // weight_scale_2.numel(),
        BLOCK_B=_BLOCKS,
    )
    return output


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize activations [T, K] row by row to (packed, scales, factors).

    Shapes and dtypes: uint8 [T, K'/2], float8_e4m3fn [T, K'/16], float32 [T]; K', with zeros behind
    K, is K rounded up to whole tiles of `TILE_COLUMNS`. A value is ``e2m1(code) * scale * factor``.
    K must be a multiple of 16.
    """
    if not uses_triton(x):
        return quantize_rows_torch(x)
    _check_columns(x)
    from hybrid.kernels.device.quantize import quantize_row

    (tokens, columns), padded = x.shape, -(-x.shape[1] // TILE_COLUMNS) * TILE_COLUMNS
    packed = torch.empty(tokens, padded // 2, dtype=torch.uint8, device=x.device)
    scales = torch.empty(tokens, padded // BLOCK, dtype=torch.float8_e4m3fn, device=x.device)
    factors = torch.empty(tokens, dtype=torch.float32, device=x.device)
    launch(
        quantize_row,
        (tokens,),
        x.contiguous(),
        packed,
        scales.view(torch.uint8),
        factors,
        K=columns,
        PADDED=padded,
        BLOCK_B=1 << (padded // BLOCK - 1).bit_length(),
        num_warps=4 if columns > 1024 else 1,
    )
    return packed, scales, factors


def quantize_rows_torch(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `quantize_rows`, bit for bit."""
    _check_columns(x)
    values = pad(x.float(), (0, -x.shape[1] % TILE_COLUMNS))
    largest = values.abs().amax(-1)
    # Rows of next to nothing count as zero: their factor would be no normal float32.
    factors = torch.where(largest > _LEAST_LARGEST, largest / (E2M1_MAX * E4M3_MAX), 1.0)
    blocks = values.reshape(len(x), -1, BLOCK)
    scales = (blocks.abs().amax(-1) / E2M1_MAX / factors[:, None]).to(torch.float8_e4m3fn)
    step = (scales.float() * factors[:, None])[..., None]
    codes = encode_e2m1_torch(torch.where(step > 0, blocks / step, 0.0))
    return pack_torch(codes.flatten(-2)), scales, factors


def round_rows_torch(x: Tensor) -> Tensor:
    """Activations [T, K] as four bits hold them, in their dtype."""
    return decode(*quantize_rows_torch(x), x.dtype)[:, : x.shape[1]]


_LEAST_LARGEST = 2.0**-100
_BLOCKS = 256  # blocks of 16 values that one program works on


def _quantize_blocks(x: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of ``x`` [..., K], equal shares of which belong to each of the factors."""
    from hybrid.kernels.device.quantize import quantize_blocks

    blocks = x.numel() // BLOCK
    *rows, columns = x.shape
    packed = torch.empty(*rows, columns // 2, dtype=torch.uint8, device=x.device)
    scales = torch.empty(*rows, columns // BLOCK, dtype=torch.float8_e4m3fn, device=x.device)
    launch(
        quantize_blocks,
        (-(-blocks // _BLOCKS),),
        x.contiguous(),
        factors.contiguous(),
        packed,
        scales.view(torch.uint8),
        BLOCKS=blocks,
        BLOCKS_PER_FACTOR=blocks // factors.numel(),
        BLOCK_B=_BLOCKS,
    )
    return packed, scales


def _check_columns(x: Tensor) -> None:
    if x.shape[-1] % BLOCK:
        raise ValueError(f"NVFP4 needs a multiple of {BLOCK} columns, not {x.shape[-1]}")
