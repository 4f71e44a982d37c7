"""The decision: of all plans that the policy allows, the best that fits the budget.

A pure function of request, signals, policy, latency model and measured accuracies, in less than 200
microseconds for 500 candidates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

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
        best = int(candidates.p95_s.argmin())
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
    fits = candidates.p95_s <= budget
    quality = np.where(fits, candidates.quality, -1.0)
    best = quality.max()
    if best < 0:
        return None
    return int(np.where(quality == best, candidates.p50_s, np.inf).argmin())


@dataclass(frozen=True, slots=True, eq=False)
class Rejections(Sequence[Rejection]):
    """The candidates that were not chosen, each with the reason; written out when they are read."""

    candidates: Candidates
    chosen: int
    budget: float

    def __len__(self) -> int:
        return len(self.candidates) - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    def __hash__(self) -> int:
        return hash((self.chosen, self.budget, len(self)))

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
