"""What is learned from requests while they are answered, and kept between runs.

The planner is given `History.latency`, a value; `learn` makes the next one. Half of what a
prediction would miss is the machine's pace, which changes within seconds and hits all plans alike:
it is followed by itself, from what each request took over what its own steps and tokens cost.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock

from hybrid.policies.latency import LatencyModel, Work
from hybrid.policies.measurements import write_atomically
from hybrid.policies.pace import Pace
from hybrid.policies.records import USUAL_LEVEL, Records
from hybrid.types import RefineMode, Result

MOST_BYTES = 16 << 20
_LEVEL_FOLLOWS, _LEAST_LEVEL, _MOST_LEVEL = 0.01, 0.9, 0.995


class History:
    """Learns from results; safe to use from several threads."""

    def __init__(
        self,
        costs: LatencyModel,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._clock, self._lock = file, clock, Lock()
        self._costs, self._basis = costs, basis(costs)
        self._kept = read_records(file, self._basis) if file else Records()
        self._new = Records()
        self._pace = Pace(clock())
        self._level = USUAL_LEVEL
        everything = self._kept.all.work(Work())
        work = {task: record.work(everything) for task, record in self._kept.tasks.items()}
        self._latency = replace(costs, work=work, all_work=everything)

    @property
    def latency(self) -> LatencyModel:
        """The costs with all that is learned; the pace counts less the longer it was not seen."""
        with self._lock:
            return replace(self._latency, pace=self._pace.at(self._clock()))

    @property
    def requests(self) -> int:
        """How many requests were learned from, in all runs."""
        with self._lock:
            return self._kept.all.requests

    def usual_pace(self, mode: RefineMode) -> float:
        """Logarithm of what requests of a mode usually take over what they cost."""
        with self._lock:
            return self._kept.usual_pace(mode)

    def learn(self, result: Result) -> None:
        """Take in a finished request."""
        timing, mode = result.timing, result.plan.refine.mode
        refined = result.verdict is not None or result.refinement is not None
        if mode != "none" and not refined:  # the refiner failed or had no time: another plan's work
            return
        if not (0 < timing.total_s < math.inf and 0 < timing.predicted_p50_s < math.inf):
            return
        task = result.signals.task
        with self._lock:
            corrected = self._latency.correction(task, mode)  # the pace is no part of it: 1.0
            log_pace = math.log(timing.total_s / cost_of(self._costs, result))
            for records in (self._kept, self._new):
                records.add(result, corrected, log_pace)
            if timing.budget_s is None or timing.predicted_p95_s <= timing.budget_s:
                self._level = next_level(self._level, timing.total_s > timing.predicted_p95_s)
            self._conclude(task)
            self._pace.follow(log_pace - self._kept.usual_pace(mode), self._clock())

    def _conclude(self, task: str | None) -> None:
        """What follows from the task's requests and from all, each when it is due."""
        everything, work = self._latency.all_work, self._latency.work
        if self._kept.all.is_due:
            everything = self._kept.all.work(Work(), self._level)
        if self._kept.tasks[task].is_due:
            work = {**work, task: self._kept.tasks[task].work(everything, self._level)}
        self._latency = replace(self._latency, work=work, all_work=everything)

    def save(self) -> None:
        """Add what was learned since the last time to the file, and to what others wrote there."""
        if self._file is None:
            return
        with self._lock:
            if not self._new.tasks:
                return
            records = read_records(self._file, self._basis)
            records.extend(self._new)
            if write_atomically(self._file, json.dumps(records.to_json(self._basis))):
                self._new = Records()


def next_level(level: float, is_late: bool) -> float:
    """The quantile of past errors to add to a p95, after a prediction that was exceeded or not.

    Exactly one in twenty is exceeded at length, whatever errors are like: the planner prefers plans
    that look faster than they are, so the 95th percentile of errors is exceeded by 7 of 100
    (adaptive conformal inference, Gibbs and Candès 2021).
    """
    level += _LEVEL_FOLLOWS * (is_late - (1 - USUAL_LEVEL))
    return min(max(level, _LEAST_LEVEL), _MOST_LEVEL)


def cost_of(costs: LatencyModel, result: Result) -> float:
    """Seconds that the steps and tokens of a request cost at the median; never zero."""
    draft, refine = result.draft, result.plan.refine
    return cost_of_work(
        costs,
        prompt_tokens=result.signals.prompt_tokens,
        draft_tokens=len(draft.token_ids) if draft else 0,
        canvases=len(draft.canvases) if draft else 0,
        steps=draft.steps if draft else 0,
        scored_by_itself=refine.mode != "none" and refine.scorer == "self",
        passes=result.usage.refiner_passes,
    )


def cost_of_work(
    costs: LatencyModel,
    *,
    prompt_tokens: int,
    draft_tokens: int,
    canvases: int,
    steps: int,
    scored_by_itself: bool,
    passes: int,
) -> float:
    """Seconds at the median of a draft of so many canvases and steps, and of the refiner's passes;
    never zero.
    """
    seconds = costs.overhead().p50_s
    if canvases:
        seconds += costs.prefill(prompt_tokens).p50_s + steps * costs.step(prompt_tokens).p50_s
        seconds += costs.commit(canvases - 1 + scored_by_itself).p50_s
    if passes:
        read = costs.read(prompt_tokens + draft_tokens)
        seconds += read.p50_s + costs.write(passes - 1, 0).p50_s
    return max(seconds, 1e-9)


def basis(costs: LatencyModel) -> str:
    """A name for the costs that errors were learned with."""
    values = asdict(replace(costs, work={}, all_work=Work(), pace=1.0))
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def read_records(file: Path, basis: str) -> Records:
    """What is kept; nothing where there is nothing that can be read."""
    try:
        if file.stat().st_size > MOST_BYTES:
            return Records()
        return Records.from_json(json.loads(file.read_text("utf-8")), basis)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Records()
