"""Random numbers from counters: the same key gives the same number, on any device, in any batch.

A 32-bit integer is mixed by two multiplications and three shifts (Wellons' "lowbias32", bias 0.17
by his measure), which a GPU kernel repeats exactly. A row's key comes from (seed, canvas, step,
purpose), a position's from the row's and the position, an element's from the position's and the
vocabulary id. All of it is arithmetic modulo 2**32 on int32 tensors, so shifts must be masked.
"""

from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid.kernels.launch import launch, uses_triton

GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads consecutive counters over the range
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B
_MASK = 0xFFFFFFFF
TOKENS, SAMPLE = 0, 1  # purposes of a draw: random tokens, and samples of distributions
STEP = 2.0**-23  # of the uniform: its numbers are midpoints of steps, exact in float32


def mix(value: int) -> int:
    """The mixed 32-bit value of a Python integer below 2**32."""
    value ^= value >> 16
    value = value * _FIRST & _MASK
    value ^= value >> 15
    value = value * _SECOND & _MASK
    return value ^ value >> 16


def mix_torch(values: Tensor) -> Tensor:
    """`mix` of every element of an int32 tensor, in place.

    On a CPU numpy does it, which has unsigned words: 20 instead of 44 us (32 x 919, one core).
    """
    if values.device.type == "cpu" and not torch.compiler.is_exporting():
        mix_words(values.numpy().view(np.uint32))
        return values
    shifted = torch.empty_like(values)
    for shift, factor in ((16, _FIRST), (15, _SECOND), (16, 1)):
        torch.bitwise_right_shift(values, shift, out=shifted)
        values ^= shifted.bitwise_and_(_MASK >> shift)
        if factor != 1:
            values *= signed(factor)
    return values


def mix_words(words: NDArray[np.uint32]) -> None:
    """`mix` of every element, in place."""
    words ^= words >> np.uint32(16)
    words *= np.uint32(_FIRST)
    words ^= words >> np.uint32(15)
    words *= np.uint32(_SECOND)
    words ^= words >> np.uint32(16)


def row_key(seed: int, canvas: int, step: int, purpose: int) -> int:
    """The key of one row's draw; `seed` may have 64 bits."""
    key = _canvas_key(seed, canvas)
    for part in (step, purpose):
        key = mix(key ^ (part * GOLDEN & _MASK))
    return key


@lru_cache(maxsize=4096)
def _canvas_key(seed: int, canvas: int) -> int:
    """What the keys of all steps of a canvas begin with."""
    key = mix((seed & _MASK) ^ GOLDEN)
    for part in (seed >> 32 & _MASK, canvas):
        key = mix(key ^ (part * GOLDEN & _MASK))
    return key


def draw_keys(seeds: Tensor, canvas: Tensor, step: Tensor, purpose: int, positions: int) -> Tensor:
    """int32 [R, C] keys of `positions` positions in the rows of a draw: `row_key`, then position.

    ``seeds`` int32 [R, 2] holds the low and the high word; ``canvas`` and ``step`` int32 [R].
    """
    if not uses_triton(seeds):
        return draw_keys_torch(seeds, canvas, step, purpose, positions)
    from hybrid.kernels.device.noise import row_positions

    keys = torch.empty(len(seeds), positions, device=seeds.device, dtype=torch.int32)
    launch(
        row_positions,
        (len(seeds),),
        seeds,
        canvas,
        step,
        keys,
        PURPOSE=purpose,
        POSITIONS=positions,
        BLOCK_C=1 << (positions - 1).bit_length(),
    )
    return keys


def draw_keys_torch(
    seeds: Tensor, canvas: Tensor, step: Tensor, purpose: int, positions: int
) -> Tensor:
    """As `draw_keys`."""
    keys = mix_torch(seeds[:, 0] ^ signed(GOLDEN))
    for part in (seeds[:, 1], canvas, step, torch.full_like(step, purpose)):
        keys = mix_torch(keys ^ part * signed(GOLDEN))
    return position_keys_torch(keys, positions)


def position_keys_torch(row_keys: Tensor, positions: int) -> Tensor:
    """int32 [R, C] keys of `positions` positions in rows with int32 keys [R]."""
    return mix_torch(row_keys[:, None] ^ _counters(positions, row_keys.device))


def random_tokens(keys: Tensor, vocabulary: int) -> Tensor:
    """Uniform token ids, int32 of the keys' shape: the high word of ``key * vocabulary``."""
    if not uses_triton(keys):
        return random_tokens_torch(keys, vocabulary)
    from hybrid.kernels.device.noise import tokens_of

    tokens, count = torch.empty_like(keys), keys.numel()
    block = 256
    launch(tokens_of, (-(-count // block),), keys, tokens, count=count, V=vocabulary, BLOCK_N=block)
    return tokens


def random_tokens_torch(keys: Tensor, vocabulary: int) -> Tensor:
    """As `random_tokens`."""
    return ((keys.long() & _MASK) * vocabulary >> 32).int()


def exponential_torch(keys: Tensor, vocabulary: int) -> Tensor:
    """Standard exponential noise, float32 [..., V], for every vocabulary id under int32 keys [...].

    ``-log(u)`` with u uniform on the midpoints of 2**23 steps. One bit more would round the highest
    u to 1, and its noise to zero. So the noise lies between 5.9e-8 and 16.7.
    """
    bits = mix_torch(keys[..., None] ^ _counters(vocabulary, keys.device))
    steps = bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float()
    return steps.mul_(STEP).add_(STEP / 2).log_().neg_()


def gumbel_torch(keys: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, ``-log`` of `exponential_torch`: between -2.82 and 16.7."""
    return exponential_torch(keys, vocabulary).log_().neg_()


@cache
def _counters(count: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(count, device=device, dtype=torch.int32) * signed(GOLDEN)


def signed(word: int) -> int:
    """The low 32 bits of a number as an int32."""
    word &= _MASK
    return word - 2**32 if word >= 2**31 else word
