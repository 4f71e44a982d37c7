"""How many CPU threads a model works with: a small one takes one, and a core to itself.

An operation of a few microseconds gains nothing from a second thread and waits for it at its end.
With another program on one of two cores, the embedded pair was a hundred times slower with two
threads than with one.

More models at work than cores are slower than as many: whoever is interrupted may hold the
interpreter's lock. On two cores, two batches of drafts and a refiner took five times as long for a
step as one alone. So each waits for a core, from one step or pass to the next.
"""

import os
from queue import SimpleQueue
from threading import Lock, local
from typing import Self

import torch

from hybrid.gemma.config import GemmaConfig

SMALL_HIDDEN_SIZE = 512


def free_cores(count: int) -> SimpleQueue[None]:
    """So many cores, to take from the queue and put back.

    Unlike a semaphore's, its calls cannot be interrupted with a lock held: Ctrl-C in the middle of
    one would leave every later request waiting.
    """
    cores: SimpleQueue[None] = SimpleQueue()
    for _ in range(count):
        cores.put(None)
    return cores


class Threads:
    """`with Threads.of(config):` around a model's step or pass, in any thread, nested or not."""

    _lock, _users, _before = Lock(), 0, 1
    _cores, _mine = free_cores(os.cpu_count() or 1), local()

    def __init__(self, is_limited: bool) -> None:
        self._is_limited = is_limited

    @classmethod
    def of(cls, config: GemmaConfig) -> Self:
        """The threads that a model of this geometry is fastest with."""
        return cls(config.hidden_size <= SMALL_HIDDEN_SIZE)

    def __enter__(self) -> None:
        if self._is_limited:
            depth = getattr(Threads._mine, "depth", 0)
            if depth == 0:
                Threads._cores.get()
            Threads._mine.depth = depth + 1
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
            if Threads._mine.depth == 0:
                Threads._cores.put(None)
