"""Which threads run next: those at the lowest address, while the others wait where they are."""

from dataclasses import dataclass

import numpy as np

from hybrid.kernels.gate.emulate.faults import Fault
from hybrid.kernels.gate.emulate.formats import Array

Mask = Array | None  # None: every thread


@dataclass(frozen=True, slots=True)
class Jump:
    """These threads go on at another instruction; `target` None: they have ended."""

    target: int | None
    threads: Mask


@dataclass(frozen=True, slots=True)
class Wait:
    """These threads try the instruction again when others have gone as far as they can."""

    threads: Array


class Flow:
    """Where all threads of a run are."""

    def __init__(self, live: Array) -> None:
        self._elsewhere: dict[int, Array] = {}
        self._waiting: dict[int, Array] = {}
        self._everyone = np.ones_like(live)
        self._live = live
        self._moved = self._running = True
        self.pc = 0
        self.mask: Mask = None if live.all() else live

    def advance(self) -> bool:
        """Whether there is an instruction to run; catches up with threads that are behind."""
        if not self._running:
            if not self._elsewhere:
                if not self._waiting:
                    return False
                if not self._moved:
                    raise Fault("threads wait for what never happens")
                self._moved, self._elsewhere, self._waiting = False, self._waiting, {}
            self.pc = min(self._elsewhere)
            self._set(self._elsewhere.pop(self.pc))
        while self._elsewhere and (least := min(self._elsewhere)) <= self.pc:
            others = self._elsewhere.pop(least)
            if least < self.pc:
                self._send(self.pc, self.active)
                self.pc = least
                self._set(others)
            else:
                self._set(self.active | others)
        return True

    def step(self) -> None:
        """The instruction is done: on to the next."""
        self.pc += 1
        self._moved = True

    def follow(self, outcome: Jump | Wait) -> None:
        """Go on after a jump, an end or a wait of some of the threads."""
        active = self.active
        threads = active if outcome.threads is None else outcome.threads
        rest = active & ~threads
        if isinstance(outcome, Wait):
            before = self._waiting.get(self.pc)
            self._waiting[self.pc] = threads if before is None else before | threads
            self._moved |= bool(rest.any())
        else:
            self._moved = True
            if outcome.target is not None:
                if not rest.any():
                    self.pc = outcome.target
                    return
                self._send(outcome.target, threads)
        self.pc += 1
        self._running = bool(rest.any())
        if self._running:
            self._set(rest)

    @property
    def active(self) -> Array:
        """The threads that run now."""
        return self._everyone if self.mask is None else self.mask

    def _send(self, pc: int, threads: Array) -> None:
        before = self._elsewhere.get(pc)
        self._elsewhere[pc] = threads if before is None else before | threads

    def _set(self, threads: Array) -> None:
        self.mask = None if threads.all() else threads
        self._running = True
