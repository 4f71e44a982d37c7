"""The decision: of all plans that the policy allows, the best that fits the budget.

A pure function of request, signals, policy, latency model and measured accuracies. For a task that
was not measured, a prior stands in, which says only that the
autoregressive model is better and that steps have diminishing returns, levelling off at about 24:
the gap between the published models is 5 to 19 points (model card of DiffusionGemma, June 2026).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hybrid.deadline import format_duration
from hybrid.policies.latency import Latency, LatencyModel
from hybrid.policies.schema import Policy, QualitySection
from hybrid.policies.settings import Settings, resolve
from hybrid.types import (
    Plan,
    Prediction,
    RefineMode,
    Rejection,
    Request,
    Signals,
    plan_label,
)

_REFINER_PRIOR, _DRAFT_PRIOR, _STEPS_PRIOR = 0.92, 0.84, 6.0
_USED_PRIOR = 12.0  # steps used at p50 where nothing is measured; the model's guide says 12 to 16
_CASCADE_RECOVERY = 0.9  # share of a draft's failures that a cascade notices and mends
_LONGER_ANSWER = 1.5  # p95 of an answer's length, relative to the expected one


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan on paper: a cap on steps (None: nothing is drafted) and a refine mode."""

    cap: int | None
    mode: RefineMode
    predicted: Prediction

    @property
    def label(self) -> str:
        """The candidate in a few words."""
        return plan_label(self.cap, self.mode)


def plan(
    request: Request,
    signals: Signals,
    policy: Policy,
    latency: LatencyModel,
    quality: Mapping[str, QualitySection],
) -> Plan:
    """The best plan within the budget; raises RequestError for overrides that cannot be followed.

    `quality` holds measured accuracies by task. If no candidate fits at p95, the fastest is taken:
    the deadline then cuts it short if it must.
    """
    settings = resolve(request, signals, policy)
    candidates = list_candidates(settings, signals, latency, quality.get(signals.task or ""))
    budget = math.inf if settings.budget_s is None else settings.budget_s
    fitting = [c for c in candidates if c.predicted.latency_p95_s <= budget]
    # Differences below a percent are ties: no table is measured more finely.
    chosen = (
        max(fitting, key=lambda c: (round(c.predicted.quality, 2), -c.predicted.latency_p50_s))
        if fitting
        else min(candidates, key=lambda c: c.predicted.latency_p95_s)
    )
    rule = settings.decided_by + ("" if fitting else "; nothing fits the budget, so the fastest")
    return Plan(
        draft=(chosen.cap and replace(settings.sampler, max_denoising_steps=chosen.cap)) or None,
        refine=replace(settings.refine, mode=chosen.mode),
        max_new_tokens=settings.max_new_tokens,
        budget_s=settings.budget_s,
        predicted=chosen.predicted,
        rule=rule,
        rejected=tuple(
            Rejection(c.label, c.predicted, _why_not(c, chosen, budget))
            for c in candidates
            if c is not chosen
        ),
    )


def list_candidates(
    settings: Settings,
    signals: Signals,
    latency: LatencyModel,
    measured: QualitySection | None,
) -> list[Candidate]:
    """Every allowed combination of steps and refining, with its prediction."""
    tokens = min(signals.expected_tokens, settings.max_new_tokens)
    canvases = max(1, math.ceil(tokens / (latency.canvas_length or tokens)))
    candidates = []
    for mode in settings.modes:
        refining = _refine_latency(mode, settings, signals, tokens, measured, latency)
        for cap in (None,) if mode == "generate" else settings.steps:
            total = refining
            if cap is not None:
                used = _steps_used(cap, measured)
                total += latency.draft(signals.prompt_tokens, used, cap, canvases)
            quality = _quality(cap, mode, measured)
            candidates.append(Candidate(cap, mode, Prediction(total.p50_s, total.p95_s, quality)))
    return candidates


def _refine_latency(
    mode: RefineMode,
    settings: Settings,
    signals: Signals,
    tokens: int,
    measured: QualitySection | None,
    latency: LatencyModel,
) -> Latency:
    longest = min(tokens * _LONGER_ANSWER, settings.max_new_tokens)
    if mode == "none" or (mode == "score" and settings.refine.scorer == "self"):
        return Latency(0.0, 0.0)
    if mode == "generate":
        return latency.read(signals.prompt_tokens) + latency.write(tokens, longest)
    reading = latency.read(signals.prompt_tokens + tokens)
    if mode == "score":
        return reading
    agreement = measured.agreement if measured else 0.7
    rest = latency.write((1 - agreement) * tokens, longest)
    if mode == "cascade" and settings.refine.scorer == "self":
        reading = Latency(reading.p50_s * (1 - agreement), reading.p95_s)
    return reading + rest


def _quality(cap: int | None, mode: RefineMode, measured: QualitySection | None) -> float:
    refiner = measured.refiner if measured else _REFINER_PRIOR
    if cap is None or mode == "verify":
        return refiner
    if measured:
        draft = interpolate(measured.draft, cap)
    else:
        draft = _DRAFT_PRIOR * (1 - math.exp(-cap / _STEPS_PRIOR))
    if mode == "cascade":
        return draft + (1 - draft) * refiner * _CASCADE_RECOVERY
    return draft


def _steps_used(cap: int, measured: QualitySection | None) -> float:
    if measured and measured.steps_used:
        return min(cap, interpolate(measured.steps_used, cap))
    return min(cap, _USED_PRIOR)


def interpolate(table: Mapping[int, float], x: int) -> float:
    """The value at `x`, linear between a table's points and flat outside them."""
    points = sorted(table.items())
    lower = max((p for p in points if p[0] <= x), default=points[0])
    upper = min((p for p in points if p[0] >= x), default=points[-1])
    if upper[0] <= lower[0]:
        return lower[1] if x >= lower[0] else upper[1]
    share = (x - lower[0]) / (upper[0] - lower[0])
    return lower[1] + share * (upper[1] - lower[1])


def _why_not(candidate: Candidate, chosen: Candidate, budget: float) -> str:
    predicted = candidate.predicted
    if predicted.latency_p95_s > budget:
        over = format_duration(predicted.latency_p95_s - budget)
        return f"p95 is {over} over the budget"
    if round(predicted.quality, 2) < round(chosen.predicted.quality, 2):
        return f"quality {predicted.quality:.2f} below {chosen.predicted.quality:.2f}"
    return "no better, and slower"
