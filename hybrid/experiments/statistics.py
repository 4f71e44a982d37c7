"""What can be concluded from paired answers: intervals, tests, and how many items are enough.

scipy does the work; here are the choices. Policies answer the same prompts with the same seeds, so
differences are taken pair by pair; an item's seeds and repeats count as one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
_DRAWS = 2000
_DISCORDANCE = 0.15  # share of answers on which two policies disagree, before anything is known
Interval = tuple[float, float]
Values = Sequence[float] | NDArray[np.float64]


def proportion_interval(right: int, count: int) -> Interval:
    """Wilson's interval of a share; (0, 1) where nothing was counted."""
    from scipy.stats import binomtest

    if not count:
        return 0.0, 1.0
    found = binomtest(right, count).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def bootstrap_mean(values: Values) -> Interval:
    """Percentile bootstrap of the mean; the same for the same values."""
    return _bootstrap(values, np.mean)


def bootstrap_quantile(values: Values, share: float) -> Interval:
    """Percentile bootstrap of a quantile."""

    def at(sample: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return np.quantile(sample, share, axis=axis)

    return _bootstrap(values, at)


def _bootstrap(values: Values, statistic: object) -> Interval:
    from scipy.stats import bootstrap

    data = np.asarray(values, dtype=np.float64)
    if len(data) == 0:
        return math.nan, math.nan
    if data.min() == data.max():  # nothing varies, and scipy says so in a warning
        return float(data[0]), float(data[0])
    found = bootstrap(
        (data,),
        statistic,
        n_resamples=_DRAWS,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def mcnemar(fixes: int, harms: int) -> float:
    """The exact p-value that answers got better as often as worse (McNemar 1947, binomial form)."""
    from scipy.stats import binomtest

    changed = fixes + harms
    return float(binomtest(fixes, changed).pvalue) if changed else 1.0


def wilcoxon(first: Values, second: Values) -> float:
    """The p-value that paired latencies are the same (signed ranks, any distribution)."""
    from scipy.stats import wilcoxon as signed_ranks

    differences = np.asarray(first) - np.asarray(second)
    return 1.0 if not differences.any() else float(signed_ranks(differences).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): at most `level` of all families err."""
    count = len(p_values)
    order = sorted(range(count), key=lambda place: p_values[place])
    corrected, most = [0.0] * count, 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (count - rank) * p_values[place]))
        corrected[place] = most
    return corrected


def items_needed(difference: float, discordance: float = _DISCORDANCE, power: float = 0.8) -> int:
    """Pairs needed to see a difference in accuracy (Connor 1987, for McNemar's test)."""
    from scipy.stats import norm

    if not 0 < difference <= discordance <= 1:
        raise ValueError(f"0 < difference {difference} <= discordance {discordance} <= 1")
    by_level, by_power = float(norm.ppf(0.5 + LEVEL / 2)), float(norm.ppf(power))
    spread = by_level * math.sqrt(discordance)
    spread += by_power * math.sqrt(discordance - difference**2)
    return math.ceil((spread / difference) ** 2)


def detectable_difference(pairs: int, discordance: float = _DISCORDANCE) -> float:
    """The least difference in accuracy that so many pairs show; at most the discordance."""
    low, high = 1e-4, discordance
    if items_needed(high, discordance) > pairs:
        return discordance
    while high - low > 1e-4:
        middle = (low + high) / 2
        if items_needed(middle, discordance) > pairs:
            low = middle
        else:
            high = middle
    return high


def calibration_error(sure: Values, right: NDArray[np.bool_], bins: int) -> float:
    """Expected calibration error: how far certainty is from the share of right answers, 0 to 1.

    Over bins of equal counts, weighted by them (Naeini 2015); nan without answers.
    """
    certain = np.asarray(sure, dtype=np.float64)
    if not len(certain):
        return math.nan
    parts = np.array_split(np.argsort(certain, kind="stable"), min(bins, len(certain)))
    gaps = [len(part) * abs(certain[part].mean() - right[part].mean()) for part in parts]
    return float(sum(gaps) / len(certain))


def mean_by(names: Sequence[object], values: Values) -> NDArray[np.float64]:
    """The mean of the values that share a name, in the order in which names appear."""
    found: dict[object, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        found.setdefault(name, []).append(float(value))
    return np.array([sum(one) / len(one) for one in found.values()])


@dataclass(frozen=True, slots=True)
class Comparison:
    """One policy against the baseline, over the pairs that both answered."""

    pairs: int
    difference: float
    difference_interval: Interval
    fixes: int
    harms: int
    p_accuracy: float
    speedup: float
    speedup_interval: Interval
    p_latency: float


def compare(
    items: Sequence[object],
    scores: Values,
    seconds: Values,
    base_scores: Values,
    base_seconds: Values,
) -> Comparison:
    """Accuracy by McNemar, latency by signed ranks; the speedup is a geometric mean.

    Paired by request, named by `items`. An item's requests (seeds, repeats) are one pair, by their
    means: asking once more tells nothing about other items. An item is fixed if it became right
    more often.
    """
    gained = mean_by(items, np.asarray(scores) - np.asarray(base_scores))
    right, was_right = np.asarray(scores) >= 1, np.asarray(base_scores) >= 1
    changed = mean_by(items, right.astype(float) - was_right)
    fixes, harms = int((changed > 0).sum()), int((changed < 0).sum())
    logs = mean_by(items, np.log(np.asarray(base_seconds) / np.asarray(seconds)))
    low, high = bootstrap_mean(logs)
    return Comparison(
        pairs=len(gained),
        difference=float(gained.mean()),
        difference_interval=bootstrap_mean(gained),
        fixes=fixes,
        harms=harms,
        p_accuracy=mcnemar(fixes, harms),
        speedup=float(np.exp(logs.mean())),
        speedup_interval=(math.exp(low), math.exp(high)),
        p_latency=wilcoxon(logs, np.zeros_like(logs)),
    )
