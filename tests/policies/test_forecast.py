"""The columns that the planner reads: every refine mode at every cap, learned or not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.policies.forecast import Forecast, forecast
from hybrid.policies.latency import LatencyModel, Quantiles, Work, cap_range
from hybrid.types import RefineMode

COSTS = LatencyModel(0.001, 0.01, 0.001, 0.002, 0.003, 0.004, 0.0005, 0.006, 1.5, 32)
CAPS = (1, 4, 8, 16)
USED = (1.0, 3.0, 4.0, 5.0)
KEPT = np.array([0.0, 0.5, 0.6, 0.7])
MODES: tuple[RefineMode, ...] = ("none", "score", "cascade", "verify")
factors = st.builds(Quantiles, st.floats(0.1, 10), st.floats(0.1, 10))
shares = st.builds(Quantiles, st.floats(0, 0.5), st.floats(0.5, 1))
works = st.builds(
    Work,
    used=st.dictionaries(st.integers(1, 5), shares),
    written=st.dictionaries(
        st.tuples(st.sampled_from(("cascade", "verify")), st.integers(1, 5)), shares
    ),
    corrections=st.dictionaries(st.sampled_from((*MODES, "generate")), factors),
)


def cast(latency: LatencyModel, canvases: int = 1) -> Forecast:
    return forecast(latency, "sums", 20, Quantiles(10, 15), canvases, CAPS, USED)


def test_an_unknown_tasks_drafts_take_the_expected_steps_and_at_p95_all() -> None:
    p50_s, p95_s = cast(COSTS).draft_and("none", False, KEPT)
    assert p50_s == pytest.approx([COSTS.draft(20, used, 1, 1).p50_s for used in USED])
    assert p95_s == pytest.approx([COSTS.draft(20, 0, cap, 1).p95_s for cap in CAPS])
    p50_s, p95_s = cast(COSTS, canvases=3).draft_and("none", False, KEPT)
    assert p50_s == pytest.approx([COSTS.draft(20, used, 1, 3).p50_s for used in USED])
    assert p95_s == pytest.approx([COSTS.draft(20, 0, cap, 3).p95_s for cap in CAPS])


def test_learned_steps_replace_the_expected_ones_where_there_are_any() -> None:
    work = Work(used={cap_range(8): Quantiles(0.25, 0.5)})
    p50_s, p95_s = cast(replace(COSTS, work={"sums": work})).draft_and("none", False, KEPT)
    assert p50_s[2] == pytest.approx(COSTS.draft(20, 2, 8, 1).p50_s)
    assert p95_s[2] == pytest.approx(COSTS.draft(20, 0, 4, 1).p95_s)
    assert p50_s[3] == pytest.approx(COSTS.draft(20, 5, 1, 1).p50_s)


def test_what_is_kept_of_a_draft_is_not_written_again() -> None:
    alone, _ = cast(COSTS).draft_and("none", False, KEPT)
    both, _ = cast(COSTS).draft_and("verify", False, KEPT)
    added = [b - a for a, b in zip(alone, both, strict=True)]
    reading = COSTS.read(30).p50_s
    assert added == pytest.approx([reading + (1 - kept) * 10 * 0.006 for kept in KEPT])


def test_what_was_learned_to_be_written_counts_instead() -> None:
    work = Work(written={("verify", cap_range(8)): Quantiles(0.1, 0.2)})
    costs = replace(COSTS, work={"sums": work})
    plain_50, plain_95 = cast(costs).draft_and("none", False, KEPT)
    p50_s, p95_s = cast(costs).draft_and("verify", False, KEPT)
    assert p50_s[2] - plain_50[2] == pytest.approx(COSTS.read(30).p50_s + 0.1 * 10 * 0.006)
    expected = (COSTS.read(30).p50_s + 0.2 * 15 * 0.006) * 1.5
    assert p95_s[2] - plain_95[2] == pytest.approx(expected)


def test_a_draft_that_judges_itself_is_read_by_the_drafter_alone() -> None:
    alone, _ = cast(COSTS).draft_and("none", True, KEPT)
    scored, _ = cast(COSTS).draft_and("score", True, KEPT)
    assert scored[0] - alone[0] == pytest.approx(COSTS.commit_s)
    kept, _ = cast(COSTS).draft_and("cascade", True, np.ones(4))
    assert kept == pytest.approx(scored)


def test_verify_reads_every_draft_whoever_judges() -> None:
    own, others = (cast(COSTS).draft_and("verify", judge, KEPT) for judge in (True, False))
    assert np.array_equal(own, others)


def test_the_refiner_alone_gets_its_first_token_from_reading() -> None:
    alone = cast(COSTS).generate()
    assert alone.p50_s == pytest.approx(0.001 + 0.004 + 20 * 0.0005 + 9 * 0.006)
    assert alone.p95_s == pytest.approx((0.001 + 0.004 + 20 * 0.0005 + 14 * 0.006) * 1.5)


@given(works, st.floats(0.1, 10))
def test_p95_is_never_below_p50(work: Work, pace: float) -> None:
    latency = replace(COSTS, work={"sums": work}, pace=pace)
    alone = cast(latency).generate()
    assert 0 < alone.p50_s <= alone.p95_s
    for mode in MODES:
        for p50_s, p95_s in zip(*cast(latency).draft_and(mode, False, KEPT), strict=True):
            assert 0 < p50_s <= p95_s


def test_without_a_cap_there_is_no_draft() -> None:
    request = forecast(COSTS, None, 20, Quantiles(10, 15), 1, (), ())
    assert np.size(request.draft_and("verify", False, np.array([]))) == 0
