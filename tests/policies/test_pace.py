"""The machine's pace, as it is followed from request to request."""

import math

import pytest

from hybrid.policies.pace import Pace


def test_nothing_is_slower_than_usual_until_something_was_seen() -> None:
    assert Pace(5.0).at(7.0) == 1.0


def test_the_pace_now_takes_a_share_of_every_error() -> None:
    pace = Pace(0.0)
    pace.follow(math.log(2), 0.0)
    assert pace.at(0.0) == pytest.approx(2**0.45)
    pace.follow(math.log(2), 0.0)
    assert pace.at(0.0) == pytest.approx(2 ** (1 - 0.55**2))


def test_what_was_seen_fades_towards_the_pace_at_length() -> None:
    pace = Pace(0.0)
    pace.follow(math.log(2), 0.0)
    assert pace.at(10.0) == pytest.approx(2 ** (0.02 + 0.43 / math.e))
    assert pace.at(1e6) == pytest.approx(2**0.02)
    assert pace.at(-1e6) == pace.at(0.0)  # a clock that went back


def test_one_request_that_hung_says_little() -> None:
    pace = Pace(0.0)
    pace.follow(math.log(1e9), 0.0)
    assert pace.at(0.0) == pytest.approx(math.exp(0.45 * 3))
