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
from typing import Any

from hybrid.policies.latency import LatencyModel, Work
from hybrid.policies.measurements import write_atomically
from hybrid.policies.records import Record
from hybrid.types import RefineMode, Result

VERSION = 1
MOST_TASKS, MOST_BYTES = 64, 4 << 20
_FAST, _SLOW = 0.3, 0.03  # share of an error by which pace and bias move
_PACE_LASTS_S = 10.0


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
        self._records = read_records(file, self._basis) if file else {}
        self._new: dict[str | None, Record] = {}
        self._all = Record()
        for record in self._records.values():
            self._all.extend(record)
        self._bias: dict[RefineMode, float] = {}
        self._log_pace, self._paced_at = 0.0, clock()
        everything = self._all.work(Work())
        work = {task: record.work(everything) for task, record in self._records.items()}
        self._latency = replace(costs, work=work, all_work=everything)

    @property
    def latency(self) -> LatencyModel:
        """The costs with all that is learned; the pace counts less the longer it was not seen."""
        with self._lock:
            return replace(self._latency, pace=math.exp(self._current_log_pace()))

    @property
    def requests(self) -> int:
        """How many requests were learned from, in all runs."""
        with self._lock:
            return self._all.requests

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
            for records in (self._records, self._new):
                records.setdefault(task, Record()).add(result, corrected)
            self._all.add(result, corrected)
            everything = self._all.work(Work())
            work = {**self._latency.work, task: self._records[task].work(everything)}
            self._latency = replace(self._latency, work=work, all_work=everything)
            self._follow_pace(mode, math.log(timing.total_s / cost_of(self._costs, result)))

    def save(self) -> None:
        """Add what was learned since the last time to the file, and to what others wrote there."""
        if self._file is None:
            return
        with self._lock:
            if not self._new:
                return
            kept = read_records(self._file, self._basis)
            for task, record in self._new.items():
                kept.setdefault(task, Record()).extend(record)
            latest = [*(t for t in kept if t not in self._new), *self._new][-MOST_TASKS:]
            tasks = [{"task": task, **kept[task].to_json()} for task in latest]
            text = json.dumps({"version": VERSION, "basis": self._basis, "tasks": tasks})
            if write_atomically(self._file, text):
                self._new = {}

    def _current_log_pace(self) -> float:
        since = max(0.0, self._clock() - self._paced_at)
        return self._log_pace * math.exp(-since / _PACE_LASTS_S)

    def _follow_pace(self, mode: RefineMode, error: float) -> None:
        """`error`: logarithm of what the request took over what its work costs."""
        bias = self._bias.setdefault(mode, error)
        pace = self._current_log_pace()
        pace += _FAST * (error - bias - pace)
        self._bias[mode] = bias + _SLOW * (error - bias - pace)
        self._log_pace, self._paced_at = min(max(pace, -3.0), 3.0), self._clock()


def cost_of(costs: LatencyModel, result: Result) -> float:
    """Seconds that the steps and tokens of a request cost at the median; never zero."""
    prompt, draft = result.signals.prompt_tokens, result.draft
    seconds = costs.overhead().p50_s
    if draft is not None:
        by_itself = result.plan.refine.mode != "none" and result.plan.refine.scorer == "self"
        seconds += costs.prefill(prompt).p50_s + draft.steps * costs.step(prompt).p50_s
        seconds += costs.commit(len(draft.canvases) - 1 + by_itself).p50_s
    passes = result.usage.refiner_passes
    if passes:
        read = prompt + (len(draft.token_ids) if draft else 0)
        seconds += costs.read(read).p50_s + costs.write(passes - 1, 0).p50_s
    return max(seconds, 1e-9)


def basis(costs: LatencyModel) -> str:
    """A name for the costs that errors were learned with."""
    values = asdict(replace(costs, work={}, all_work=Work(), pace=1.0))
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def read_records(file: Path, basis: str) -> dict[str | None, Record]:
    """What is kept, by task; nothing where there is nothing that can be read."""
    try:
        if file.stat().st_size > MOST_BYTES:
            return {}
        values = json.loads(file.read_text("utf-8"))
        if values["version"] != VERSION:
            return {}
        records = {_task(entry): Record.from_json(entry) for entry in values["tasks"]}
        is_same = values["basis"] == basis
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    if not is_same:
        for record in records.values():
            record.forget_errors()
    return records


def _task(entry: dict[str, Any]) -> str | None:
    task = entry["task"]
    if not isinstance(task, str | None):
        raise ValueError(task)
    return task
