"""Matrix descriptors of ``wgmma`` and ``tcgen05.mma``: where in shared memory a tile's bytes are.

A tile is made of pieces of 8 rows of as many bytes as the swizzle is wide. Within a piece, the
place of 16 bytes is xored with the row's number; as pieces begin where their size divides, that is
done with bits of the address.
"""

from dataclasses import dataclass

import numpy as np

from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.formats import Array

_WIDTHS_90 = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes, by the field at bit 62
_WIDTHS_100 = {0: 16, 2: 128, 4: 64, 6: 32}  # by the field at bit 61


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Bytes: where the tile begins, the steps between pieces, and the width of a row of a piece."""

    start: int
    leading: int
    stride: int
    width: int

    @classmethod
    def of_wgmma(cls, bits: int) -> "Descriptor":
        """What sm_90 reads in 64 bits."""
        return cls._read(bits, _WIDTHS_90[bits >> 62])

    @classmethod
    def of_tcgen05(cls, bits: int) -> "Descriptor":
        """What sm_100 reads in 64 bits."""
        if (bits >> 46) & 7 != 1 or (bits >> 52) & 1:
            raise NotModelled(f"the matrix descriptor {bits:#x}")
        if (width := _WIDTHS_100.get(bits >> 61)) is None:
            raise NotModelled(f"the swizzle of the matrix descriptor {bits:#x}")
        return cls._read(bits, width)

    @classmethod
    def _read(cls, bits: int, width: int) -> "Descriptor":
        if (bits >> 49) & 7:
            raise NotModelled(f"the base offset of the matrix descriptor {bits:#x}")
        start, leading, stride = ((bits >> at & 0x3FFF) << 4 for at in (0, 16, 32))
        return cls(start, leading, stride, width)

    def places(self, rows: int, size: int, *, is_transposed: bool) -> Array:
        """Addresses [rows, 32 / size] of numbers of `size` bytes: 32 bytes along k.

        `is_transposed`: what lies next to each other in memory are rows, not k.
        """
        row, k = np.arange(rows)[:, None], np.arange(32 // size)[None, :]
        if is_transposed:
            return self._swizzled(self._transposed(row, k, size))
        if self.width == 16:  # pieces of 8 rows of 16 bytes, one after the other along k
            along = k * size
            inside = row % 8 * 16 + along % 16
            return np.asarray(
                self.start + row // 8 * self.stride + along // 16 * self.leading + inside
            )
        return self._swizzled(self.start + row // 8 * self.stride + row % 8 * self.width + k * size)

    def _transposed(self, row: Array, k: Array, size: int) -> Array:
        if self.width == 16:
            raise NotModelled("a transposed tile without swizzle")
        across = self.width // size
        piece = row // across * self.leading + k // 8 * self.stride
        return np.asarray(self.start + piece + k % 8 * self.width + row % across * size)

    def _swizzled(self, at: Array) -> Array:
        mask = self.width // 16 - 1
        return np.asarray(at ^ ((at >> 7 & mask) << 4))
