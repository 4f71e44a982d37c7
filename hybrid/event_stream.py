"""The events of one answer, made in a thread and read in another.

An object rather than a generator: it can be closed while somebody waits in `next`, which is how a
cancelled task in async code looks from here.
"""

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread

from hybrid.deadline import CancelFlag
from hybrid.types import Event, Finished

Answer = Callable[[Callable[[Event], None], CancelFlag], object]
Item = Event | BaseException


class EventStream(Iterator[Event]):
    """Runs `answer(emit, cancelled)`; yields what it emits, ends after `Finished` or its error."""

    def __init__(self, answer: Answer) -> None:
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._cancelled = CancelFlag()
        self._ended = False
        arguments = answer, self._items, self._cancelled
        self._worker = Thread(target=_work, args=arguments, name="hybrid-stream", daemon=True)
        self._worker.start()

    def __next__(self) -> Event:
        """The next event, waiting for it; raises what stopped the work."""
        if self._ended:
            raise StopIteration
        try:
            item = self._items.get()
        except BaseException:  # Ctrl-C while waiting: nobody will read on
            self.close()
            raise
        self._ended = not isinstance(item, Event) or isinstance(item, Finished)
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Cancel the work and wait until it has let go of the models."""
        self._ended = True
        self._cancelled.set()
        self._worker.join()

    def __del__(self) -> None:
        self._cancelled.set()


def _work(answer: Answer, items: SimpleQueue[Item], cancelled: CancelFlag) -> None:
    try:
        answer(items.put, cancelled)
    except BaseException as error:  # it belongs to whoever reads the stream
        items.put(error)
