"""Global memory of a launch: its tensors, with gaps between, and which CTA touched what.

CTAs run in no order, so that a place which one writes no other may write or read. Owners are kept
for every byte and compared a word at a time.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hybrid.kernels.gate.emulate.faults import Fault
from hybrid.kernels.gate.emulate.formats import Array

_BASE, _GAP = 0x7F00_0000_0000, 512
_NOBODY, _SEVERAL = -1, -2


class GlobalMemory:
    """Holds copies of uint8 arrays; `addresses` are where they begin."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.addresses, end = [], _GAP
        for array in arrays:
            self.addresses.append(_BASE + end)
            end += -(-(array.size + _GAP) // 256) * 256
        self._data, self._allocated = np.zeros(end, np.uint8), np.zeros(end, np.uint8)
        self._writer = np.full(end, _NOBODY, np.int16)
        self._reader = np.full(end, _NOBODY, np.int16)
        self.report: Callable[[str], None] = lambda what: None
        for address, array in zip(self.addresses, arrays, strict=True):
            self._data[address - _BASE :][: array.size] = array
            self._allocated[address - _BASE :][: array.size] = 255

    def contents(self, index: int, size: int) -> Array:
        """The bytes of an array as they are now."""
        return self._data[self.addresses[index] - _BASE :][:size]

    def load(self, addresses: Array, ctas: Array, size: int, count: int) -> list[Array]:
        """`count` words of `size` bytes from addresses [n], for CTAs [n]."""
        at = self._places(addresses, size, count)
        words = []
        for i in range(count):
            words.append(self._data.view(f"u{size}")[at + i])
            self._note_read(at + i, ctas, size)
        return words

    def store(self, addresses: Array, ctas: Array, words: Sequence[Array]) -> None:
        """Write words [n] next to each other at addresses [n], for CTAs [n]."""
        size = words[0].dtype.itemsize
        at = self._places(addresses, size, len(words))
        data = self._data.view(words[0].dtype)
        for i, word in enumerate(words):
            self._note_write(at + i, ctas, size)
            data[at + i] = word
            if (data[at + i] != word).any():
                self.report("threads store different values to one place at once")

    def _places(self, addresses: Array, size: int, count: int) -> Array:
        at = addresses - _BASE
        if (at % (size * count)).any():
            raise Fault(f"an address in global memory that {size * count} does not divide")
        if (at < 0).any() or (at + size * count > len(self._data)).any():
            raise Fault("an address outside every tensor")
        at //= size
        allocated, full = self._allocated.view(f"u{size}"), 2 ** (8 * size) - 1
        for i in range(count):
            if (allocated[at + i] != full).any():
                raise Fault("an address outside every tensor")
        return at

    def _note_read(self, at: Array, ctas: Array, size: int) -> None:
        if size == 8:
            self._note_read(2 * at, ctas, 4)
            self._note_read(2 * at + 1, ctas, 4)
            return
        writers = _words(self._writer, size)[at]
        mine = _patterns(ctas, size)
        nobody = _pattern(_NOBODY, size)
        if ((writers != nobody) & (writers != mine)).any() and self._has_other(at, ctas, size):
            self.report("a CTA reads what another wrote")
        readers = _words(self._reader, size)
        before = readers[at]
        readers[at] = np.where(
            (before == nobody) | (before == mine), mine, _pattern(_SEVERAL, size)
        )
        together = readers[at] != mine
        if together.any():
            readers[at[together]] = _pattern(_SEVERAL, size)

    def _note_write(self, at: Array, ctas: Array, size: int) -> None:
        if size == 8:
            self._note_write(2 * at, ctas, 4)
            self._note_write(2 * at + 1, ctas, 4)
            return
        mine, nobody = _patterns(ctas, size), _pattern(_NOBODY, size)
        writers, readers = _words(self._writer, size), _words(self._reader, size)
        if ((readers[at] != nobody) & (readers[at] != mine)).any() and self._has_other(
            at, ctas, size, self._reader
        ):
            self.report("a CTA writes what another reads")
        if ((writers[at] != nobody) & (writers[at] != mine)).any() and self._has_other(
            at, ctas, size
        ):
            self.report("two CTAs write one place")
        writers[at] = mine
        if (writers[at] != mine).any():
            self.report("two CTAs write one place")

    def _has_other(self, at: Array, ctas: Array, size: int, owners: Array | None = None) -> bool:
        """Whether a byte of these words belongs to another CTA: words may be owned in parts."""
        owners = self._writer if owners is None else owners
        bytes_of = owners[at[:, None] * size + np.arange(size)]
        return bool(((bytes_of != _NOBODY) & (bytes_of != ctas[:, None].astype(np.int16))).any())


def _words(owners: Array, size: int) -> Array:
    """Owners of whole words of up to four bytes as one number each."""
    return owners.view({1: np.int16, 2: np.int32, 4: np.int64}[size])


def _pattern(owner: int, size: int) -> int:
    repeated = np.full(size, owner, np.int16).view({1: np.int16, 2: np.int32, 4: np.int64}[size])
    return int(repeated[0])


def _patterns(ctas: Array, size: int) -> Array:
    wide = np.repeat(ctas.astype(np.int16)[:, None], size, axis=1)
    return np.ascontiguousarray(wide).view({1: np.int16, 2: np.int32, 4: np.int64}[size])[:, 0]
