"""Statistics against scipy, published values and hand calculation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hybrid.experiments.statistics import (
    bootstrap_mean,
    bootstrap_quantile,
    bootstrap_quantile_ratio,
    calibration_error,
    compare,
    detectable_difference,
    difference_interval,
    holm,
    items_needed,
    mcnemar,
    proportion_interval,
    share_interval,
    wilcoxon,
)


def test_wilson_by_hand() -> None:
    """(p + z^2/2n +- z sqrt(p q / n + z^2/4n^2)) / (1 + z^2/n)."""
    n, p, z = 50, 0.8, stats.norm.ppf(0.975)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert proportion_interval(40, 50) == pytest.approx((middle - half, middle + half))
    assert proportion_interval(0, 0) == (0.0, 1.0)
    assert proportion_interval(50, 50)[1] == pytest.approx(1.0)


def test_mcnemar_by_hand() -> None:
    """Two-sided binomial: 1 of 10 changes is a harm, 2 (1 + 10) / 2^10."""
    assert mcnemar(9, 1) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 0) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_between_the_raw_and_bonferronis(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for raw, better in zip(p_values, corrected, strict=True):
        assert raw <= better <= min(1.0, raw * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= -1e-12).all()


def test_wilcoxon_is_scipys() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.gamma(2, 1, 40), rng.gamma(2.4, 1, 40)
    assert wilcoxon(first, second) == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert wilcoxon([1.0, 2.0], [1.0, 2.0]) == 1.0


def test_the_bootstrap_covers_what_it_should() -> None:
    """About 95 % of intervals for the mean of 60 exponential values hold the true mean."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(60):
        low, high = bootstrap_mean(rng.exponential(1.0, 60))
        held += low <= 1.0 <= high
    assert held >= 50
    assert bootstrap_mean([3.0, 3.0]) == (3.0, 3.0)
    assert all(math.isnan(bound) for bound in bootstrap_mean([]))
    low, high = bootstrap_quantile(rng.exponential(1.0, 400), 0.5)
    assert low < math.log(2) < high


def test_the_bootstrap_is_scipys() -> None:
    values = np.random.default_rng(4).gamma(2, 1, 80)
    settings = {"n_resamples": 2000, "method": "percentile"}
    for ours, statistic in (
        (bootstrap_mean(values), np.mean),
        (bootstrap_quantile(values, 0.5), np.median),
    ):
        rng = np.random.default_rng(0)
        theirs = stats.bootstrap((values,), statistic, rng=rng, **settings).confidence_interval
        assert ours == pytest.approx((theirs.low, theirs.high))


def test_what_belongs_to_one_item_is_drawn_together() -> None:
    """Asking every item five times makes no interval narrower; a latency of each is as good."""
    rng = np.random.default_rng(5)
    values = rng.gamma(2, 1, 60)
    names, five = [*range(60)] * 5, np.tile(values, 5)
    assert bootstrap_mean(five, names) == pytest.approx(bootstrap_mean(values))
    once, fivefold = bootstrap_quantile(values, 0.5), bootstrap_quantile(five, 0.5, names)
    assert fivefold == pytest.approx(once, abs=0.1)
    pooled = bootstrap_mean(five)
    assert pooled[1] - pooled[0] < 0.6 * (once[1] - once[0])
    unequal = bootstrap_quantile([*five, 1.0], 0.5, [*names, 0])
    assert unequal == pytest.approx(fivefold, abs=0.1)


def test_the_interval_of_a_share() -> None:
    """Wilson's for right and wrong asked once; near it for as many items, however often asked."""
    assert share_interval(range(50), [1.0] * 40 + [0.0] * 10) == proportion_interval(40, 50)
    assert share_interval([], []) == (0.0, 1.0)
    low, high = share_interval(range(50), [0.7] * 25 + [0.9] * 25)
    assert 0.7 < low < 0.8 < high < 0.85
    for right in (0, 1, 20, 30, 49, 50):
        scores = [1.0] * right + [0.0] * (50 - right)
        thrice = share_interval([*range(50)] * 3, scores * 3)
        assert thrice == pytest.approx(proportion_interval(right, 50), abs=0.025)
    almost = share_interval([*range(70)] * 3, [1.0] * 209 + [0.0])
    assert almost[0] < 0.96 and almost[1] == 1.0


@pytest.mark.parametrize("count", [20, 70])
@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.0), (0.01, 0.0), (0.05, 0.05), (0.3, 0.1)])
def test_the_interval_of_a_difference_covers_what_is_true(
    count: int, gain: float, loss: float
) -> None:
    """Over all outcomes of so many pairs, each with its probability."""
    covered = 0.0
    for fixes in range(count + 1):
        for harms in range(count + 1 - fixes):
            same = count - fixes - harms
            chance = stats.multinomial.pmf(
                [fixes, harms, same], count, [gain, loss, 1 - gain - loss]
            )
            if chance > 1e-9:
                low, high = difference_interval([1.0] * fixes + [-1.0] * harms + [0.0] * same)
                covered += chance * (low <= gain - loss <= high)
    assert covered > 0.94


def test_one_change_more_changes_an_interval_a_little() -> None:
    none, one = (difference_interval([-1.0] * harms + [0.0] * (70 - harms)) for harms in (0, 1))
    assert none == pytest.approx((-0.038, 0.038), abs=0.001)
    assert one == pytest.approx((-0.061, 0.033), abs=0.001)


def test_the_ratio_of_quantiles_is_of_pairs() -> None:
    """Twice as slow on every item is twice as slow, whatever items are drawn."""
    seconds = np.random.default_rng(6).gamma(2, 1, 40)
    assert bootstrap_quantile_ratio(2 * seconds, seconds, 0.95, range(40)) == (2.0, 2.0)
    low, high = bootstrap_quantile_ratio(seconds, seconds[::-1], 0.95, range(40))
    assert low < 1 < high


def test_published_sample_sizes() -> None:
    """About 470 pairs for 5 points and 2,900 for 2, at 15 % discordance (docs of the project)."""
    assert items_needed(0.05) == pytest.approx(470, rel=0.01)
    assert items_needed(0.02) == pytest.approx(2940, rel=0.02)
    with pytest.raises(ValueError):
        items_needed(0.2, discordance=0.1)


@given(st.integers(20, 5000))
def test_the_detectable_difference_needs_so_many_items(pairs: int) -> None:
    least = detectable_difference(pairs)
    assert items_needed(least) <= pairs or least == 0.15


def test_comparing_pairs() -> None:
    scores, base = [1.0, 1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0, 1.0]
    seconds, base_seconds = [1.0, 2.0, 1.0, 2.0, 1.0], [2.0, 4.0, 2.0, 4.0, 2.0]
    found = compare(range(5), scores, seconds, base, base_seconds)
    assert (found.pairs, found.fixes, found.harms) == (5, 2, 1)
    assert found.difference == pytest.approx(0.2)
    assert found.speedup == pytest.approx(2.0)
    assert found.p_accuracy == mcnemar(2, 1)
    logs = np.log(np.array(base_seconds) / seconds)
    assert found.p_latency == pytest.approx(stats.wilcoxon(logs).pvalue)


def test_both_speedups_say_what_they_are_of() -> None:
    """One item in three takes ten times as long: the medians do not show it."""
    seconds, base = [1.0, 1.0, 1.0], [2.0, 2.0, 20.0]
    found = compare(range(3), [1.0] * 3, seconds, [1.0] * 3, base)
    assert found.median_speedup == 2.0
    assert found.speedup == pytest.approx((2 * 2 * 20) ** (1 / 3))


def test_repeats_of_an_item_are_no_new_evidence() -> None:
    """Ten items asked once, or each of them three times: the same pairs, intervals and p-values."""
    rng = np.random.default_rng(3)
    scores, base = rng.integers(0, 2, 10).astype(float), rng.integers(0, 2, 10).astype(float)
    seconds, base_seconds = rng.gamma(2, 1, 10), rng.gamma(2, 1, 10)
    once = compare(range(10), scores, seconds, base, base_seconds)
    three = [np.tile(values, 3) for values in (scores, seconds, base, base_seconds)]
    thrice = compare([*range(10)] * 3, *three)
    assert thrice.pairs == 10
    assert thrice.difference_interval == pytest.approx(once.difference_interval)
    assert thrice.p_accuracy == once.p_accuracy
    assert thrice.p_latency == pytest.approx(once.p_latency)


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.2 where one of two is right, 0.9 where both are: (2 x 0.3 + 2 x 0.1) / 4."""
    sure, right = [0.9, 0.2, 0.2, 0.9], np.array([True, False, True, True])
    assert calibration_error(sure, right, 2) == pytest.approx(0.2)
    assert calibration_error([1.0, 1.0], np.array([True, True]), 10) == 0.0
    assert math.isnan(calibration_error([], np.array([], dtype=bool), 10))
