"""Shared memory of the CTAs that run together, and who may touch what of it when.

Every access is held to PTX's rules: what one thread writes another may read after a barrier both
have passed, threads of a warp also after `bar.warp.sync`; nobody may touch what a copy is on its
way to, or write what an asynchronous product still reads. Times are counts of executed
instructions. They are kept for granules as wide as the kernel's narrowest access.
"""

from typing import TYPE_CHECKING

import numpy as np

from hybrid.kernels.gate.emulate.faults import Fault
from hybrid.kernels.gate.emulate.formats import Array

if TYPE_CHECKING:
    from hybrid.kernels.gate.emulate.machine import Machine

SHARED_BASE = 1024  # where it begins: the alignment that swizzled tiles need
_NEVER = -1
_THREAD_BITS = 20
_WARP_BITS = 12
_ATOMIC = (1 << _THREAD_BITS) - 1  # in place of a thread's number


class SharedMemory:
    """`size` bytes a CTA; flat places number the bytes of all CTAs through."""

    def __init__(self, machine: "Machine", size: int, granule: int) -> None:
        self._machine, self._end, self._granule = machine, SHARED_BASE + size, granule
        self._stride = -(-self._end // 1024) * 1024
        total = machine.ctas * self._stride
        self.bytes, self._valid = np.zeros(total, np.uint8), np.zeros(total, np.uint8)
        granules = total // granule
        self._written = np.full(granules, _NEVER, np.int64)  # time and thread
        self._read = np.full(granules, _NEVER, np.int64)  # time and warp of the last
        self._read_by_another = np.full(granules, _NEVER, np.int64)  # time, of another warp
        self._landing = np.zeros(granules, bool)
        self._reading = np.zeros(granules, np.int16)
        self._needs_fence = np.full(granules, _NEVER, np.int64)
        self._cta_barrier = np.zeros(machine.ctas, np.int64)
        self._warp_barrier = np.zeros(machine.total // 32, np.int64)
        self._proxy_fence = np.zeros(machine.ctas, np.int64)

    def clear(self) -> None:
        """Nothing is written, read or on its way."""
        self._valid[...] = 0
        for times in (self._written, self._read, self._read_by_another, self._needs_fence):
            times[...] = _NEVER
        self._landing[...] = False
        self._reading[...] = 0
        for barriers in (self._cta_barrier, self._warp_barrier, self._proxy_fence):
            barriers[...] = self._machine.executed

    # --- barriers -----------------------------------------------------------------------------

    def pass_barrier(self, ctas: Array) -> None:
        """All threads of these CTAs have met."""
        self._cta_barrier[ctas] = self._machine.executed
        warps = self._machine.threads // 32
        self._warp_barrier.reshape(-1, warps)[ctas] = self._machine.executed

    def last_barrier(self, ctas: Array) -> Array:
        """When the CTAs' threads last met."""
        return np.asarray(self._cta_barrier[ctas])

    def pass_warp_barrier(self, warps: Array) -> None:
        """All threads of these warps have met."""
        self._warp_barrier[warps] = self._machine.executed

    def fence_proxy(self, ctas: Array) -> None:
        """What was written before is visible to asynchronous products."""
        self._proxy_fence[ctas] = self._machine.executed

    # --- access by threads --------------------------------------------------------------------

    def places(self, addresses: Array, ctas: Array, width: int) -> Array:
        """Flat places of addresses that are in bounds and aligned to `width` bytes."""
        if (addresses % width).any():
            raise Fault(f"an address in shared memory that {width} does not divide")
        if (addresses < SHARED_BASE).any() or (addresses + width > self._end).any():
            raise Fault("an address outside shared memory")
        return np.asarray(addresses + ctas * self._stride)

    def flat(self, addresses: Array, cta: int) -> Array:
        """Flat places of one CTA's addresses."""
        return addresses + cta * self._stride

    def load(self, at: Array, threads: Array, size: int, count: int) -> tuple[list[Array], Array]:
        """`count` words of `size` bytes from places [n], and where they are undefined [n]."""
        self.note_read(self._granules(at, size * count), threads)
        kind = np.dtype(f"u{size}")
        data, valid = self.bytes.view(kind), self._valid.view(kind)
        words, full = [], np.iinfo(kind).max
        undefined = np.zeros(len(at), bool)
        for i in range(count):
            where = at // size + i
            words.append(data[where])
            undefined |= valid[where] != full
        return words, undefined

    def store(self, at: Array, threads: Array, words: list[Array], undefined: Array | None) -> None:
        """Write words [n] next to each other at places [n]."""
        size = words[0].dtype.itemsize
        granules = self._granules(at, size * len(words))
        self.note_write(granules, threads)
        self._needs_fence[granules] = self._machine.executed
        self.put(at, words, undefined)
        for i, word in enumerate(words):
            if (self.bytes.view(word.dtype)[at // size + i] != word).any():
                self._machine.hazard("threads store different values to one place at once")

    def put(self, at: Array, words: list[Array], undefined: Array | None) -> None:
        """Write without looking at who else does."""
        size = words[0].dtype.itemsize
        full = np.iinfo(words[0].dtype).max
        for i, word in enumerate(words):
            where = at // size + i
            self.bytes.view(word.dtype)[where] = word
            valid = full if undefined is None else np.where(undefined, 0, full)
            self._valid.view(word.dtype)[where] = valid

    def rows(self, at: Array, warps: Array) -> tuple[Array, Array]:
        """uint16 [n, 8] of rows of 16 bytes at places [n], read by warps [n]; and undefined."""
        self.note_read(self._granules(at, 16), warps * 32, is_whole_warp=True)
        where = at[:, None] // 2 + np.arange(8)
        undefined = self._valid.view(np.uint16)[where] != 0xFFFF
        return self.bytes.view(np.uint16)[where], undefined

    def store_rows(self, at: Array, warps: Array, values: Array, undefined: Array) -> None:
        """Write uint16 [n, 8] as rows of 16 bytes at places [n]."""
        granules = self._granules(at, 16)
        self.note_write(granules, warps * 32)
        self._needs_fence[granules] = self._machine.executed
        where = at[:, None] // 2 + np.arange(8)
        self.bytes.view(np.uint16)[where] = values
        self._valid.view(np.uint16)[where] = np.where(undefined, 0, 0xFFFF)

    def add(self, at: Array, values: Array) -> Array:
        """Atomically add uint32 [n] at places [n], in order; what was there before each."""
        self._note_atomic(self._granules(at, 4))
        data, before = self.bytes.view(np.uint32), np.zeros_like(values)
        if not (self._valid.view(np.uint32)[at // 4] == 0xFFFFFFFF).all():
            self._machine.hazard("an undefined value is added to")
        for i, place in enumerate(at // 4):
            before[i] = data[place]
            data[place] += values[i]
        return before

    # --- access by copies and products --------------------------------------------------------

    def begin_copy(self, at: Array, threads: Array, width: int) -> None:
        """A copy to these places is on its way."""
        granules = self._granules(at, width)
        self.note_write(granules, threads)
        self._landing[granules] = True

    def end_copy(self, at: Array, threads: Array, words: list[Array]) -> None:
        """It has landed, for the thread that waited for it."""
        granules = self._granules(at, words[0].dtype.itemsize * len(words))
        self._landing[granules] = False
        self._written[granules] = self._stamp(threads)[:, None]
        self.put(at, words, None)

    def read_tile(self, at: Array, thread: int) -> tuple[Array, Array, Array]:
        """Bytes at places [...] for a product that `thread` issues, whether each is undefined,
        and the granules, which `end_read` gives back.
        """
        if (at % self._stride < SHARED_BASE).any() or (at % self._stride >= self._end).any():
            raise Fault("a matrix outside shared memory")
        granules = np.unique(at // self._granule)
        cta = int(at.flat[0]) // self._stride
        threads = np.full(1, thread)
        self.note_read(granules[None, :], threads, is_whole_warp=True)
        if (self._needs_fence[granules] > self._proxy_fence[cta]).any():
            self._machine.hazard("a product reads what threads wrote, without fence.proxy.async")
        self._reading[granules] += 1
        return self.bytes[at], self._valid[at] != 255, granules

    def end_read(self, granules: Array) -> None:
        """The product that read these is over."""
        self._reading[granules] -= 1

    # --- who may ------------------------------------------------------------------------------

    def note_read(self, granules: Array, threads: Array, *, is_whole_warp: bool = False) -> None:
        """Granules [n, k] are read by threads [n], or by the whole warps that these begin."""
        if self._landing[granules].any():
            self._machine.hazard("shared memory is read while a copy to it is on its way")
        written = self._written[granules]
        if (written > _NEVER).any():
            time, writer = written >> _THREAD_BITS, written & _ATOMIC
            same = writer // 32 == (threads // 32)[:, None]
            limit = np.where(same, *self._limits(threads))
            strangers = True if is_whole_warp else writer != threads[:, None]
            if ((time > limit) & (time >= 0) & strangers).any():
                self._machine.hazard("shared memory is read without a barrier after a write")
        warps = (threads // 32)[:, None]
        stamp = self._machine.executed << _WARP_BITS | warps
        before = self._read[granules]
        by_another = (before & ((1 << _WARP_BITS) - 1)) != warps
        kept = self._read_by_another[granules]
        self._read_by_another[granules] = np.where(by_another, before >> _WARP_BITS, kept)
        self._read[granules] = stamp
        together = self._read[granules] != stamp
        if together.any():
            self._read_by_another[granules[together]] = self._machine.executed

    def note_write(self, granules: Array, threads: Array) -> None:
        """Granules [n, k] are written by threads [n]."""
        self._check_write(granules, threads, self._written[granules])
        self._written[granules] = self._stamp(threads)[:, None]

    def _note_atomic(self, granules: Array) -> None:
        threads = np.full(len(granules), _ATOMIC)
        written = self._written[granules]
        was_atomic = (written & _ATOMIC) == _ATOMIC
        self._check_write(granules, threads, np.where(was_atomic, _NEVER, written))
        self._written[granules] = self._stamp(threads)[:, None]

    def _check_write(self, granules: Array, threads: Array, written: Array) -> None:
        if self._landing[granules].any():
            self._machine.hazard("shared memory is written while a copy to it is on its way")
        if self._reading[granules].any():
            self._machine.hazard("shared memory is written while a product may still read it")
        in_warp, in_cta = self._limits_of(granules, threads)
        writer, warps = written & _ATOMIC, (threads // 32)[:, None]
        limit = np.where(writer // 32 == warps, in_warp, in_cta)
        if ((written >> _THREAD_BITS > limit) & (writer != threads[:, None])).any():
            self._machine.hazard("shared memory is written twice without a barrier")
        last = self._read[granules]
        by_another = (last & ((1 << _WARP_BITS) - 1)) != warps
        read = np.where(by_another, last >> _WARP_BITS, self._read_by_another[granules])
        if (read > in_cta).any():
            self._machine.hazard("shared memory is written while another warp may still read it")

    def _limits(self, threads: Array) -> tuple[Array, Array]:
        ctas = threads // self._machine.threads
        return self._warp_barrier[threads // 32][:, None], self._cta_barrier[ctas][:, None]

    def _limits_of(self, granules: Array, threads: Array) -> tuple[Array, Array]:
        """Times of the last barriers; threads of atomics are none, so by the granules' CTAs."""
        if threads[0] != _ATOMIC:
            return self._limits(threads)
        in_cta = self._cta_barrier[granules * self._granule // self._stride]
        return in_cta, in_cta

    def _stamp(self, threads: Array) -> Array:
        return self._machine.executed << _THREAD_BITS | threads

    def _granules(self, at: Array, width: int) -> Array:
        count = max(1, width // self._granule)
        return at[:, None] // self._granule + np.arange(count)
