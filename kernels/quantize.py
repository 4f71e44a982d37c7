"""NVFP4 on the device: weights and activations to 4 bits and back.

A weight matrix gets one float32 scale from its own maximum (see nvfp4.py). That of an activation is
given, because it was calibrated. Two conventions are published: ModelOpt stores ``input_scale =
amax / (6 * 448)``, which multiplies; compressed-tensors stores the reciprocal,
``input_global_scale = 6 * 448 / amax``, which divides. Everything here takes ModelOpt's.
"""

import torch
from torch import Tensor

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
    return quantize_torch(weight)


def dequantize(packed: Tensor, weight_scale: Tensor, weight_scale_2: Tensor) -> Tensor:
    """The float32 matrices [..., N, K] that (packed, weight_scale, weight_scale_2) stand for.

    As `dequantize_torch`, bit for bit.
    """
    return dequantize_torch(packed, weight_scale, weight_scale_2)


def quantize_rows(x: Tensor, input_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise activations [T, K] to (packed uint8 [T, K/2], scales float8_e4m3fn [T, K/16]).

    A value is ``e2m1(code) * scale * input_scale``, ``input_scale`` float32 with one element, above
    zero. Blocks beyond ``6 * 448 * input_scale`` saturate. K must be a multiple of 16.
    """
    return quantize_rows_torch(x, input_scale)


def quantize_rows_torch(x: Tensor, input_scale: Tensor) -> tuple[Tensor, Tensor]:
    """As `quantize_rows`, bit for bit."""
    if x.shape[-1] % BLOCK:
        raise ValueError(f"NVFP4 needs a multiple of {BLOCK} columns, not {x.shape[-1]}")
    blocks = x.float().reshape(len(x), -1, BLOCK)
    wanted = blocks.abs().amax(-1) / E2M1_MAX / input_scale
    scales = wanted.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    step = (scales.float() * input_scale)[..., None]
    codes = encode_e2m1_torch(torch.where(step > 0, blocks / step, 0.0))
    return pack_torch(codes.flatten(-2)), scales
