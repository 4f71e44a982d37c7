"""Numbers of 16, 8 and 4 bits, and float32 without subnormals: bits to float32 and back."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
E2M1_VALUES: Array = np.concatenate([_E2M1, -_E2M1])
_SMALLEST_NORMAL = np.float32(2.0**-126)


def _e4m3_values() -> Array:
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    normal = (1 + mantissa / 8) * np.exp2(exponent - 7.0)
    values = np.where(exponent == 0, mantissa * 2.0**-9, normal).astype(np.float32)
    values[127] = np.nan
    return np.concatenate([values, -values])


E4M3_VALUES: Array = _e4m3_values()


def bfloat16_to_float(bits: Array) -> Array:
    """float32 of bfloat16 bits, uint16."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_bfloat16(values: Array) -> Array:
    """uint16 bits of the nearest bfloat16, ties to even; NaN becomes 0x7FFF as on a GPU.

    float64 is rounded once: first to odd at float32's precision, which keeps what decides a tie.
    """
    narrow = values.astype(np.float32)
    bits = narrow.view(np.uint32).astype(np.uint64)
    if values.dtype == np.float64:
        exact = narrow.astype(np.float64) == values
        too_large = np.abs(narrow.astype(np.float64)) > np.abs(values)
        towards_zero = bits - (too_large & ~exact)
        bits = np.where(exact | ~np.isfinite(narrow), bits, towards_zero | np.uint64(1))
    lowest = (bits >> np.uint64(16)) & np.uint64(1)
    rounded = ((bits + np.uint64(0x7FFF) + lowest) >> np.uint64(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def half_to_float(bits: Array) -> Array:
    """float32 of float16 bits, uint16."""
    return bits.view(np.float16).astype(np.float32)


def float_to_half(values: Array) -> Array:
    """uint16 bits of the nearest float16."""
    return values.astype(np.float16).view(np.uint16)


def e4m3_to_float(codes: Array) -> Array:
    """float32 of e4m3 codes."""
    return np.asarray(E4M3_VALUES[codes & 0xFF])


def float_to_e4m3(values: Array) -> Array:
    """uint8 codes of the nearest e4m3 number, ties to even, saturating at 448; NaN stays NaN."""
    size = np.minimum(np.abs(values.astype(np.float64)), 448.0)
    finite = E4M3_VALUES[:127].astype(np.float64)
    above = np.clip(np.searchsorted(finite, size), 1, 126)
    down, up = size - finite[above - 1], finite[above] - size
    take_lower = (down < up) | ((down == up) & (above % 2 == 1))
    code = np.where(take_lower, above - 1, above)
    code = np.where(np.isnan(values), 127, code)
    return (code | np.where(np.signbit(values), 128, 0)).astype(np.uint8)


def flush(values: Array) -> Array:
    """Subnormal float32 numbers as zeros of their sign."""
    tiny = np.abs(values) < _SMALLEST_NORMAL
    return np.where(tiny, np.copysign(np.float32(0), values), values)


def halves(words: Array) -> Array:
    """uint16 [..., 2] of 32-bit words [...], the low half first."""
    return np.ascontiguousarray(words, np.uint32)[..., None].view(np.uint16)
