"""NVFP4: 4-bit weights with two scales, as the published checkpoints store them.

A value is ``e2m1(code) * e4m3(weight_scale) * weight_scale_2``: a 4-bit float (sign, two exponent
bits, one mantissa bit), one 8-bit scale for every 16 consecutive columns, and one float32 scale a
matrix. Two codes share a byte, the even column in the low nibble; scales are row-major [N, K/16].
The e2m1 x e4m3 product has at most six significant bits, so it is exact in bfloat16.

Two conventions are published and differ only in the last factor: ModelOpt *multiplies* by
``weight_scale_2 = amax / (6 * 448)``; compressed-tensors *divides* by ``weight_global_scale``, its
reciprocal. Everything here speaks ModelOpt's.

Source: NVIDIA Model-Optimizer and vllm-project/compressed-tensors, checkpoint headers.
"""

import torch
from torch import Tensor

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
    """Quantise matrices [..., N, K] to (packed, weight_scale, weight_scale_2).

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
