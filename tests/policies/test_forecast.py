"""The columns that the planner reads: every refine mode at every cap, learned or not."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.modes import MODES
from hybrid.policies.forecast import MAX_FACTOR, Column, Forecast, forecast
from hybrid.policies.latency import Latency, LatencyModel, Quantiles, TaskStatistics, cap_range
from hybrid.types import RefineMode

COSTS = LatencyModel(0.001, 0.01, 0.001, 0.002, 0.003, 0.004, 0.0005, 0.006, 1.5, 32)
CAPS = (1, 4, 8, 16)
USED = (1.0, 3.0, 4.0, 5.0)
KEPT = np.array([0.0, 0.5, 0.6, 0.7])
LISTED: tuple[RefineMode, ...] = ("none", "score", "cascade", "verify")
factors = st.builds(Quantiles, st.floats(0.1, 10), st.floats(0.1, 10))
shares = st.builds(Quantiles, st.floats(0, 0.5), st.floats(0.5, 1))
statistics = st.builds(
    TaskStatistics,
    used=st.dictionaries(st.integers(1, 5), shares),
    written=st.dictionaries(
        st.tuples(st.sampled_from(("cascade", "verify")), st.integers(1, 5)), shares
    ),
    corrections=st.dictionaries(st.sampled_from((*LISTED, "generate")), factors),
)


def cast(
    latency: LatencyModel, canvases: int = 1, by_itself: bool = False, kept: Column = KEPT
) -> Forecast:
    tokens = Quantiles(10, 15)
    return forecast(latency, "sums", 20, tokens, canvases, CAPS, USED, kept, by_itself)


def latencies(forecast: Forecast, mode: RefineMode) -> tuple[Column, Column]:
    found = forecast.draft_and(mode)
    return found.p50_s, found.p95_s


def test_an_unknown_tasks_drafts_take_the_expected_steps_and_at_p95_all() -> None:
    p50_s, p95_s = latencies(cast(COSTS), "none")
    assert p50_s == pytest.approx([COSTS.draft(20, used, 1, 1).p50_s for used in USED])
    assert p95_s == pytest.approx([COSTS.draft(20, 0, cap, 1).p95_s for cap in CAPS])
    p50_s, p95_s = latencies(cast(COSTS, canvases=3), "none")
    assert p50_s == pytest.approx([COSTS.draft(20, used, 1, 3).p50_s for used in USED])
    assert p95_s == pytest.approx([COSTS.draft(20, 0, cap, 3).p95_s for cap in CAPS])


def test_learned_steps_replace_the_expected_ones_where_there_are_any() -> None:
    learned = TaskStatistics(used={cap_range(8): Quantiles(0.25, 0.5)})
    p50_s, p95_s = latencies(cast(replace(COSTS, tasks={"sums": learned})), "none")
    assert p50_s[2] == pytest.approx(COSTS.draft(20, 2, 8, 1).p50_s)
    assert p95_s[2] == pytest.approx(COSTS.draft(20, 0, 4, 1).p95_s)
    assert p50_s[3] == pytest.approx(COSTS.draft(20, 5, 1, 1).p50_s)


def test_what_is_kept_of_a_draft_is_not_written_again() -> None:
    alone, _ = latencies(cast(COSTS), "none")
    both, _ = latencies(cast(COSTS), "verify")
    added = [b - a for a, b in zip(alone, both, strict=True)]
    reading = COSTS.read(30).p50_s
    assert added == pytest.approx([reading + (1 - kept) * 10 * 0.006 for kept in KEPT])


def test_what_was_learned_to_be_written_counts_instead() -> None:
    learned = TaskStatistics(written={("verify", cap_range(8)): Quantiles(0.1, 0.2)})
    costs = replace(COSTS, tasks={"sums": learned})
    plain_50, plain_95 = latencies(cast(costs), "none")
    p50_s, p95_s = latencies(cast(costs), "verify")
    assert p50_s[2] - plain_50[2] == pytest.approx(COSTS.read(30).p50_s + 0.1 * 10 * 0.006)
    expected = (COSTS.read(30).p50_s + 0.2 * 15 * 0.006) * 1.5
    assert p95_s[2] - plain_95[2] == pytest.approx(expected)


def test_a_draft_that_judges_itself_is_read_by_the_drafter_alone() -> None:
    alone, _ = latencies(cast(COSTS, by_itself=True), "none")
    scored, _ = latencies(cast(COSTS, by_itself=True), "score")
    assert scored[0] - alone[0] == pytest.approx(COSTS.commit_s)
    kept, _ = latencies(cast(COSTS, by_itself=True, kept=np.ones(4)), "cascade")
    assert kept == pytest.approx(scored)


def test_verify_reads_every_draft_whoever_judges() -> None:
    own, others = (latencies(cast(COSTS, by_itself=judge), "verify") for judge in (True, False))
    assert np.array_equal(own, others)


def test_the_refiner_alone_gets_its_first_token_from_reading() -> None:
    alone = cast(COSTS).generate()
    assert alone.p50_s == pytest.approx(0.001 + 0.004 + 20 * 0.0005 + 9 * 0.006)
    assert alone.p95_s == pytest.approx((0.001 + 0.004 + 20 * 0.0005 + 14 * 0.006) * 1.5)


@given(statistics, st.floats(0.1, 10))
def test_p95_is_never_below_p50(statistics: TaskStatistics, slowdown: float) -> None:
    latency = replace(COSTS, tasks={"sums": statistics}, slowdown=slowdown)
    alone = cast(latency).generate()
    assert 0 < alone.p50_s <= alone.p95_s
    for mode in LISTED:
        for p50_s, p95_s in zip(*latencies(cast(latency), mode), strict=True):
            assert 0 < p50_s <= p95_s


@given(statistics, st.floats(0.05, 20), st.floats(0, 60), st.floats(0, 60))
def test_a_plan_that_contains_another_is_never_predicted_faster(
    learned: TaskStatistics, slowdown: float, draft_wait: float, refine_wait: float
) -> None:
    latency = replace(
        COSTS,
        tasks={"sums": learned},
        slowdown=slowdown,
        draft_wait=Latency(draft_wait, draft_wait),
        refine_wait=Latency(refine_wait, refine_wait),
    )
    request = cast(latency)
    for mode in get_args(RefineMode):
        if mode == "generate":
            continue
        p50_s, p95_s = latencies(request, mode)
        for part in MODES[mode].contains:
            assert (p50_s >= latencies(request, part)[0]).all()
            assert (p95_s >= latencies(request, part)[1]).all()
        service = request.draft_and(mode)
        waits = draft_wait + refine_wait
        assert (p95_s <= waits + MAX_FACTOR * service.service_p95_s.max() / slowdown * 20).all()


def test_waiting_is_added_to_what_a_plan_takes() -> None:
    waiting = replace(COSTS, draft_wait=Latency(1.0, 2.0), refine_wait=Latency(0.5, 0.75))
    expected: dict[RefineMode, tuple[float, float]] = {"none": (1.0, 2.0), "verify": (1.5, 2.75)}
    for mode, wait in expected.items():
        before, after = (latencies(cast(costs), mode) for costs in (COSTS, waiting))
        assert after[0] - before[0] == pytest.approx(wait[0])
        assert after[1] - before[1] == pytest.approx(wait[1])
    alone = cast(waiting).generate()
    assert alone.p50_s - cast(COSTS).generate().p50_s == pytest.approx(0.5)
    assert alone.service_p50_s == pytest.approx(cast(COSTS).generate().p50_s)


def test_without_a_cap_there_is_no_draft() -> None:
    request = forecast(COSTS, None, 20, Quantiles(10, 15), 1, (), (), np.array([]))
    assert np.size(request.draft_and("verify").p50_s) == 0
