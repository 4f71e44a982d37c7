"""Waits: followed, forgotten within seconds, and bounded whatever is seen."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.policies.latency import Latency
from hybrid.policies.waits import MAX_WAIT_S, WaitEstimator


def test_nobody_waits_until_somebody_has() -> None:
    assert WaitEstimator(0.0).at(9.0) == Latency(0.0, 0.0)


def test_a_steady_wait_is_expected_and_then_forgotten() -> None:
    estimator = WaitEstimator(0.0)
    for _ in range(40):
        estimator.follow(2.0, 0.0)
    assert estimator.at(0.0).p50_s == pytest.approx(2.0, rel=1e-3)
    assert estimator.at(0.0).p95_s == pytest.approx(2.0, rel=1e-2)
    assert estimator.at(100.0).p95_s < 0.001


def test_waits_that_vary_widen_the_p95() -> None:
    estimator = WaitEstimator(0.0)
    for number in range(40):
        estimator.follow(2.0 * (number % 2), 0.0)
    found = estimator.at(0.0)
    assert found.p95_s - found.p50_s > 1.0


@given(st.lists(st.tuples(st.floats(), st.floats(-1e9, 1e9)), max_size=40))
def test_the_wait_is_bounded_whatever_is_seen(seen: list[tuple[float, float]]) -> None:
    estimator = WaitEstimator(0.0)
    for wait_s, now in seen:
        estimator.follow(wait_s, now)
        found = estimator.at(now)
        assert 0 <= found.p50_s <= MAX_WAIT_S and found.p50_s <= found.p95_s <= 3 * MAX_WAIT_S
        assert not math.isnan(found.p95_s)
