"""What plans cost: parts with their spreads, and work as learned or as expected."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.policies.latency import (
    Latency,
    LatencyModel,
    Lengths,
    Quantiles,
    TaskStatistics,
    cap_range,
    quantile,
)

COSTS = LatencyModel(0.0, 0.01, 0.001, 0.002, 0.003, 0.004, 0.0005, 0.006, 1.5, 32)
LINE = Lengths("prompt_tokens", tuple(range(100)), tuple(range(100, 200)))


def test_a_draft_is_prefill_steps_and_commits() -> None:
    latency = COSTS.draft(prompt_tokens=10, steps_p50=3, cap=8, canvases=2)
    assert latency.p50_s == pytest.approx(0.01 + 10 * 0.001 + 2 * 3 * 0.002 + 0.003)
    assert latency.p95_s == pytest.approx((0.01 + 10 * 0.001 + 2 * 8 * 0.002 + 0.003) * 1.5)


def test_refining_is_reading_and_writing() -> None:
    both = COSTS.read(20) + COSTS.write(5, 8)
    assert both.p50_s == pytest.approx(0.004 + 20 * 0.0005 + 5 * 0.006)
    assert both.p95_s == pytest.approx((0.004 + 20 * 0.0005 + 8 * 0.006) * 1.5)


def test_a_prompt_costs_by_its_length() -> None:
    short, long = (COSTS.draft(tokens, 1, 1, 1).p50_s for tokens in (10, 110))
    assert long - short == pytest.approx(100 * COSTS.prefill_token_s)
    assert COSTS.read(110).p50_s - COSTS.read(10).p50_s == pytest.approx(100 * COSTS.read_token_s)


def test_a_step_may_cost_by_the_prompt_too() -> None:
    costs = replace(COSTS, step_token_s=1e-5)
    assert costs.step(100).p50_s == pytest.approx(0.003)


def test_a_part_may_spread_more_than_all_do() -> None:
    costs = replace(COSTS, step_spread=2.0, token_spread=1.2)
    assert costs.step(0) == Latency(0.002, 0.004)
    assert costs.write(1, 1).p95_s == pytest.approx(0.009)
    assert costs.commit(2).p95_s == pytest.approx(0.009)


def test_an_answer_is_as_long_as_those_of_prompts_of_like_length() -> None:
    costs = replace(COSTS, tasks={"sums": TaskStatistics(lengths=LINE)})
    assert costs.lengths("sums", 50, 0, 9, 1000).p50 == pytest.approx(150, abs=2)
    assert costs.lengths("sums", 50, 0, 9, 1000).p95 == pytest.approx(157, abs=2)
    assert costs.lengths("sums", 10_000, 0, 9, 1000).p50 == pytest.approx(192, abs=2)
    assert costs.lengths("sums", 0, 0, 9, 1000).p50 == pytest.approx(107, abs=2)
    assert costs.lengths("sums", 50, 0, 9, 64) == Quantiles(64, 64)


def test_an_answer_is_as_long_as_those_of_like_amounts_where_these_tell_it() -> None:
    lengths = Lengths("amount", (2,) * 40 + (5,) * 40, (6,) * 40 + (15,) * 40)
    costs = replace(COSTS, tasks={"list": TaskStatistics(lengths=lengths)})
    assert costs.lengths("list", 99, 2, 9, 1000) == Quantiles(6, 6)
    assert costs.lengths("list", 1, 5, 9, 1000) == Quantiles(15, 15)


def test_an_unknown_tasks_answer_is_as_long_as_the_policy_expects() -> None:
    known = TaskStatistics(lengths=LINE)
    costs = replace(COSTS, tasks={"sums": known}, all_tasks=known)
    assert costs.lengths("chat", 50, 0, 10, 1000) == Quantiles(10, 15)
    assert costs.lengths(None, 50, 0, 10, 12) == Quantiles(10, 12)


def test_corrections_are_the_tasks_then_those_of_all_then_none() -> None:
    costs = replace(
        COSTS,
        tasks={"sums": TaskStatistics(corrections={"none": Quantiles(1.5, 1.25)})},
        all_tasks=TaskStatistics(corrections={"none": Quantiles(3, 4), "verify": Quantiles(5, 6)}),
    )
    assert costs.correction("sums", "none") == Quantiles(1.5, 1.25)
    assert costs.correction("sums", "verify") == Quantiles(5, 6)
    assert costs.correction("chat", "none") == Quantiles(3, 4)
    assert costs.correction("sums", "cascade") == Quantiles(1, 1)


def test_steps_used_are_the_tasks_then_those_of_all() -> None:
    own, other = Quantiles(0.5, 0.9), Quantiles(0.6, 1.0)
    costs = replace(
        COSTS,
        tasks={"sums": TaskStatistics(used={cap_range(8): own})},
        all_tasks=TaskStatistics(used={cap_range(8): other}),
    )
    assert costs.share_used("sums", cap_range(12)) == own
    assert costs.share_used("chat", cap_range(12)) == other
    assert costs.share_used("sums", cap_range(48)) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_is_between_the_values(values: list[float], share: float) -> None:
    assert min(values) - 1e-6 <= quantile(values, share) <= max(values) + 1e-6


def test_the_next_of_many_like_values_is_below_a_quantile_as_often_as_it_says() -> None:
    # Of 20 alike in a random order, the last is below the 95th percentile of the others in 19.
    below = sum(value < quantile([v for v in range(20) if v != value], 0.95) for value in range(20))
    assert below == 19
    assert quantile([3.0], 0.95) == 3.0
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
