"""Is this draft good enough? Log-probabilities against the policy's thresholds.

A log-probability that is not a number passes nothing: a model that overflowed vouches for no token.
"""

import math
from collections.abc import Sequence

from hybrid.types import RefineParams, Verdict


def evaluate_draft(
    logprobs: Sequence[float], params: RefineParams, failed_checks: tuple[str, ...] = ()
) -> Verdict:
    """The verdict on a draft with these token log-probabilities.

    An empty draft never passes, nor one that has failed a check or has a score that is no number.
    """
    if not logprobs:
        reason = "the draft is empty"
        return Verdict(False, params.scorer, 0.0, 0.0, reason, failed_checks=failed_checks)
    not_numbers = sum(map(math.isnan, logprobs))
    if not_numbers:
        reason = f"{not_numbers} of {len(logprobs)} log-probabilities are not numbers"
        return Verdict(
            False, params.scorer, math.nan, math.nan, reason, tuple(logprobs), failed_checks
        )
    mean, least = sum(logprobs) / len(logprobs), min(logprobs)
    failed = [
        f"{name} log-probability {value:.2f} below {threshold:g}"
        for name, value, threshold in (
            ("mean", mean, params.min_mean_logprob),
            ("least", least, params.min_token_logprob),
        )
        if threshold is not None and value < threshold
    ]
    failed += [f"check failed: {name}" for name in failed_checks]
    passed = f"mean log-probability {mean:.2f}, least {least:.2f}"
    reason = "; ".join(failed) or passed
    return Verdict(not failed, params.scorer, mean, least, reason, tuple(logprobs), failed_checks)
