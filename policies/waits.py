"""How long requests wait just now before they are served: for a row of a batch, or to be refined.

Waiting depends on who else is there, not on the plan or the machine. It is therefore estimated by
itself, added to a prediction, and no part of what is learned about plans.
"""

import math

from hybrid.policies.latency import Latency

MAX_WAIT_S = 60.0
_SHARE = 0.3  # of a difference that the averages take
_DECAY_S = 10.0
_DEVIATIONS = 2.0  # between the median and the 95th percentile


class WaitEstimator:
    """Averages of recent waits and of their deviations, which decay to zero within seconds."""

    def __init__(self, now: float) -> None:
        self._mean_s, self._deviation_s, self._seen_at = 0.0, 0.0, now

    def at(self, now: float) -> Latency:
        """The wait that a request has to expect."""
        lasts = math.exp(-max(0.0, now - self._seen_at) / _DECAY_S)
        mean_s, deviation_s = self._mean_s * lasts, self._deviation_s * lasts
        return Latency(mean_s, mean_s + _DEVIATIONS * deviation_s)

    def follow(self, wait_s: float, now: float) -> None:
        """A request has waited so long; anything but a time counts as none."""
        wait_s = min(wait_s, MAX_WAIT_S) if wait_s > 0 else 0.0
        lasts = math.exp(-max(0.0, now - self._seen_at) / _DECAY_S)
        before_s, deviation_s = self._mean_s * lasts, self._deviation_s * lasts
        self._mean_s = before_s + _SHARE * (wait_s - before_s)
        self._deviation_s = deviation_s + _SHARE * (abs(wait_s - before_s) - deviation_s)
        self._seen_at = now
