"""The decision: inside the budget, the best, and always with reasons."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.policies.latency import LatencyModel
from hybrid.policies.loader import parse_policy
from hybrid.policies.planner import interpolate, plan
from hybrid.policies.schema import QualitySection
from hybrid.requests import make_request
from hybrid.types import Plan, Signals

COSTS = LatencyModel(
    overhead_s=0.001,
    prefill_s=0.002,
    prefill_token_s=0.0001,
    step_s=0.002,
    commit_s=0.001,
    read_s=0.002,
    read_token_s=0.0001,
    token_s=0.002,
    spread=1.2,
    canvas_length=32,
)
POLICY = parse_policy(
    "version: 1\n"
    "defaults: {draft: {max_denoising_steps: [1, 2, 4, 8, 16]},"
    " refine: {mode: [none, cascade, verify, generate]}}\n"
    "tasks: {sums: {}}\n",
    "p",
)
MEASURED = QualitySection(
    draft={1: 0.1, 4: 0.6, 16: 0.9}, refiner=0.99, steps_used={1: 1, 16: 5}, agreement=0.8
)
costs = st.builds(
    LatencyModel,
    *[st.floats(1e-5, 0.05)] * 8,
    st.floats(1.15, 3.0),
    st.integers(1, 256),
)
tables = st.none() | st.builds(
    QualitySection,
    draft=st.dictionaries(st.integers(1, 48), st.floats(0, 1), min_size=1),
    refiner=st.floats(0, 1),
    agreement=st.floats(0, 1),
)


def decide(
    latency: LatencyModel = COSTS,
    measured: QualitySection | None = None,
    expected_tokens: int = 12,
    **options: Any,
) -> Plan:
    signals = Signals(20, "sums", "given", expected_tokens, 0)
    quality = {"sums": measured} if measured else {}
    return plan(make_request("x", options), signals, POLICY, latency, quality)  # type: ignore[arg-type]


@given(costs, tables, st.integers(1, 300), st.integers(1, 5_000_000))
def test_no_plan_is_over_the_budget_if_any_fits(
    latency: LatencyModel, measured: QualitySection | None, tokens: int, budget_us: int
) -> None:
    chosen = decide(latency, measured, tokens, budget=f"{budget_us}us")
    slowest = [chosen.predicted, *(r.predicted for r in chosen.rejected)]
    if min(p.latency_p95_s for p in slowest) <= budget_us * 1e-6:
        assert chosen.predicted.latency_p95_s <= budget_us * 1e-6
        assert "fastest" not in chosen.rule
    else:
        assert chosen.predicted.latency_p95_s == min(p.latency_p95_s for p in slowest)
        assert "nothing fits the budget, so the fastest" in chosen.rule


@given(costs, tables, st.integers(1, 300), st.integers(1, 100_000), st.integers(1, 100_000))
def test_more_budget_never_lowers_the_quality(
    latency: LatencyModel, measured: QualitySection | None, tokens: int, first: int, second: int
) -> None:
    less, more = sorted((first, second))
    tight = decide(latency, measured, tokens, budget=f"{less}ms")
    loose = decide(latency, measured, tokens, budget=f"{more}ms")
    if "fastest" not in tight.rule:
        difference = loose.predicted.quality - tight.predicted.quality
        assert difference >= -0.0101  # differences below a percent are ties


@given(costs, tables, st.integers(1, 300))
def test_decisions_repeat_and_every_other_candidate_has_a_reason(
    latency: LatencyModel, measured: QualitySection | None, tokens: int
) -> None:
    chosen = decide(latency, measured, tokens, budget="100ms")
    assert chosen == decide(latency, measured, tokens, budget="100ms")
    assert len(chosen.rejected) == 5 * 3 + 1 - 1
    assert all(rejection.why for rejection in chosen.rejected)
    assert chosen.label not in [rejection.candidate for rejection in chosen.rejected]


@given(costs, st.integers(1, 300), st.integers(1, 300))
def test_longer_answers_are_never_predicted_faster(
    latency: LatencyModel, first: int, second: int
) -> None:
    for mode in ("none", "cascade", "verify", "generate"):
        short, long = sorted((first, second))
        less = decide(latency, expected_tokens=short, refine=mode).predicted
        more = decide(latency, expected_tokens=long, refine=mode).predicted
        if mode in ("none", "generate"):
            assert less.latency_p50_s <= more.latency_p50_s + 1e-9
        assert less.latency_p50_s <= less.latency_p95_s * 1.000001


def test_measured_accuracy_decides() -> None:
    chosen = decide(measured=MEASURED, refine="none", budget="1s")
    assert chosen.label == "16 steps"
    assert chosen.predicted.quality == 0.9
    assert decide(measured=MEASURED, budget="10s").predicted.quality == 0.99


def test_adaptive_stopping_counts_at_p50_and_not_at_p95() -> None:
    chosen = decide(measured=MEASURED, refine="none", max_denoising_steps=16)
    fixed = 0.001 + 0.002 + 20 * 0.0001
    assert chosen.predicted.latency_p50_s == pytest.approx(fixed + 5 * 0.002)
    assert chosen.predicted.latency_p95_s == pytest.approx((fixed + 16 * 0.002) * 1.2)


def test_long_answers_take_several_canvases() -> None:
    one = decide(refine="none", max_denoising_steps=4, expected_tokens=32)
    three = decide(refine="none", max_denoising_steps=4, expected_tokens=96)
    extra = three.predicted.latency_p50_s - one.predicted.latency_p50_s
    assert extra == pytest.approx(2 * 4 * 0.002 + 2 * 0.001)


def test_ties_go_to_the_cheaper() -> None:
    flat = replace_draft({1: 0.9, 16: 0.9})
    assert decide(measured=flat, refine="none").label == "1 steps"


def replace_draft(draft: dict[int, float]) -> QualitySection:
    return MEASURED.model_copy(update={"draft": draft})


def test_a_free_refiner_is_always_worth_it() -> None:
    free = replace(COSTS, token_s=0.0, read_s=0.0, read_token_s=0.0)
    assert decide(free, MEASURED, budget="1s").label == "AR alone"


@pytest.mark.parametrize(
    ("x", "y"), [(1, 0.1), (0, 0.1), (4, 0.6), (10, 0.75), (16, 0.9), (100, 0.9)]
)
def test_tables_are_linear_between_points_and_flat_outside(x: int, y: float) -> None:
    assert interpolate(MEASURED.draft, x) == pytest.approx(y)
