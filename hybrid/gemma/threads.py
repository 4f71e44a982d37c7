"""How many CPU threads a model works with: a small one takes one.

An operation of a few microseconds gains nothing from a second thread and waits for it at its end.
With another program on one of two cores, the embedded pair was a hundred times slower with two
threads than with one.
"""

from threading import Lock
from typing import Self

import torch

from hybrid.gemma.config import GemmaConfig

SMALL_HIDDEN_SIZE = 512


class Threads:
    """`with Threads.of(config):` around a model's work, in any thread."""

    _lock, _users, _before = Lock(), 0, 1

    def __init__(self, is_limited: bool) -> None:
        self._is_limited = is_limited

    @classmethod
    def of(cls, config: GemmaConfig) -> Self:
        """The threads that a model of this geometry is fastest with."""
        return cls(config.hidden_size <= SMALL_HIDDEN_SIZE)

    def __enter__(self) -> None:
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
