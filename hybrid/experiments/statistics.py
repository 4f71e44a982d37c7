"""Statistics of paired answers: intervals, tests, and how many items are enough.

A pair is one item under two policies. All requests of an item (seeds, repeats, pooled policies) are
one cluster everywhere here: repeats of an item add nothing about other items. scipy does the tests.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
_DRAWS = 2000
_LEAST_S = 1e-9  # of a request, where a clock said none
DISCORDANCE = 0.15  # share of answers on which two policies disagree, before anything is known
Interval = tuple[float, float]
Values = Sequence[float] | NDArray[np.float64]


def proportion_interval(right: int, count: int) -> Interval:
    """Wilson's interval of a share; (0, 1) where nothing was counted."""
    from scipy.stats import binomtest

    if not count:
        return 0.0, 1.0
    found = binomtest(right, count).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def share_interval(items: Sequence[object], scores: Values) -> Interval:
    """Of the mean of scores from 0 to 1; `items` names the item of each.

    Wilson's where every item has one score of 0 or 1. Otherwise the interval of Agresti and Coull
    (1998) for clusters: z^2 items are added, half of them with full scores and half with none. It
    stays sensible where nearly all scores agree, where a bootstrap has too little to draw from.
    """
    given = np.asarray(scores, dtype=np.float64)
    rows = _rows(given, items)
    count = len(rows)
    if not count:
        return 0.0, 1.0
    if count == len(given) and np.isin(given, (0, 1)).all():
        return proportion_interval(round(count * given.mean()), count)
    sums, sizes = np.nansum(rows, 1), np.isfinite(rows).sum(1)
    usual = sizes.mean()
    added = _z() ** 2
    share = (sums.sum() + added / 2 * usual) / (sizes.sum() + added * usual)
    errors = ((sums - share * sizes) / usual) ** 2
    spread = errors.sum() + added / 2 * ((1 - share) ** 2 + share**2)
    half = _z() * math.sqrt(spread) / (count + added)
    return max(0.0, float(share - half)), min(1.0, float(share + half))


def difference_interval(gained: Values) -> Interval:
    """Of the mean of paired differences from -1 to 1, one an item.

    The adjusted Wald interval of Bonett and Price (2012): one item that was gained and one that was
    lost are added. It has a width where no pair differs, and covers 95 % where few do.
    """
    values = np.asarray(gained, dtype=np.float64)
    count = len(values) + 2
    mean = float(values.sum() / count)
    variance = (float((values**2).sum()) + 2) / count - mean**2
    half = _z() * math.sqrt(variance / count)
    return max(-1.0, mean - half), min(1.0, mean + half)


def _z() -> float:
    """The normal quantile of the level."""
    return NormalDist().inv_cdf(0.5 + LEVEL / 2)


def bootstrap_mean(values: Values, items: Sequence[object] | None = None) -> Interval:
    """Percentile bootstrap of the mean; the same for the same values.

    Values of one item, where `items` names them, are drawn together.
    """
    rows = _rows(values, items)
    sums, counts = np.nansum(rows, 1), np.isfinite(rows).sum(1)
    return _bootstrap(len(rows), lambda drawn: sums[drawn].sum(1) / counts[drawn].sum(1))


def bootstrap_quantile(
    values: Values, share: float, items: Sequence[object] | None = None
) -> Interval:
    """Percentile bootstrap of a quantile; items are drawn as in `bootstrap_mean`."""
    rows = _rows(values, items)
    return _bootstrap(len(rows), lambda drawn: _quantile(rows[drawn], share))


def bootstrap_quantile_ratio(
    values: Values, others: Values, share: float, items: Sequence[object]
) -> Interval:
    """Percentile bootstrap of a quantile over the same quantile of paired values."""
    rows, other_rows = _rows(values, items), _rows(others, items)
    return _bootstrap(
        len(rows),
        lambda drawn: _quantile(rows[drawn], share) / _quantile(other_rows[drawn], share),
    )


def _rows(values: Values, items: Sequence[object] | None) -> NDArray[np.float64]:
    """Values [items, most values of one], in order of appearance and filled with nan."""
    given = np.asarray(values, dtype=np.float64)
    if items is None:
        return given[:, None]
    found: dict[object, list[float]] = {}
    for item, value in zip(items, given, strict=True):
        found.setdefault(item, []).append(float(value))
    rows = np.full((len(found), max(map(len, found.values()), default=1)), np.nan)
    for row, own in zip(rows, found.values(), strict=True):
        row[: len(own)] = own
    return rows


def _quantile(drawn: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """A quantile of each draw [draws, items, most values of one]."""
    flat = drawn.reshape(len(drawn), -1)
    quantile = np.nanquantile if np.isnan(flat).any() else np.quantile  # the first is far slower
    return np.asarray(quantile(flat, share, axis=1))


def _bootstrap(
    count: int, statistic: Callable[[NDArray[np.intp]], NDArray[np.float64]]
) -> Interval:
    """The interval of a statistic of the numbers of items [draws, items] that were drawn."""
    if not count:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(0, count, (_DRAWS, count))
    low, high = np.quantile(statistic(drawn), (0.5 - LEVEL / 2, 0.5 + LEVEL / 2))
    return float(low), float(high)


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
    order = sorted(range(count), key=lambda index: p_values[index])
    corrected, most = [0.0] * count, 0.0
    for rank, index in enumerate(order):
        most = max(most, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = most
    return corrected


def items_needed(difference: float, discordance: float = DISCORDANCE, power: float = 0.8) -> int:
    """Pairs needed to see a difference in accuracy (Connor 1987, for McNemar's test)."""
    from scipy.stats import norm

    if not 0 < difference <= discordance <= 1:
        raise ValueError(f"0 < difference {difference} <= discordance {discordance} <= 1")
    by_level, by_power = float(norm.ppf(0.5 + LEVEL / 2)), float(norm.ppf(power))
    spread = by_level * math.sqrt(discordance)
    spread += by_power * math.sqrt(discordance - difference**2)
    return math.ceil((spread / difference) ** 2)


def detectable_difference(pairs: int, discordance: float = DISCORDANCE) -> float:
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
    """One policy against the baseline; `pairs` counts the items that both answered.

    `speedup` is the geometric mean over items of the baseline's seconds over this policy's;
    `median_speedup` is the ratio of the two medians. They differ where few items take most time.
    """

    pairs: int
    difference: float
    difference_interval: Interval
    fixes: int
    harms: int
    p_accuracy: float
    speedup: float
    speedup_interval: Interval
    median_speedup: float
    median_speedup_interval: Interval
    p_latency: float


def compare(
    items: Sequence[object],
    scores: Values,
    seconds: Values,
    base_scores: Values,
    base_seconds: Values,
) -> Comparison:
    """Accuracy by McNemar's test, latency by signed ranks, over requests named by `items`.

    An item's requests are one pair, by their means. An item is fixed if it became right more often.
    """
    gained = mean_by(items, np.asarray(scores) - np.asarray(base_scores))
    right, was_right = np.asarray(scores) >= 1, np.asarray(base_scores) >= 1
    changed = mean_by(items, right.astype(float) - was_right)
    fixes, harms = int((changed > 0).sum()), int((changed < 0).sum())
    own, base = (np.maximum(given, _LEAST_S) for given in (seconds, base_seconds))
    logs = mean_by(items, np.log(base / own))
    low, high = bootstrap_mean(logs)
    return Comparison(
        pairs=len(gained),
        difference=float(gained.mean()),
        difference_interval=difference_interval(gained),
        fixes=fixes,
        harms=harms,
        p_accuracy=mcnemar(fixes, harms),
        speedup=float(np.exp(logs.mean())),
        speedup_interval=(math.exp(low), math.exp(high)),
        median_speedup=float(np.median(base) / np.median(own)),
        median_speedup_interval=bootstrap_quantile_ratio(base, own, 0.5, items),
        p_latency=wilcoxon(logs, np.zeros_like(logs)),
    )
