"""What each plan for one request will take, as columns: an entry a cap on denoising steps.

All that depends on the request is worked out once; what remains is arithmetic on whole columns.
Medians are added, and so are 95th percentiles, because what slows one part slows all; that steps
and tokens are seldom at their most together is left to the correction that is learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybrid.modes import MODES, Cost
from hybrid.policies.latency import Latency, LatencyModel, Quantiles, cap_range
from hybrid.types import RefineMode

Column = NDArray[np.float64]
Columns = tuple[Column, Column]
MAX_FACTOR = 30.0  # of corrections and slowdown together
_ANOTHER_ROW = 0.55  # of a draft's time, for one more in its batch: the embedded pair on a CPU
_REDONE = 0.5  # share of drafts that repair finds something in, until that is learned
_UNKNOWN = Quantiles(float("nan"), float("nan"))


class PlanLatency(NamedTuple):
    """Seconds at p50 and p95, and as `Prediction.service_p50_s` and `service_p95_s`."""

    p50_s: Column
    p95_s: Column
    service_p50_s: Column
    service_p95_s: Column


@dataclass(frozen=True, slots=True)
class Forecast:
    """One request's plans under one latency model, a draft at every one of `caps` worked out.

    `drafts_s` are the drafts' medians and `late_s` their 95th percentiles, uncorrected. With
    `by_itself`, the draft is judged by its own scores; `kept` is the share of it that the refiner
    is expected to keep, where nothing is learned; `drafts` are how many `best_of` chooses from,
    `review_every` the steps between two reviews of `guide`.
    """

    latency: LatencyModel
    task: str | None
    prompt_tokens: int
    tokens: Quantiles
    caps: tuple[int, ...]
    drafts_s: Column
    late_s: Column
    kept: Column
    by_itself: bool = False
    drafts: int = 1
    review_every: int = 1
    _known: dict[RefineMode, PlanLatency] = field(default_factory=dict)

    def generate(self) -> PlanLatency:
        """The refiner alone; the pass over the prompt yields the first token."""
        start = self.latency.overhead() + self.latency.read(self.prompt_tokens)
        rest = self.latency.write(max(0.0, self.tokens.p50 - 1), max(0.0, self.tokens.p95 - 1))
        alone, wait = start + rest, self.latency.refine_wait
        found = self._corrected("generate", np.array([alone.p50_s]), np.array([alone.p95_s]))
        return found._replace(p50_s=found.p50_s + wait.p50_s, p95_s=found.p95_s + wait.p95_s)

    def draft_and(self, mode: RefineMode) -> PlanLatency:
        """A draft at each cap, refined so, waiting included.

        Corrections are learned for each mode by itself, so they could make a plan look faster than
        a part of it (`Mode.contains`), which no plan is.
        """
        found, wait = self._without_waiting(mode), self.latency.draft_wait
        if mode != "none":
            wait += self.latency.refine_wait
        if not wait.p95_s:
            return found
        return found._replace(p50_s=found.p50_s + wait.p50_s, p95_s=found.p95_s + wait.p95_s)

    def _without_waiting(self, mode: RefineMode) -> PlanLatency:
        if mode not in self._known:
            found = self._corrected(mode, *self._service(mode))
            # Without corrections, a mode's parts are summands of its own latency.
            parts = MODES[mode].contains if self._is_corrected else ()
            for part in parts:
                if part != mode:
                    inner = self._without_waiting(part)
                    p50_s = np.maximum(found.p50_s, inner.p50_s)
                    p95_s = np.maximum(found.p95_s, inner.p95_s)
                    found = PlanLatency(p50_s, p95_s, *found[2:])
            self._known[mode] = found
        return self._known[mode]

    @property
    def _is_corrected(self) -> bool:
        known = self.latency.tasks.get(self.task, self.latency.all_tasks)
        return bool(known.corrections or self.latency.all_tasks.corrections)

    def _corrected(self, mode: RefineMode, usual: Column, most: Column) -> PlanLatency:
        factors, slowdown = self.latency.correction(self.task, mode), self.latency.slowdown
        by_p50 = min(factors.p50 * slowdown, MAX_FACTOR)
        by_p95 = min(factors.p95 * slowdown, MAX_FACTOR)
        p50_s, p95_s = usual * by_p50, most * by_p95
        if by_p95 < by_p50:
            p95_s = np.maximum(p95_s, p50_s)
        if slowdown != 1.0:
            usual, most = usual * slowdown, most * slowdown
        return PlanLatency(p50_s, p95_s, usual, most)

    def _service(self, mode: RefineMode) -> Columns:
        """p50 and p95 as the parts cost, at the machine's usual speed."""
        cost = MODES[mode].cost
        read = self._reading(cost)
        usual, most = self.drafts_s + read.p50_s, self.late_s + read.p95_s
        if cost.drafts == "several":
            rows = 1 + _ANOTHER_ROW * (self.drafts - 1)
            usual, most = usual * rows, most * rows
        elif cost.drafts == "again":  # some drafts are denoised a second time
            usual, most = usual + _REDONE * self.drafts_s, most + self.late_s
        if cost.reviews:
            reviews = np.ceil(_column(self.caps) / self.review_every)
            usual, most = usual + reviews * read.p50_s, most + reviews * read.p95_s
        if cost.writes == "what differs":
            more, at_most = self._writing(mode)
            usual, most = usual + more, most + at_most
        return usual, most

    def _reading(self, cost: Cost) -> Latency:
        """The refiner's pass over the draft, or the drafter's own."""
        if cost.reads == "nobody":
            return Latency(0.0, 0.0)
        if self.by_itself and cost.reads == "scorer":
            return self.latency.commit(1)
        return self.latency.read(self.prompt_tokens + self.tokens.p50)

    def _writing(self, mode: RefineMode) -> Columns:
        """What the refiner writes after a draft at each cap: seconds at p50 and p95."""
        writing = self.latency.write(self.tokens.p50, self.tokens.p95)
        if (
            self.by_itself and MODES[mode].cost.reads == "scorer"
        ):  # the refiner reads only what fails
            writing += self.latency.read(self.prompt_tokens + self.tokens.p50)
        known = self.latency.tasks.get(self.task)
        learned = known.written if known else {}
        shares = {place: learned.get((mode, place)) for place in _ranges(self.caps)[1]}
        usual, most = _by_range(self.caps, shares, 1 - self.kept, np.ones_like(self.kept))
        return usual * writing.p50_s, most * writing.p95_s


def forecast(
    latency: LatencyModel,
    task: str | None,
    prompt_tokens: int,
    tokens: Quantiles,
    canvases: int,
    caps: tuple[int, ...],
    used: Sequence[float],
    kept: Column,
    by_itself: bool = False,
    drafts: int = 1,
    review_every: int = 1,
) -> Forecast:
    """For drafts of `canvases` canvases that use `used` steps each, an entry a cap,
    where nothing else is learned; see `Forecast` for the rest.
    """
    start = latency.overhead() + latency.prefill(prompt_tokens) + latency.commit(canvases - 1)
    step, limits = latency.step(prompt_tokens), _column(caps)
    shares = {place: latency.share_used(task, place) for place in _ranges(caps)[1]}
    expected = canvases * _column(tuple(used)) / limits
    usual, most = _by_range(caps, shares, expected, np.full_like(limits, canvases))
    drafts_s = start.p50_s + usual * (limits * step.p50_s)
    late_s = start.p95_s + most * (limits * step.p95_s)
    plans = (kept, by_itself, drafts, review_every)
    return Forecast(latency, task, prompt_tokens, tokens, caps, drafts_s, late_s, *plans)


def _by_range(
    caps: tuple[int, ...],
    shares: Mapping[int, Quantiles | None],
    expected: Column,
    most: Column,
) -> Columns:
    """What is learned of each cap's range, as p50 and p95, else `expected` and `most`."""
    if not any(shares.values()):
        return expected, most
    places, ranges = _ranges(caps)
    learned = [shares[place] or _UNKNOWN for place in ranges]
    medians = np.array([share.p50 for share in learned])[places]
    slowest = np.array([share.p95 for share in learned])[places]
    is_known = ~np.isnan(medians)
    return np.where(is_known, medians, expected), np.where(is_known, slowest, most)


@lru_cache(maxsize=256)
def _column(values: tuple[float, ...]) -> Column:
    return np.array(values, dtype=np.float64)


@lru_cache(maxsize=256)
def _ranges(caps: tuple[int, ...]) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Each cap's range, as a place among the different ones."""
    ranges = tuple(sorted({cap_range(cap) for cap in caps}))
    return np.array([ranges.index(cap_range(cap)) for cap in caps], dtype=np.int64), ranges
