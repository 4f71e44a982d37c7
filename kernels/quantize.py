"""NVFP4 on the device: weights and activations to 4 bits and back.

A weight matrix gets one float32 scale from its own maximum (see nvfp4.py). That of an activation is
given, because it was calibrated. Two conventions are published: ModelOpt stores ``input_scale =
amax / (6 * 448)``, which multiplies; compressed-tensors stores the reciprocal,
``input_global_scale = 6 * 448 / amax``, which divides. Everything here takes ModelOpt's.
"""

import torch
from torch import Tensor

from hybrid.kernels.launch import launch, uses_triton
from hybrid.kernels.nvfp4 import (
    BLOCK,
    E2M1_MAX,
    E4M3_MAX,
    dequantize_torch,
    encode_e2m1_torch,
    pack_torch,
    quantize_torch,
)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise matrices [..., N, K] to (packed, weight_scale, weight_scale_2).

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


def quantize_rows(x: Tensor, input_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise activations [T, K] to (packed uint8 [T, K/2], scales float8_e4m3fn [T, K/16]).

    A value is ``e2m1(code) * scale * input_scale``, ``input_scale`` float32 with one element, above
    zero. Blocks beyond ``6 * 448 * input_scale`` saturate. K must be a multiple of 16.
    """
    if not uses_triton(x):
        return quantize_rows_torch(x, input_scale)
    _check_columns(x)
    return _quantize_blocks(x, input_scale)


def quantize_rows_torch(x: Tensor, input_scale: Tensor) -> tuple[Tensor, Tensor]:
    """As `quantize_rows`, bit for bit."""
    _check_columns(x)
    blocks = x.float().reshape(len(x), -1, BLOCK)
    wanted = blocks.abs().amax(-1) / E2M1_MAX / input_scale
    scales = wanted.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    step = (scales.float() * input_scale)[..., None]
    codes = encode_e2m1_torch(torch.where(step > 0, blocks / step, 0.0))
    return pack_torch(codes.flatten(-2)), scales


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
