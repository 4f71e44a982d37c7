"""Asynchronous instructions in groups, as threads commit and wait for them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import Array


@dataclass(slots=True)
class _Pending:
    """What threads [n] have asked for, each in its group; `finish` ends it for some of them."""

    threads: Array
    groups: Array
    finish: Callable[[Array], None]


class Groups:
    """Every thread counts its groups; what is asked for ends as late as the waits allow."""

    def __init__(self, total: int) -> None:
        self._committed = np.zeros(total, np.int64)
        self._pending: list[_Pending] = []

    def add(self, threads: Array, finish: Callable[[Array], None]) -> None:
        """`finish` gets the places, among `threads` [n], of those that have waited."""
        self._pending.append(_Pending(threads, self._committed[threads], finish))

    def commit(self, mask: Mask) -> None:
        """What these threads ask for from now on is in another group."""
        self._committed += 1 if mask is None else mask

    def wait(self, mask: Mask, keep: int) -> None:
        """These threads wait until at most `keep` of their committed groups are left."""
        left = []
        for pending in self._pending:
            ends = pending.groups < self._committed[pending.threads] - keep
            if mask is not None:
                ends &= mask[pending.threads]
            if ends.any():
                pending.finish(np.flatnonzero(ends))
                if ends.all():
                    continue
                rest = ~ends
                places = np.flatnonzero(rest)
                finish = _of_some(pending.finish, places)
                pending = _Pending(pending.threads[rest], pending.groups[rest], finish)
            left.append(pending)
        self._pending = left


def _of_some(finish: Callable[[Array], None], places: Array) -> Callable[[Array], None]:
    return lambda chosen: finish(places[chosen])
