"""Work that must be over before the interpreter ends.

Python ends daemon threads wherever they are, and one that is inside torch then aborts the process
(exit status 134). So the interpreter waits for work in progress, which is cancelled at its next
step or token.
"""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
from traceback import clear_frames

from hybrid.errors import Cancelled

_MAX_WAIT_S = 10.0  # for a step that takes longer, the process is not kept


class WorkInProgress:
    """Counts what is going on; `raise_if_ending` is asked wherever work can stop."""

    def __init__(self) -> None:
        self._changed, self._running = Condition(), 0
        self._is_registered = self._is_ending = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """The interpreter does not end inside the block."""
        with self._changed:
            if not self._is_registered:
                self._is_registered = True
                atexit.register(self._finish)
            self._running += 1
        try:
            yield
        except BaseException as error:
            if self._is_ending:  # tensors must not be freed later, by a thread that is ended then
                clear_frames(error.__traceback__)
            raise
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def raise_if_ending(self) -> None:
        """Raise Cancelled if the interpreter is ending."""
        if self._is_ending:
            raise Cancelled("the process is ending")

    def _finish(self) -> None:
        with self._changed:
            self._is_ending = True
            self._changed.wait_for(lambda: not self._running, _MAX_WAIT_S)


work_in_progress = WorkInProgress()
