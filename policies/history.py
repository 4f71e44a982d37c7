"""What is learned from requests while they are answered, and kept between runs.

The planner is given `History.latency`, a value; `learn` makes the next one. Half of what a
prediction would miss is the machine's speed, which changes within seconds and hits all plans alike:
it is followed by itself, from what each request took over what its own steps and tokens cost. So
are waits, which belong to no plan. Errors are learned against the prediction that the plan was made
with, before its own corrections: against later ones, concurrent requests would drive each other's.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock

from hybrid.files import read_regular_file
from hybrid.policies.latency import Latency, LatencyModel, TaskStatistics
from hybrid.policies.measurements import write_atomically
from hybrid.policies.records import (
    MAX_LOG_SLOWDOWN,
    USUAL_LEVEL,
    Obsolete,
    Records,
    service_s,
)
from hybrid.policies.slowdown import SlowdownEstimator
from hybrid.policies.waits import WaitEstimator
from hybrid.types import RefineMode, Result

MAX_BYTES = 16 << 20
_log = logging.getLogger(__name__)
_LEVEL_FOLLOWS, _LEAST_LEVEL, _MOST_LEVEL = 0.01, 0.9, 0.995


class History:
    """Learns from results; safe to use from several threads."""

    def __init__(
        self,
        costs: LatencyModel,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        archived: bool = False,
    ) -> None:
        """`file` is where to learn from and save to; `archived`: a run's own, however old."""
        self._file, self._clock, self._lock = file, clock, Lock()
        self._costs, self._basis = costs, basis(costs)
        found = read_records(file, self._basis, archived) if file else (Records(), "")
        self._kept, self.note = found
        if self.note:
            _log.warning("%s", self.note)
        self._new = Records()
        now = clock()
        self._slowdown = SlowdownEstimator(now)
        self._draft_wait, self._refine_wait = WaitEstimator(now), WaitEstimator(now)
        self._level = USUAL_LEVEL
        everything = self._kept.all.statistics(TaskStatistics())
        tasks = {task: record.statistics(everything) for task, record in self._kept.tasks.items()}
        self._latency = replace(costs, tasks=tasks, all_tasks=everything)

    @property
    def latency(self) -> LatencyModel:
        """The costs with all that is learned; slowdown and waits decay while nothing is seen."""
        with self._lock:
            now = self._clock()
            return replace(
                self._latency,
                slowdown=self._slowdown.at(now),
                draft_wait=self._draft_wait.at(now),
                refine_wait=self._refine_wait.at(now),
            )

    @property
    def requests(self) -> int:
        """How many requests were learned from, in all runs."""
        with self._lock:
            return self._kept.all.requests

    def usual_slowdown(self, mode: RefineMode) -> float:
        """Logarithm of what requests of a mode usually take over what they cost."""
        with self._lock:
            return self._kept.usual_slowdown(mode)

    def learn(self, result: Result) -> None:
        """Take in a finished request."""
        timing, mode = result.timing, result.plan.refine.mode
        if not (0 < timing.total_s < math.inf and 0 < timing.predicted_p50_s < math.inf):
            return
        draft_wait_s = result.draft.timing.waiting_s if result.draft else 0.0
        refined = result.verdict is not None or result.refinement is not None
        with self._lock:
            now = self._clock()
            if result.draft:
                self._draft_wait.follow(draft_wait_s, now)
            if mode != "none":
                self._refine_wait.follow(timing.waiting_s - draft_wait_s, now)
            if mode != "none" and not refined:  # the refiner failed or had no time: another plan
                return
            log_slowdown = math.log(service_s(result)) - math.log(cost_of(self._costs, result))
            log_slowdown = min(max(log_slowdown, -MAX_LOG_SLOWDOWN), MAX_LOG_SLOWDOWN)
            for records in (self._kept, self._new):
                records.add(result, log_slowdown)
            if timing.budget_s is None or timing.predicted_p95_s <= timing.budget_s:
                self._level = next_level(self._level, timing.total_s > timing.predicted_p95_s)
            self._conclude(result.signals.task)
            self._slowdown.follow(log_slowdown - self._kept.usual_slowdown(mode), now)

    def _conclude(self, task: str | None) -> None:
        """What follows from the task's requests and from all, each when it is due."""
        everything, tasks = self._latency.all_tasks, self._latency.tasks
        if self._kept.all.is_due:
            everything = self._kept.all.statistics(TaskStatistics(), self._level)
        if self._kept.tasks[task].is_due:
            tasks = {**tasks, task: self._kept.tasks[task].statistics(everything, self._level)}
        self._latency = replace(self._latency, tasks=tasks, all_tasks=everything)

    def save(self) -> None:
        """Add what was learned since the last time to the file, and to what others wrote there."""
        if self._file is None:
            return
        with self._lock:
            if not self._new.tasks:
                return
            records, _ = read_records(self._file, self._basis)
            records.extend(self._new)
            if write_atomically(self._file, json.dumps(records.to_json(self._basis, time.time()))):
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
    return cost_of_parts(
        costs,
        prompt_tokens=result.signals.prompt_tokens,
        draft_tokens=len(draft.token_ids) if draft else 0,
        canvases=len(draft.canvases) if draft else 0,
        steps=draft.steps if draft else 0,
        scored_by_itself=refine.mode != "none" and refine.scorer == "self",
        passes=result.usage.refiner_passes,
    )


def cost_of_parts(
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
    none = Latency(0.0, 0.0)
    measured = replace(costs, tasks={}, all_tasks=TaskStatistics(), slowdown=1.0)
    values = asdict(replace(measured, draft_wait=none, refine_wait=none))
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def read_records(file: Path, basis: str, archived: bool = False) -> tuple[Records, str]:
    """What is kept, and a note why what is there cannot be used."""
    try:
        values = json.loads(read_regular_file(file, MAX_BYTES))
        if archived:
            return Records.from_archive(values, basis), ""
        return Records.from_json(values, basis, time.time()), ""
    except FileNotFoundError:
        return Records(), ""
    except Obsolete as error:
        reason = str(error)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        reason = "is damaged or holds impossible values"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    return Records(), f"what was learned of latency starts anew: {file} {reason}"
