"""How much slower the machine is just now than it usually is: one factor, which hits all plans.

The pace now follows what was just seen and fades within seconds towards the pace at length. Times
are seconds of any clock that does not go back.
"""

import math

_FOLLOWED, _FOLLOWED_LONG = 0.45, 0.02  # share of an error that the pace now and at length takes
_MOST_LOG_PACE = 3.0
_LASTS_S = 10.0


class Pace:
    """Follows the machine's pace from request to request; 1.0 until one was seen."""

    def __init__(self, now: float) -> None:
        self._log_now, self._log_long, self._seen_at = 0.0, 0.0, now

    def at(self, now: float) -> float:
        """The factor; what was seen counts less the longer ago it was."""
        return math.exp(self._log_at(now))

    def follow(self, error: float, now: float) -> None:
        """`error`: logarithm of what a request took over what one like it usually takes."""
        error = min(max(error, -_MOST_LOG_PACE), _MOST_LOG_PACE)
        before = self._log_at(now)
        self._log_now = before + _FOLLOWED * (error - before)
        self._log_long += _FOLLOWED_LONG * (error - self._log_long)
        self._seen_at = now

    def _log_at(self, now: float) -> float:
        lasts = math.exp(-max(0.0, now - self._seen_at) / _LASTS_S)
        return self._log_long + (self._log_now - self._log_long) * lasts
