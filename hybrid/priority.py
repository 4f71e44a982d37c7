"""Deadline order: of those who wait for something scarce, whoever has the least time goes first.

Nobody starves: a far deadline counts as `MAX_PATIENCE_S` from now, so whoever has waited that long
is overtaken by nobody. The drafting engines' places, the refiners' slots and the processor's cores
are handed out with this queue.
"""

import heapq
import time
from itertools import count
from threading import Event, RLock
from typing import Generic, NamedTuple, TypeVar

from hybrid.deadline import Deadline

MAX_PATIENCE_S = 1.0
_numbers = count()
T = TypeVar("T")


class Priority(NamedTuple):
    """What waiting is sorted by: `due_at` on the monotonic clock, then the order of asking."""

    due_at: float
    number: int

    @classmethod
    def of(cls, deadline: Deadline) -> "Priority":
        """The priority of somebody who starts to wait now."""
        return cls(min(deadline.expires_at, time.monotonic() + MAX_PATIENCE_S), next(_numbers))

    @property
    def is_due(self) -> bool:
        """Whether the deadline has passed, or the wait has lasted `MAX_PATIENCE_S`."""
        return self.due_at <= time.monotonic()


class PriorityQueue(Generic[T]):
    """A heap of items by priority. Hold `lock` around whatever must happen in one piece."""

    def __init__(self) -> None:
        self.lock = RLock()
        self._heap: list[tuple[Priority, T]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, priority: Priority, item: T) -> None:
        """Let the item wait."""
        with self.lock:
            heapq.heappush(self._heap, (priority, item))

    @property
    def first(self) -> T:
        """The item whose turn is next; there must be one."""
        return self._heap[0][1]

    def pop(self) -> T:
        """Take out the item whose turn is next; there must be one."""
        with self.lock:
            return heapq.heappop(self._heap)[1]

    def remove(self, priority: Priority) -> bool:
        """Take out the item that waits with this priority; whether it was still there."""
        with self.lock:
            for index, (other, _) in enumerate(self._heap):
                if other == priority:
                    self._heap[index] = self._heap[-1]
                    self._heap.pop()
                    heapq.heapify(self._heap)
                    return True
            return False


class DeadlineSemaphore:
    """`slots` holders at a time. A slot that is released goes straight to the first who waits."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: PriorityQueue[Event] = PriorityQueue()

    @property
    def num_waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._waiting)

    def acquire(self, deadline: Deadline, past_deadline: bool = False) -> bool:
        """Wait for a slot; False once the deadline has passed, unless it waits `past_deadline`.

        Raises Cancelled once the caller has gone away.
        """
        deadline.raise_if_cancelled()
        if deadline.expired and not past_deadline:
            return False
        priority, granted = Priority.of(deadline), Event()
        with self._waiting.lock:
            if self._free:
                self._free -= 1
                return True
            self._waiting.push(priority, granted)
        try:
            with deadline.cancelled.calling(granted.set):
                granted.wait(None if past_deadline else deadline.timeout_s)
        except BaseException:  # Ctrl-C
            self._withdraw(priority)
            raise
        if not self._waiting.remove(priority):
            return True
        deadline.raise_if_cancelled()
        return False

    def release(self) -> None:
        """Give the slot back."""
        with self._waiting.lock:
            if self._waiting:
                self._waiting.pop().set()
            else:
                self._free += 1

    def _withdraw(self, priority: Priority) -> None:
        if not self._waiting.remove(priority):  # the slot has just been granted
            self.release()
