"""Registers that asynchronous instructions still read, or are going to write."""

from collections.abc import Sequence
from dataclasses import dataclass

from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.parse import Register


@dataclass(slots=True)
class Lock:
    """A register that an asynchronous instruction still reads, or will write, by thread."""

    owner: str
    busy: Array
    written: Array | None

    def allows(self, name: str) -> bool:
        """Products of one warp group follow each other in order: they share accumulators."""
        return self.owner == "wgmma" and name == "wgmma"


class Locks:
    """Registers of asynchronous instructions in flight, by index."""

    def __init__(self) -> None:
        self.held: dict[int, Lock] = {}

    def clear(self) -> None:
        """Nothing is in flight."""
        self.held.clear()

    def take(
        self, registers: Sequence[Register], threads: Array, owner: str, *, writes: bool
    ) -> None:
        """An instruction of `owner` reads these registers of these threads, or `writes` them."""
        for register in registers:
            lock = self.held.get(register.index)
            busy = threads if lock is None else lock.busy | threads
            before = None if lock is None else lock.written
            written = before
            if writes:
                written = threads if before is None else before | threads
            self.held[register.index] = Lock(owner, busy, written)

    def release(self, registers: Sequence[Register], threads: Array) -> None:
        """What `threads` had in flight with these registers has ended."""
        for register in registers:
            lock = self.held.pop(register.index, None)
            if lock is None:
                continue
            busy = lock.busy & ~threads
            if busy.any():
                written = None if lock.written is None else lock.written & ~threads
                self.held[register.index] = Lock(lock.owner, busy, written)
