"""Durations as people write them, and the clock that is polled."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.deadline import CancelFlag, Deadline, format_duration, parse_duration
from hybrid.errors import Cancelled, RequestError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("2s", 2.0), ("1.5s", 1.5), ("20us", 2e-5), ("3m", 180.0), ("1h", 3600.0)],
)
def test_durations_with_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@given(st.text(max_size=12))
def test_any_other_text_is_refused_with_an_example(text: str) -> None:
    try:
        assert parse_duration(text) > 0
    except RequestError as error:
        assert error.field == "budget"
        assert "500ms" in str(error)


@given(st.floats(min_value=1e-3, max_value=1e4))
def test_a_formatted_duration_is_near_the_duration(seconds: float) -> None:
    written = format_duration(seconds).replace(" ", "")
    assert parse_duration(written) == pytest.approx(seconds, rel=0.5, abs=6e-4)


def test_a_deadline_counts_from_when_the_work_began() -> None:
    started = time.monotonic() - 10.0
    assert Deadline.after(5.0, started).expired
    assert not Deadline.after(15.0, started).expired
    assert Deadline.after(15.0, started).remaining_s == pytest.approx(5.0, abs=1.0)


def test_without_a_budget_it_never_comes() -> None:
    assert not Deadline.after(None).expired
    assert not Deadline().expired


def test_cancelling_raises_at_the_next_poll() -> None:
    flag = CancelFlag()
    deadline = Deadline.after(None, cancelled=flag)
    deadline.raise_if_cancelled()
    flag.set()
    with pytest.raises(Cancelled):
        deadline.raise_if_cancelled()
    other = Deadline()
    other.cancel()
    with pytest.raises(Cancelled):
        other.raise_if_cancelled()
