"""The decision: of all plans that the policy allows, the best that fits the budget.

A pure function of request, signals, policy, latency model and measured accuracies, in less than 200
microseconds for 500 candidates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

from hybrid.deadline import format_duration
from hybrid.policies.candidates import Candidates, list_candidates
from hybrid.policies.latency import LatencyModel
from hybrid.policies.schema import Policy, QualitySection, RuleSection
from hybrid.policies.settings import resolve
from hybrid.types import Plan, Prediction, Rejection, Request, Signals


def plan(
    request: Request,
    signals: Signals,
    policy: Policy,
    latency: LatencyModel,
    quality: Mapping[str, QualitySection],
    said: RuleSection | None = None,
) -> Plan:
    """The best plan within the budget; raises RequestError for overrides that cannot be followed.

    `quality` holds measured accuracies by task, `said` is a rule for this request alone. Of equal
    plans the fastest is taken. If none fits at p95, the fastest is taken: the deadline then cuts it
    short if it must.
    """
    settings = resolve(request, signals, policy, said)
    candidates = list_candidates(settings, signals, latency, quality.get(signals.task or ""))
    budget = math.inf if settings.budget_s is None else settings.budget_s
    best = _best(candidates, budget)
    rule = settings.decided_by
    if best is None:
        best = min(range(len(candidates)), key=candidates.p95_s.__getitem__)
        rule += "; nothing fits the budget, so the fastest"
    chosen = candidates[best]
    return Plan(
        draft=(chosen.cap and replace(settings.sampler, max_denoising_steps=chosen.cap)) or None,
        refine=replace(settings.refine, mode=chosen.mode),
        max_new_tokens=settings.max_new_tokens,
        budget_s=settings.budget_s,
        predicted=chosen.predicted,
        rule=rule,
        rejected=Rejections(candidates, best, budget),
    )


def _best(candidates: Candidates, budget: float) -> int | None:
    """The place of the best candidate whose p95 is within the budget, if there is one."""
    best, best_quality, best_p50 = None, -1.0, math.inf
    columns = zip(candidates.p95_s, candidates.p50_s, candidates.quality, strict=True)
    for place, (p95, p50, quality) in enumerate(columns):
        better = quality > best_quality or (quality == best_quality and p50 < best_p50)
        if p95 <= budget and better:
            best, best_quality, best_p50 = place, quality, p50
    return best


@dataclass(frozen=True, slots=True)
class Rejections(Sequence[Rejection]):
    """The candidates that were not chosen, each with the reason; written out when they are read."""

    candidates: Candidates
    chosen: int
    budget: float

    def __len__(self) -> int:
        return len(self.candidates) - 1

    @overload
    def __getitem__(self, index: int) -> Rejection: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Rejection]: ...
    def __getitem__(self, index: int | slice) -> Rejection | Sequence[Rejection]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        candidate = self.candidates[place + (place >= self.chosen)]
        why = _why_not(candidate.predicted, self.candidates[self.chosen].predicted, self.budget)
        return Rejection(candidate.label, candidate.predicted, why)


def _why_not(predicted: Prediction, chosen: Prediction, budget: float) -> str:
    if predicted.latency_p95_s > budget:
        return f"p95 is {format_duration(predicted.latency_p95_s - budget)} over the budget"
    if predicted.quality < chosen.quality:
        return f"quality {predicted.quality:.2f} below {chosen.quality:.2f}"
    return "no better, and slower"
