"""The machine's slowdown, as it is followed from request to request."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.policies.slowdown import SlowdownEstimator

TWICE = math.log(2)


def followed(*errors: float) -> SlowdownEstimator:
    estimator = SlowdownEstimator(0.0)
    for error in errors:
        estimator.follow(error, 0.0)
    return estimator


def test_nothing_is_slower_than_usual_until_something_was_seen() -> None:
    assert SlowdownEstimator(5.0).at(7.0) == 1.0


@pytest.mark.parametrize("error", [TWICE, 50.0, -50.0, math.inf])
def test_one_request_says_nothing(error: float) -> None:
    assert followed(error).at(0.0) == 1.0
    assert followed(0.1, 0.1, 0.1, error).at(0.0) == pytest.approx(followed(*[0.1] * 4).at(0.0))


def test_from_the_second_on_a_share_of_every_error_is_taken() -> None:
    assert followed(TWICE, TWICE).at(0.0) == pytest.approx(2**0.45)
    assert followed(TWICE, TWICE, TWICE).at(0.0) == pytest.approx(2 ** (1 - 0.55**2))


def test_what_was_seen_decays_towards_the_long_run_average() -> None:
    estimator = followed(TWICE, TWICE)
    assert estimator.at(10.0) == pytest.approx(2 ** (0.02 + 0.43 / math.e))
    assert estimator.at(1e6) == pytest.approx(2**0.02)
    assert estimator.at(-1e6) == estimator.at(0.0)  # a clock that went back


@given(st.lists(st.tuples(st.floats(allow_nan=False), st.floats(-1e9, 1e9)), max_size=40))
def test_the_factor_is_bounded_whatever_is_seen(seen: list[tuple[float, float]]) -> None:
    estimator = SlowdownEstimator(0.0)
    for error, now in seen:
        estimator.follow(error, now)
        assert 1 / 21 < estimator.at(now) < 21
