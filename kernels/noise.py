"""Random numbers from counters: the same key gives the same number, on any device, in any batch.

A 32-bit integer is mixed by two multiplications and three shifts (Wellons' "lowbias32", bias 0.17
by his measure), which a GPU kernel repeats exactly. A row's key comes from (seed, canvas, step,
purpose), a position's from the row's and the position, an element's from the position's and the
vocabulary id. All of it is arithmetic modulo 2**32 on int32 tensors, so shifts must be masked.
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads consecutive counters over the range
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B
_MASK = 0xFFFFFFFF
_LEAST_UNIFORM = 2.0**-25  # half a step of the 24-bit uniform: keeps logarithms finite


def mix(value: int) -> int:
    """The mixed 32-bit value of a Python integer below 2**32."""
    value ^= value >> 16
    value = value * _FIRST & _MASK
    value ^= value >> 15
    value = value * _SECOND & _MASK
    return value ^ value >> 16


def mix_torch(values: Tensor) -> Tensor:
    """`mix` of every element of an int32 tensor, in place."""
    values ^= (values >> 16) & 0xFFFF
    values *= _signed(_FIRST)
    values ^= (values >> 15) & 0x1FFFF
    values *= _signed(_SECOND)
    values ^= (values >> 16) & 0xFFFF
    return values


def row_key(seed: int, canvas: int, step: int, purpose: int) -> int:
    """The key of one row's draw; `seed` may have 64 bits."""
    key = mix((seed & _MASK) ^ _GOLDEN)
    for part in (seed >> 32 & _MASK, canvas, step, purpose):
        key = mix(key ^ (part * _GOLDEN & _MASK))
    return key


def position_keys_torch(row_keys: Tensor, positions: int) -> Tensor:
    """int32 [R, C] keys of `positions` positions in rows with int32 keys [R]."""
    return mix_torch(row_keys[:, None] ^ _counters(positions, row_keys.device))


def random_tokens_torch(keys: Tensor, vocabulary: int) -> Tensor:
    """Uniform token ids, int64 of the keys' shape: the high word of ``key * vocabulary``."""
    return (keys.long() & _MASK) * vocabulary >> 32


def gumbel_torch(keys: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, float32 [..., V], for every vocabulary id under int32 keys [...].

    ``-log(-log(u))`` with u uniform on 24 bits, so the noise lies between -2.85 and 17.4.
    """
    bits = mix_torch(keys[..., None] ^ _counters(vocabulary, keys.device))
    uniform = ((bits >> 8) & 0xFFFFFF).float().mul_(2.0**-24).add_(_LEAST_UNIFORM)
    return uniform.log_().neg_().log_().neg_()


def _counters(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device, dtype=torch.int32) * _signed(_GOLDEN)


def _signed(value: int) -> int:
    """The int32 with the same bits."""
    return value - 2**32 if value >= 2**31 else value
