"""How many CPU threads a model works with: a small one takes one, and a core to itself.

An operation of a few microseconds gains nothing from a second thread and waits for it at its end.
With another program on one of two cores, the embedded pair was a hundred times slower with two
threads than with one.

More models at work than cores are slower than as many: whoever is interrupted may hold the
interpreter's lock. On two cores, two batches of drafts and a refiner took five times as long for a
step as one alone. So each waits for a core, from one step or pass to the next.
"""

from itertools import count
from queue import SimpleQueue
from threading import Lock, local
from typing import Self

import torch

from hybrid.cores import available_cores
from hybrid.gemma.config import GemmaConfig
from hybrid.priority import Priority, PriorityQueue
from hybrid.process_end import work_in_progress

SMALL_HIDDEN_SIZE = 512


class Cores:
    """So many cores, each with one thread at a time.

    A core that is given back goes to a thread in line, the urgent first, and cannot be taken again
    at once by the thread that had it: a refiner's passes kept a batch of drafts waiting for 45 ms.
    """

    def __init__(self, free: int) -> None:
        self._free, self._numbers = free, count()
        self._waiting: PriorityQueue[SimpleQueue[None]] = PriorityQueue()

    def take(self, is_urgent: bool) -> None:
        """Wait for a core."""
        with self._waiting.lock:
            if self._free:
                self._free -= 1
                return
            priority, given = Priority(not is_urgent, next(self._numbers)), SimpleQueue[None]()
            self._waiting.push(priority, given)
        try:
            given.get()
        except BaseException:  # Ctrl-C
            if not self._waiting.remove(priority):  # it has just been given one
                self.give_back()
            raise

    def give_back(self) -> None:
        """The core is for the next."""
        with self._waiting.lock:
            if self._waiting:
                self._waiting.pop().put(None)
            else:
                self._free += 1


class Threads:
    """`with Threads.of(config):` around a model's step or pass, in any thread, nested or not."""

    _lock, _users, _before = Lock(), 0, 1
    _cores, _mine = Cores(available_cores()), local()

    def __init__(self, is_limited: bool, is_urgent: bool = False) -> None:
        self._is_limited, self._is_urgent = is_limited, is_urgent

    @classmethod
    def of(cls, config: GemmaConfig, is_urgent: bool = False) -> Self:
        """The threads that a model of this geometry is fastest with."""
        return cls(config.hidden_size <= SMALL_HIDDEN_SIZE, is_urgent)

    def __enter__(self) -> None:
        depth = getattr(Threads._mine, "depth", 0)
        if depth == 0:
            work_in_progress.raise_if_ending()
            if self._is_limited:
                Threads._cores.take(self._is_urgent)
        Threads._mine.depth = depth + 1
        if self._is_limited:
            with Threads._lock:
                if Threads._users == 0:  # the setting is the whole process's, in part
                    Threads._before = torch.get_num_threads()
                Threads._users += 1
                torch.set_num_threads(1)

    def __exit__(self, *exception: object) -> None:
        if self._is_limited:
            with Threads._lock:
                Threads._users -= 1
                torch.set_num_threads(Threads._before)
        Threads._mine.depth -= 1
        if Threads._mine.depth == 0 and self._is_limited:
            Threads._cores.give_back()
