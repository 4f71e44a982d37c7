"""How much slower the machine is just now than it usually is: one factor, which hits all plans.

The estimate follows recent requests and decays within seconds towards the long-run average. A
single request, however slow, does not move it: errors pass a median of three first. Times are
seconds of any clock that does not go back.
"""

import math
from collections import deque
from statistics import median

_SHARE, _LONG_RUN_SHARE = 0.45, 0.02  # of an error that the two averages take
_MAX_LOG = 3.0  # a factor of 20
_DECAY_S = 10.0


class SlowdownEstimator:
    """Follows the factor from request to request; 1.0 until two have shown another."""

    def __init__(self, now: float) -> None:
        self._log_now, self._log_long_run, self._seen_at = 0.0, 0.0, now
        self._latest = deque([0.0, 0.0, 0.0], maxlen=3)

    def at(self, now: float) -> float:
        """The factor; what was seen counts less the longer ago it was."""
        return math.exp(self._log_at(now))

    def follow(self, error: float, now: float) -> None:
        """`error`: logarithm of what a request took over what one like it usually takes."""
        self._latest.append(min(max(error, -_MAX_LOG), _MAX_LOG))
        error = median(self._latest)
        before = self._log_at(now)
        self._log_now = before + _SHARE * (error - before)
        self._log_long_run += _LONG_RUN_SHARE * (error - self._log_long_run)
        self._seen_at = now

    def _log_at(self, now: float) -> float:
        lasts = math.exp(-max(0.0, now - self._seen_at) / _DECAY_S)
        return self._log_long_run + (self._log_now - self._log_long_run) * lasts
