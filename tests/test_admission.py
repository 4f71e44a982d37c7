"""Who is let in, by a clock that the test moves: a server of one request after the other."""

import math
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.admission import Admission, ServiceRate
from hybrid.deadline import Deadline
from hybrid.errors import Overloaded

SERVICE_S = 0.010


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def deadline(self, budget_s: float) -> Deadline:
        return Deadline(self.now + budget_s)


class Server:
    """Requests in flight; `answer` ends the one with the least time after its service time."""

    def __init__(self, concurrency: int = 1) -> None:
        self.clock = Clock()
        self.admission = Admission(concurrency, self.clock)
        self.running: list[tuple[float, ExitStack]] = []
        self.late = 0

    def ask(self, budget_s: float) -> None:
        deadline, stack = self.clock.deadline(budget_s), ExitStack()
        stack.enter_context(self.admission.admitted(deadline, SERVICE_S))
        self.running.append((deadline.expires_at, stack))

    def answer(self, seconds: float = SERVICE_S) -> None:
        self.clock.now += seconds
        due_at, stack = min(self.running, key=lambda one: one[0])
        self.running.remove((due_at, stack))
        self.late += self.clock.now > due_at
        stack.close()

    def burst(self, count: int, budget_s: float) -> int:
        """How many of so many requests at once are let in."""
        for number in range(count):
            try:
                self.ask(budget_s)
            except Overloaded:
                return number
        return count


def test_as_many_are_let_in_as_can_be_answered_in_their_budget() -> None:
    server = Server()
    assert server.burst(1000, 0.5) == 32  # 0.65 of the budget, one request every 10 ms
    while server.running:
        server.answer()
    assert server.late == 0


def test_a_refusal_says_how_long_the_wait_is_and_when_to_come_back() -> None:
    server = Server()
    server.burst(1000, 0.5)
    with pytest.raises(Overloaded) as refused:
        server.ask(0.5)
    assert refused.value.retryable
    assert refused.value.predicted_wait_s == pytest.approx(0.32)
    assert refused.value.retry_after_s == pytest.approx(0.02)  # the second refused
    server.answer()
    server.clock.now += refused.value.retry_after_s
    server.ask(0.5)


def test_an_urgent_request_goes_first_unless_that_makes_another_late() -> None:
    server = Server()
    server.ask(10.0)
    server.ask(0.02)
    server.answer()
    server.burst(1000, 0.1)
    with pytest.raises(Overloaded):  # it would be answered first, and the last of them late
        server.ask(0.09)


def test_whoever_comes_to_an_idle_server_is_let_in_with_any_budget() -> None:
    server = Server()
    server.ask(1e-6)
    server.answer()
    assert server.admission.in_flight == 0


def test_a_request_without_a_budget_is_never_refused_and_waits_behind_the_others() -> None:
    server = Server()
    assert server.burst(500, math.inf) == 500
    server.ask(0.05)


def test_a_server_that_proves_faster_or_slower_lets_in_more_or_fewer() -> None:
    for seconds, expected in ((0.005, 65), (0.020, 16)):
        server = Server()
        for _ in range(8):
            server.burst(1000, 0.5)
            while server.running:
                server.answer(seconds)
        assert server.burst(1000, 0.5) == pytest.approx(expected, abs=4)


def test_the_slow_first_answer_of_a_model_does_not_refuse_the_next() -> None:
    server = Server()
    server.ask(0.5)
    server.answer(3.0)
    assert server.burst(1000, 0.5) >= 16


def test_models_that_serve_many_at_once_are_trusted_with_many_at_once() -> None:
    assert Server(concurrency=16).burst(1000, 0.5) == 16 * 32.5


@given(st.lists(st.one_of(st.floats(0, 1e9), st.just(math.inf)), min_size=1, max_size=50))
def test_outliers_do_not_spoil_the_rate(intervals: list[float]) -> None:
    rate = ServiceRate(1)
    for _ in range(64):
        rate.record(4, 0.010, SERVICE_S)
    rate.record(4, max(intervals), SERVICE_S)
    assert rate.interval_s(4, SERVICE_S) < 0.013
    for interval in intervals:
        rate.record(4, interval, SERVICE_S)
    for _ in range(1000):
        rate.record(4, 0.010, SERVICE_S)
    assert math.isfinite(rate.interval_s(4, SERVICE_S))


@given(st.lists(st.floats(0.02, 2.0), min_size=1, max_size=60), st.integers(0, 3))
def test_nobody_who_is_let_in_is_late_where_the_service_time_is_as_expected(
    budgets: list[float], answered_between: int
) -> None:
    server = Server()
    for budget_s in budgets:
        try:
            server.ask(budget_s)
        except Overloaded as error:
            assert error.retry_after_s > 0
        for _ in range(min(answered_between, len(server.running))):
            server.answer()
    while server.running:
        server.answer()
    assert server.late == 0
