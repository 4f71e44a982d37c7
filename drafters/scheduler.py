"""Which waiting sequences are admitted to an engine, and which of its sequences step next.

As a rule all running sequences step together: that yields the most tokens a second. But a step
cannot be interrupted, and on a CPU it takes as long as it has rows. So urgent sequences step alone,
and while budgets are short, others step in small groups, so that a new urgent request waits less.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybrid.deadline import Deadline
from hybrid.drafters.sequence import DraftSequence
from hybrid.priority import MAX_PATIENCE_S, PriorityQueue

_STEP_SHARE = 0.2  # of the shortest recent budget, for one step
_NUM_BUDGETS = 64  # recent budgets that count
_MIN_GROUP = 2  # rows: 1.9 ms each where 8 take 1.6 and 1 takes 2.7 (embedded pair)


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """The sequences of one denoising step: the urgent ones, or all, or the next small group."""

    sequences: Sequence[DraftSequence]
    is_urgent: bool
    is_all: bool


class Scheduler:
    """One engine's running sequences; the `waiting` ones are shared by all engines of a drafter.

    `max_batch_size` sequences run at a time, of at most `max_total_tokens` tokens each.
    `rows_cost_time` says that a step takes longer with more rows, as on a CPU.
    """

    def __init__(
        self,
        waiting: PriorityQueue[DraftSequence],
        max_batch_size: int,
        max_total_tokens: int,
        rows_cost_time: bool,
        num_engines: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiting, self._num_engines = waiting, num_engines
        self.max_total_tokens = max_total_tokens
        self._rows_cost_time, self._clock = rows_cost_time, clock
        self._free_rows = list(range(max_batch_size - 1, -1, -1))
        self.running: list[DraftSequence] = []  # whoever has just stepped is last
        self._stepped_at: dict[DraftSequence, float] = {}
        self._row_s = 0.0  # of the last step of many, or of a prefill before there was one
        self._budgets_s: deque[float] = deque(maxlen=_NUM_BUDGETS)

    def admit(self) -> list[DraftSequence]:
        """The waiting sequences that start now, each with a row of the cache.

        First come those with the least time, as many as rows are free and as are this engine's
        share. Urgent ones do not wait until all others' prompts are read.
        """
        admitted: list[DraftSequence] = []
        has_urgent = any(self.is_urgent(sequence.job.deadline) for sequence in self.running)
        with self._waiting.lock:
            limit = min(len(self._free_rows), -(-len(self._waiting) // self._num_engines))
            while self._waiting and len(admitted) < limit:
                first = self._waiting.first
                if first.max_total_tokens > self.max_total_tokens:
                    break  # it needs an engine with a larger cache, once this one is empty
                is_urgent = first.priority.is_due or self.is_urgent(first.job.deadline, limit)
                if has_urgent and not is_urgent:
                    break
                has_urgent |= is_urgent
                admitted.append(self._waiting.pop())
        for sequence in admitted:
            sequence.row = self._free_rows.pop()
            sequence.waiting_s = time.perf_counter() - sequence.enqueued_at
            self._stepped_at[sequence] = self._clock()
        self.running += admitted
        return admitted

    def schedule(self) -> ScheduledStep:
        """The next step. It is empty while the time of some has run out: those finish first."""
        if any(sequence.has_canvas_ended and sequence.step for sequence in self.running):
            return ScheduledStep((), is_urgent=True, is_all=False)
        now, count = self._clock(), len(self.running)
        urgent = [
            sequence
            for sequence in self.running
            if self.is_urgent(sequence.job.deadline)
            or now > self._stepped_at[sequence] + MAX_PATIENCE_S
        ]
        chosen = urgent or self.running[: self._group_size(count)]
        self.running = [s for s in self.running if s not in chosen] + chosen
        return ScheduledStep(chosen, bool(urgent), len(chosen) == count)

    def remove(self, sequence: DraftSequence) -> None:
        """The sequence is finished: its row is free."""
        self.running.remove(sequence)
        del self._stepped_at[sequence]
        self._free_rows.append(sequence.row)

    def is_urgent(self, deadline: Deadline, joining: int = 0) -> bool:
        """Whether a deadline cannot wait for a step of all rows, with those `joining`."""
        return deadline.remaining_s < 2 * (len(self.running) + joining) * self._row_s

    def record_prefill(self, admitted: Sequence[DraftSequence], seconds: float) -> None:
        """Reading the prompts of these sequences took so long."""
        self._budgets_s.extend(sequence.job.deadline.remaining_s for sequence in admitted)
        self._row_s = self._row_s or seconds / len(admitted)

    def record_step(self, step: ScheduledStep, seconds: float) -> None:
        """The step took so long."""
        self._stepped_at |= dict.fromkeys(step.sequences, self._clock())
        if step.is_all or not step.is_urgent:
            self._row_s = seconds / len(step.sequences)

    def _group_size(self, count: int) -> int:
        if not self._rows_cost_time or not self._row_s:
            return count
        return max(_MIN_GROUP, int(min(count, _STEP_SHARE * min(self._budgets_s) / self._row_s)))
