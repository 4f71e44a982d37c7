"""Whose turn it is: of those who wait for a scarce thing, whoever has the least time goes first.

Far deadlines all count as `PATIENCE_S` from now, so that whoever has waited that long is overtaken
by nobody: no stream of urgent requests starves a patient one.
"""

import heapq
import time
from itertools import count
from threading import Condition

from hybrid.deadline import Deadline

PATIENCE_S = 1.0
_POLL_S = 0.05
_numbers = count()
Urgency = tuple[float, int]  # a time, and a number that tells equals apart: the first to ask


def urgency(deadline: Deadline) -> Urgency:
    """What to sort by, for somebody who asks now: the most urgent first."""
    return min(deadline.expires_at, time.monotonic() + PATIENCE_S), next(_numbers)


class Turns:
    """`at_once` may hold a turn at the same time."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: list[Urgency] = []
        self._changed = Condition()

    @property
    def waiting(self) -> int:
        """How many are in line."""
        with self._changed:
            return len(self._waiting)

    def take(self, deadline: Deadline, is_needed: bool) -> bool:
        """Wait for a turn; False once the deadline has passed, unless it `is_needed` even then.

        Raises Cancelled once the caller has gone away.
        """
        mine = urgency(deadline)
        with self._changed:
            heapq.heappush(self._waiting, mine)
            try:
                while is_needed or not deadline.expired:
                    if self._free and self._waiting[0] == mine:
                        self._free -= 1
                        return True
                    deadline.raise_if_cancelled()
                    wait_s = _POLL_S if is_needed else min(_POLL_S, deadline.remaining_s)
                    self._changed.wait(max(0.001, wait_s))
                return False
            finally:
                self._waiting.remove(mine)
                heapq.heapify(self._waiting)
                self._changed.notify_all()  # another is first in line now

    def give_back(self) -> None:
        """The turn is over."""
        with self._changed:
            self._free += 1
            self._changed.notify_all()
