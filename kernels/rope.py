"""Rotary position embedding, rotate-half convention: dimension i turns with i + D/2.

The proportional kind turns only the first share of the pairs, yet divides its exponents by the
whole head dimension; the other pairs have frequency zero, that is cosine one and sine zero.
"""

import torch
from torch import Tensor


def frequencies_torch(head_dim: int, theta: float, rotary_fraction: float) -> Tensor:
    """Radians a position for each pair, float32 [head_dim / 2]."""
    turning = int(rotary_fraction * head_dim // 2)
    exponents = torch.arange(0, 2 * turning, 2, dtype=torch.float32) / head_dim
    still = torch.zeros(head_dim // 2 - turning)
    return torch.cat((1.0 / theta**exponents, still))


def rotation_torch(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [..., D] of each position, float32, as `rotate_torch` takes them."""
    angles = positions[..., None].float() * frequencies
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)


def rotate_torch(x: Tensor, cosine: Tensor, signed_sine: Tensor) -> Tensor:
    """``x`` [..., D] rotated: ``x * cos + swap(x) * signed_sin``, swap exchanging the halves."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cosine, swapped, signed_sine)
