"""A clock with a budget, and the durations people write ("500ms", "2s").

Whoever works under a deadline asks it between denoising steps and between tokens, and keeps the
best answer so far at hand. Whoever only waits is called when the request is cancelled.
"""

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import TIMEOUT_MAX, Event, Lock

from hybrid.errors import Cancelled, RequestError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)", re.ASCII)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str, field_name: str = "budget") -> float:
    """Seconds in a duration with a unit; raises RequestError for anything else, and for zero."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not seconds > 0 or math.isinf(seconds):
        raise RequestError(field_name, text, "write a duration above zero with a unit: 500ms, 2s")
    return seconds


def format_duration(seconds: float) -> str:
    """A duration as people write it: '38 ms', '1.25 s'."""
    return f"{seconds * 1e3:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


class CancelFlag:
    """Set once, from any thread, when the caller has gone away."""

    def __init__(self) -> None:
        self._event, self._lock = Event(), Lock()
        self._callbacks: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Whether the caller has gone away."""
        return self._event.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the caller has gone away; False once `timeout_s` has passed."""
        return self._event.wait(timeout_s)

    def set(self) -> None:
        """Say that the caller has gone away, and call who waits for it."""
        with self._lock:
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    @contextmanager
    def calling(self, callback: Callable[[], object]) -> Iterator[None]:
        """Inside the block, `callback` is called once when the flag is set, at once if it is."""
        with self._lock:
            is_set = self._event.is_set()
            if not is_set:
                self._callbacks.append(callback)
        if is_set:
            callback()
        try:
            yield
        finally:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock (`expires_at`, seconds; infinite if there is no budget)."""

    expires_at: float = math.inf
    cancelled: CancelFlag = field(default_factory=CancelFlag, repr=False, compare=False)

    @classmethod
    def after(
        cls,
        budget_s: float | None,
        started: float | None = None,
        cancelled: CancelFlag | None = None,
    ) -> "Deadline":
        """The deadline `budget_s` seconds after `started` (now), or one that never comes.

        Setting `cancelled` makes the next `raise_if_cancelled` under this deadline raise.
        """
        if started is None:
            started = time.monotonic()
        expires_at = math.inf if budget_s is None else started + budget_s
        return cls(expires_at, cancelled or CancelFlag())

    @property
    def remaining_s(self) -> float:
        """Seconds left, negative once it has passed."""
        return self.expires_at - time.monotonic()

    @property
    def timeout_s(self) -> float | None:
        """Seconds left for a wait of the threading module, None without a budget."""
        if math.isinf(self.expires_at):
            return None
        return min(max(0.0, self.remaining_s), TIMEOUT_MAX)

    def earlier(self, seconds: float) -> "Deadline":
        """The same request's deadline, so many seconds earlier."""
        return Deadline(self.expires_at - seconds, self.cancelled)

    @property
    def expired(self) -> bool:
        """Whether the budget is spent."""
        return self.remaining_s <= 0

    def cancel(self) -> None:
        """The caller has gone away: stop at the next step."""
        self.cancelled.set()

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled if the caller has gone away."""
        if self.cancelled.is_set():
            raise Cancelled("cancelled by the caller")
