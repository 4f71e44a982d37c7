"""Who is let in: a request that cannot be answered in its budget is told so at once.

Requests in flight are served in the order of their deadlines, at a rate that is measured as they
leave. From both follows when a new one would be answered, and whether it would make others late.
"""

import time
from bisect import bisect, insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from hybrid.deadline import Deadline
from hybrid.errors import Overloaded

_SMOOTHING = 1 / 32  # weight of the latest interval
_PRIOR_WEIGHT = 3  # answers that the expectation counts as
_MAX_OUTLIER = 4.0  # an interval counts as at most so many times the average
_MIN_RETRY_S, _MAX_RETRY_S = 1e-3, 60.0
_TOLERANCE_S = 1e-6  # of rounding
_BUDGET_SHARE = 0.65  # of the budget that a prediction may take; the rest is for its error


class ServiceRate:
    """The seconds between two answers, by how many requests are in flight.

    The numbers in flight are grouped by powers of two. A group that has not been seen is expected
    to be as fast as the one below it, and up to `concurrency` requests to be served side by side.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = max(1, concurrency)
        self._interval_s: dict[int, float] = {}
        self._seen: dict[int, int] = {}

    def interval_s(self, in_flight: int, service_s: float) -> float:
        """Expected seconds between answers; one alone takes `service_s`."""
        side_by_side = min(in_flight, self._concurrency)
        for group in range(in_flight.bit_length(), 0, -1):
            if group in self._interval_s:
                seen_at = min(in_flight, 1 << group, self._concurrency)
                return self._interval_s[group] * seen_at / side_by_side
        return service_s / side_by_side

    def record(self, in_flight: int, interval_s: float, service_s: float) -> None:
        """An answer left so long after the one before, while so many were in flight.

        The first ones count more, against what was expected; an outlier, such as the first pass of
        a model, counts as a few times the average.
        """
        group = in_flight.bit_length()
        average = self.interval_s(in_flight, service_s)
        bounded = min(interval_s, _MAX_OUTLIER * average)
        seen = self._seen[group] = self._seen.get(group, 0) + 1
        weight = max(_SMOOTHING, 1 / (seen + _PRIOR_WEIGHT))
        self._interval_s[group] = average + weight * (bounded - average)


class Admission:
    """Counts the requests in flight, and refuses those that would be late or make others late."""

    def __init__(self, concurrency: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock, self._lock = ServiceRate(concurrency), clock, Lock()
        self._due_at: list[float] = []  # of the requests in flight, sorted
        self._last_at = clock()  # when the last answer left, or the first request came after it
        self._retry_at = clock()  # when whoever was refused last was told to come back

    @property
    def in_flight(self) -> int:
        """How many requests are being answered."""
        return len(self._due_at)

    def check(self, deadline: Deadline, service_s: float) -> None:
        """Raise Overloaded for a request that would be refused now."""
        with self._lock:
            self._check(deadline.expires_at, service_s)

    @contextmanager
    def admitted(self, deadline: Deadline, service_s: float) -> Iterator[None]:
        """In flight inside the block; raises Overloaded, with the wait, where it cannot be.

        `service_s` is the least that an answer of any kind takes alone.
        """
        due_at = deadline.expires_at
        with self._lock:
            self._check(due_at, service_s)
            if not self._due_at:
                self._last_at = self._clock()
            insort(self._due_at, due_at)
        try:
            yield
        finally:
            with self._lock:
                now, in_flight = self._clock(), len(self._due_at)
                self._rate.record(in_flight, now - self._last_at, service_s)
                self._last_at = now
                del self._due_at[bisect(self._due_at, due_at) - 1]

    def _check(self, due_at: float, service_s: float) -> None:
        """Raise Overloaded if this request would be late, or one behind it would be by it.

        Whoever is first in line is let in: nobody's wait makes it late.
        """
        now, position = self._clock(), bisect(self._due_at, due_at)
        answered_s = self._answered_s(position, service_s)
        late_s = answered_s - _BUDGET_SHARE * (due_at - now) if position else 0.0
        for index, other_due_at in enumerate(self._due_at[position:], position + 1):
            left_s = _BUDGET_SHARE * (other_due_at - now)
            if self._answered_s(index - 1, service_s) <= left_s + _TOLERANCE_S:  # not late yet
                late_s = max(late_s, self._answered_s(index, service_s) - left_s)
        if late_s > _TOLERANCE_S:
            retry_after_s = self._retry_after_s(now, late_s, service_s)
            raise Overloaded(answered_s - service_s, retry_after_s, len(self._due_at))

    def _retry_after_s(self, now: float, late_s: float, service_s: float) -> float:
        """When to come back: each later than the one before, so that not all come at once."""
        interval_s = self._rate.interval_s(len(self._due_at) + 1, service_s)
        self._retry_at = max(now + late_s, self._retry_at + interval_s)
        return min(max(self._retry_at - now, _MIN_RETRY_S), _MAX_RETRY_S)

    def _answered_s(self, position: int, service_s: float) -> float:
        """Seconds until the request at this position of the line, from 0, is answered."""
        interval_s = self._rate.interval_s(len(self._due_at) + 1, service_s)
        return max(service_s, (position + 1) * interval_s)
