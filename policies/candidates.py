"""Every plan that a policy allows, with the latency and quality that each is expected to have.

Kept as columns, because a policy may allow hundreds and a decision has 200 microseconds: a
candidate costs a few multiplications, and becomes an object only where somebody reads it. For a
task that was not measured a prior stands in, which says only that the autoregressive model is
better and that steps have diminishing returns, levelling off at about 24: the gap between the
published models is 5 to 19 points (model card of DiffusionGemma, June 2026).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hybrid.modes import MODES
from hybrid.policies.forecast import Column, PlanLatency, forecast
from hybrid.policies.latency import LatencyModel, Quantiles
from hybrid.policies.schema import QualitySection
from hybrid.policies.settings import Settings
from hybrid.types import Prediction, QualitySource, RefineMode, Signals, plan_label

Points = tuple[tuple[int, float], ...]

_REFINER_PRIOR, _DRAFT_PRIOR, _STEPS_PRIOR = 0.92, 0.84, 6.0
_USED_PRIOR = 12.0  # steps used at p50 where nothing is measured; the model's guide says 12 to 16
_AGREEMENT_PRIOR = 0.7  # share of a draft of many steps that verify keeps
# The modes whose quality is a table's own figure: of drafts, and of the refiner alone.
_MEASURED: frozenset[RefineMode] = frozenset(
    mode
    for mode, facts in MODES.items()
    if facts.guarantee == "lossless" or not facts.changes_drafts
)


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


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Columns, an entry a candidate: cap, mode, latency (seconds) and quality (0 to 1)."""

    caps: list[int | None]
    modes: list[RefineMode]
    p50_s: Column
    p95_s: Column
    quality: Column
    service_p50_s: Column
    service_p95_s: Column
    sources: Mapping[RefineMode, QualitySource]

    def __len__(self) -> int:
        return len(self.caps)

    def __getitem__(self, index: int) -> Candidate:
        columns = (self.p50_s, self.p95_s, self.quality, self.service_p50_s, self.service_p95_s)
        source = self.sources.get(self.modes[index], "prior")
        p50_s, p95_s, quality, *service = (column[index].item() for column in columns)
        predicted = Prediction(p50_s, p95_s, quality, service[0], service[1], source)
        return Candidate(self.caps[index], self.modes[index], predicted)


@dataclass(frozen=True, slots=True)
class _Curves:
    """What is expected of a task, an entry a cap: steps used, share of the draft that the refiner
    keeps, and quality by refine mode, in whole per cents (no table is measured more finely).
    """

    used: tuple[float, ...]
    agreement: Column
    quality: Mapping[RefineMode, Column]
    measured: frozenset[RefineMode] = frozenset()


def list_candidates(
    settings: Settings,
    signals: Signals,
    latency: LatencyModel,
    measured: QualitySection | None,
) -> Candidates:
    """Every allowed combination of steps and refining, with its prediction."""
    task, prompt, most = signals.task, signals.prompt_tokens, settings.max_new_tokens
    if signals.blank_tokens:  # an infill's length is given
        tokens = Quantiles(min(signals.expected_tokens, most), min(signals.expected_tokens, most))
    else:
        tokens = latency.lengths(task, prompt, signals.length_hint, signals.expected_tokens, most)
    canvases = max(1, math.ceil(tokens.p50 / (latency.canvas_length or tokens.p50)))
    caps, curves = settings.steps, _curves(settings.steps, measured)
    request = forecast(
        latency,
        task,
        prompt,
        tokens,
        canvases,
        caps,
        curves.used,
        curves.agreement,
        settings.refine.scorer != "refiner",
        settings.refine.drafts,
        settings.refine.guide_every,
    )

    found: list[int | None] = []
    modes: list[RefineMode] = []
    latencies: list[PlanLatency] = []
    quality = []
    for mode in settings.modes:
        if mode == "generate":
            latencies.append(request.generate())
            found.append(None)
        else:
            latencies.append(request.draft_and(mode))
            found.extend(caps)
        modes.extend([mode] * len(latencies[-1].p50_s))
        quality.append(curves.quality[mode])
    source: QualitySource = measured.source if measured else "prior"
    sources = dict.fromkeys(curves.measured, source)
    p50_s, p95_s, *service = (np.concatenate(parts) for parts in zip(*latencies, strict=True))
    return Candidates(
        found, modes, p50_s, p95_s, np.concatenate(quality), service[0], service[1], sources
    )


def _curves(caps: tuple[int, ...], measured: QualitySection | None) -> _Curves:
    if measured is None:
        return _expect_by_prior(caps)
    tables = (measured.draft, measured.steps_used, measured.agreement, measured.cascade)
    return _expect(caps, *(tuple(sorted(table.items())) for table in tables), measured.refiner)


@lru_cache(maxsize=256)
def _expect(
    caps: tuple[int, ...],
    draft: Points,
    used: Points,
    agreement: Points,
    cascade: Points,
    refiner: float,
) -> _Curves:
    """From measurements at some caps to every cap, and by the prior where nothing is measured."""
    prior = _expect_by_prior(caps)
    steps = tuple(min(cap, interpolate(used, cap)) for cap in caps) if used else prior.used
    kept = prior.agreement
    if agreement:
        kept = np.array([interpolate(agreement, cap) for cap in caps])
    quality = qualities([interpolate(draft, cap) for cap in caps], refiner)
    known = _MEASURED
    if cascade:
        known |= {"cascade"}
        quality["cascade"] = np.array([round(interpolate(cascade, cap), 2) for cap in caps])
    return _Curves(steps, kept, quality, known)


@lru_cache(maxsize=256)
def _expect_by_prior(caps: tuple[int, ...]) -> _Curves:
    gained = [1 - math.exp(-cap / _STEPS_PRIOR) for cap in caps]
    return _Curves(
        used=tuple(min(cap, _USED_PRIOR) for cap in caps),
        agreement=np.array([_AGREEMENT_PRIOR * gain for gain in gained]),
        quality=qualities([_DRAFT_PRIOR * gain for gain in gained], _REFINER_PRIOR),
    )


def prior_quality(cap: int | None, mode: RefineMode) -> float:
    """What is expected of a plan for a task that nobody has measured; no cap: nothing drafted."""
    return float(_expect_by_prior((cap or 1,)).quality[mode][0])


def qualities(drafts: Sequence[float], refiner: float) -> dict[RefineMode, Column]:
    """Of drafts under every refine mode, and of the refiner alone.

    What a mode mends is a guess, which never ranks above both the draft and the refiner.
    """
    found: dict[RefineMode, Column] = {}
    for mode, facts in MODES.items():
        if facts.guarantee == "lossless":
            values = [refiner] * (len(drafts) if facts.needs_drafter else 1)
        elif facts.needs_refiner:
            mended = (q + (1 - q) * refiner * facts.mends for q in drafts)
            values = [min(m, max(q, refiner)) for q, m in zip(drafts, mended, strict=True)]
        else:
            several = facts.cost.drafts == "several"  # another draft is as often right as this one
            values = [q + (1 - q) * (q if several else 1.0) * facts.mends for q in drafts]
        found[mode] = np.array([round(value, 2) for value in values])
    return found


def interpolate(points: Points, x: int) -> float:
    """The value at `x`, linear between sorted points and flat outside them."""
    lower = max((p for p in points if p[0] <= x), default=points[0])
    upper = min((p for p in points if p[0] >= x), default=points[-1])
    if upper[0] <= lower[0]:
        return lower[1] if x >= lower[0] else upper[1]
    share = (x - lower[0]) / (upper[0] - lower[0])
    return lower[1] + share * (upper[1] - lower[1])
