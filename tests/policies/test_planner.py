"""The decision: inside the budget, the best, and always with reasons."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.policies.latency import LatencyModel
from hybrid.policies.loader import parse_policy
from hybrid.policies.planner import plan
from hybrid.policies.schema import QualitySection
from hybrid.requests import make_request
from hybrid.types import Plan, Prediction, Signals

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
    draft={1: 0.1, 4: 0.6, 16: 0.9}, refiner=0.99, steps_used={1: 1, 16: 5}, agreement={16: 0.8}
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
    agreement=st.dictionaries(st.integers(1, 48), st.floats(0, 1)),
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


def percent(predicted: Prediction) -> float:
    """Quality as the planner compares it: differences below a percent are ties."""
    return round(predicted.quality, 2)


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
        assert percent(loose.predicted) >= percent(tight.predicted)


@given(costs, tables, st.integers(1, 300), st.integers(1, 5_000_000))
def test_what_was_rejected_is_worse_and_says_how(
    latency: LatencyModel, measured: QualitySection | None, tokens: int, budget_us: int
) -> None:
    chosen = decide(latency, measured, tokens, budget=f"{budget_us}us")
    for rejection in chosen.rejected:
        if rejection.predicted.latency_p95_s > budget_us * 1e-6:
            assert re.fullmatch(r"p95 is [\d.]+ m?s over the budget", rejection.why)
        elif percent(rejection.predicted) < percent(chosen.predicted):
            worse, better = rejection.predicted.quality, chosen.predicted.quality
            assert rejection.why == f"quality {worse:.2f} below {better:.2f}"
        else:
            assert percent(rejection.predicted) == percent(chosen.predicted)
            assert rejection.predicted.latency_p50_s >= chosen.predicted.latency_p50_s
            assert rejection.why == "no better, and slower"


@given(costs, tables, st.integers(1, 300))
def test_decisions_repeat_and_every_other_candidate_has_a_reason(
    latency: LatencyModel, measured: QualitySection | None, tokens: int
) -> None:
    chosen = decide(latency, measured, tokens, budget="100ms")
    assert chosen == decide(latency, measured, tokens, budget="100ms")
    candidates = [chosen.label, *(rejection.candidate for rejection in chosen.rejected)]
    assert len(set(candidates)) == len(candidates) == 5 * 3 + 1
    assert all(rejection.why for rejection in chosen.rejected)


@given(costs, st.integers(1, 300), st.integers(1, 300))
def test_longer_answers_are_never_predicted_faster(
    latency: LatencyModel, first: int, second: int
) -> None:
    for mode in ("none", "cascade", "verify", "generate"):
        short, long = sorted((first, second))
        # One cap: the best one may change with the length, and a cap's p95 with it.
        options: dict[str, Any] = {"refine": mode}
        if mode != "generate":
            options["max_denoising_steps"] = 8
        less = decide(latency, expected_tokens=short, **options).predicted
        more = decide(latency, expected_tokens=long, **options).predicted
        assert less.latency_p50_s <= more.latency_p50_s + 1e-9
        assert less.latency_p95_s <= more.latency_p95_s + 1e-9
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


def test_one_token_more_than_a_canvas_takes_another() -> None:
    full = decide(refine="none", max_denoising_steps=4, expected_tokens=32)
    over = decide(refine="none", max_denoising_steps=4, expected_tokens=33)
    extra = over.predicted.latency_p50_s - full.predicted.latency_p50_s
    assert extra == pytest.approx(4 * COSTS.step_s + COSTS.commit_s)


def test_an_unmeasured_task_stops_after_about_twelve_steps() -> None:
    def p50(steps: int) -> float:
        return decide(refine="none", max_denoising_steps=steps).predicted.latency_p50_s

    assert p50(12) - p50(6) == pytest.approx(6 * COSTS.step_s)
    assert p50(48) == p50(12)


def test_ties_go_to_the_cheaper() -> None:
    flat = replace_draft({1: 0.9, 16: 0.9})
    assert decide(measured=flat, refine="none").label == "1 step"


def replace_draft(draft: dict[int, float]) -> QualitySection:
    return MEASURED.model_copy(update={"draft": draft})


def test_a_free_refiner_is_always_worth_it() -> None:
    free = replace(COSTS, token_s=0.0, read_s=0.0, read_token_s=0.0)
    assert decide(free, MEASURED, budget="1s").label == "AR alone"


def test_refining_costs_what_each_mode_reads_and_writes() -> None:
    def added(mode: str) -> tuple[float, float]:
        alone = decide(measured=MEASURED, refine="none", max_denoising_steps=4).predicted
        both = decide(measured=MEASURED, refine=mode, max_denoising_steps=4).predicted
        return (
            both.latency_p50_s - alone.latency_p50_s,
            (both.latency_p95_s - alone.latency_p95_s) / COSTS.spread,
        )

    reading = COSTS.read_s + (20 + 12) * COSTS.read_token_s
    assert added("score") == pytest.approx((reading, reading))
    rewritten = (1 - MEASURED.agreement[16]) * 12 * COSTS.token_s
    longest = 1.5 * 12 * COSTS.token_s  # at p95 all of the draft is wrong, and the answer longer
    assert added("verify") == pytest.approx((reading + rewritten, reading + longest))
    assert added("cascade") == added("verify")


def test_the_longest_answer_bounds_what_is_predicted() -> None:
    short = decide(expected_tokens=300, max_new_tokens=10, refine="generate").predicted
    alone = COSTS.overhead_s + COSTS.read(20).p50_s + 9 * COSTS.token_s  # reading gives one token
    assert short.latency_p50_s == pytest.approx(alone)
    assert short.latency_p95_s == pytest.approx(alone * COSTS.spread)


def test_without_a_budget_the_best_is_taken() -> None:
    chosen = decide(replace(COSTS, token_s=100.0), MEASURED)
    assert chosen.budget_s is None
    assert chosen.predicted.quality == MEASURED.refiner


def test_the_plan_carries_the_settled_settings() -> None:
    chosen = decide(entropy_bound=0.3, max_denoising_steps=4, refine="cascade", max_new_tokens=9)
    assert chosen.draft is not None
    assert (chosen.draft.max_denoising_steps, chosen.draft.entropy_bound) == (4, 0.3)
    assert (chosen.refine.mode, chosen.refine.min_token_logprob) == ("cascade", -4.0)
    assert (chosen.max_new_tokens, chosen.rule) == (9, "task sums")


def test_rejections_are_a_sequence_in_the_candidates_order() -> None:
    rejected = decide(measured=MEASURED, budget="1s").rejected
    assert len(rejected) == 15
    assert [*rejected] == [rejected[place] for place in range(15)] == [*rejected[:20]]
    assert rejected[-1] == rejected[14] == rejected[10:][-1]
    with pytest.raises(IndexError):
        rejected[15]


def test_a_measured_cascade_replaces_the_estimate() -> None:
    table = MEASURED.model_copy(update={"cascade": {4: 0.5, 16: 0.7}})
    assert decide(measured=table, refine="cascade", max_denoising_steps=10).predicted.quality == 0.6
    estimate = decide(measured=MEASURED, refine="cascade", max_denoising_steps=10).predicted.quality
    assert estimate == pytest.approx(0.75 + 0.25 * 0.99 * 0.9, abs=0.005)
