"""A clock with a budget, and the durations people write ("500ms", "2s").

A deadline is polled between denoising steps and between tokens, never waited on: whoever works
under one keeps its best answer so far at hand. Cancelling is the same poll with another outcome.
"""

import math
import re
import time
from dataclasses import dataclass, field
from threading import Event

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


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock (`expires_at`, seconds; infinite if there is no budget)."""

    expires_at: float = math.inf
    cancelled: Event = field(default_factory=Event, repr=False, compare=False)

    @classmethod
    def after(
        cls,
        budget_s: float | None,
        started: float | None = None,
        cancelled: Event | None = None,
    ) -> "Deadline":
        """The deadline `budget_s` seconds after `started` (now), or one that never comes.

        Setting `cancelled` makes the next `raise_if_cancelled` under this deadline raise.
        """
        if started is None:
            started = time.monotonic()
        expires_at = math.inf if budget_s is None else started + budget_s
        return cls(expires_at, cancelled or Event())

    @property
    def remaining_s(self) -> float:
        """Seconds left, negative once it has passed."""
        return self.expires_at - time.monotonic()

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
