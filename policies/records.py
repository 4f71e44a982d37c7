"""What is remembered of a task's latest requests, and the `TaskStatistics` that follow from it.

A window of the latest 100 of everything: old enough to tell a 95th percentile, young enough that a
machine or a model that changes is followed within some dozens of requests.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hybrid.policies.latency import NEAREST, Lengths, Quantiles, TaskStatistics, cap_range, quantile
from hybrid.types import RefineMode, Result

VERSION, WINDOW, MAX_TASKS = 2, 100, 64
MAX_AGE_S = 30 * 86_400.0
_MAX_LOG_ERROR = 2.3  # an error counts as a factor of ten at most
_MAX_SHARE = 256.0  # of a cap (all canvases together) or of an answer
MAX_LOG_SLOWDOWN, _MAX_TOKENS = 12.0, 10**7
USUAL_LEVEL = 0.95  # of a p95
_ENOUGH_FOR_MEDIAN, _ENOUGH_FOR_P95 = 6, 20
_CLEARLY = (
    0.8  # of what prompts' lengths miss, amounts may miss to be what tells an answer's length
)
_ALWAYS, _SELDOM = 40, 5  # requests
_NONE = Quantiles(1.0, 1.0)


class Obsolete(Exception):
    """Records that are not used any more, and why."""


def _window() -> deque[Any]:
    return deque(maxlen=WINDOW)


@dataclass(slots=True)
class Record:
    """One task's latest requests.

    `lengths` are prompt tokens, length hints (see `Signals`) and answer tokens; `used` and
    `written` are shares as in `TaskStatistics`; `errors` are logarithms of what a request took,
    without waiting, over its uncorrected prediction, p50 and p95.
    """

    requests: int = 0
    lengths: deque[tuple[int, int, int]] = field(default_factory=_window)
    used: dict[int, deque[float]] = field(default_factory=dict)
    written: dict[tuple[RefineMode, int], deque[float]] = field(default_factory=dict)
    errors: dict[RefineMode, deque[tuple[float, float]]] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        """Remember a request."""
        self.requests += 1
        plan, draft, mode = result.plan, result.draft, result.plan.refine.mode
        is_cut = result.finish_reason == "budget"
        if not is_cut:
            if not result.signals.blank_tokens:
                signals = result.signals
                length = signals.prompt_tokens, signals.length_hint, len(result.token_ids)
                self.lengths.append(length)
            if draft and plan.draft:
                cap = plan.draft.max_denoising_steps
                self.used.setdefault(cap_range(cap), _window()).append(draft.steps / cap)
                if mode in ("cascade", "verify"):
                    written = max(0, result.usage.refiner_passes - 1)
                    share = written / max(1, len(result.token_ids))
                    self.written.setdefault((mode, cap_range(cap)), _window()).append(share)
        timing = result.timing
        # A request that was cut short says something only where it was already late.
        if not is_cut or timing.total_s > timing.predicted_p95_s:
            predicted, took_s = plan.predicted, service_s(result)
            median = _log_error(took_s, predicted.service_p50_s or timing.predicted_p50_s)
            slow = _log_error(took_s, predicted.service_p95_s or timing.predicted_p95_s)
            self.errors.setdefault(mode, _window()).append((median, slow))

    def extend(self, later: "Record") -> None:
        """Remember also what came later."""
        self.requests += later.requests
        self.lengths.extend(later.lengths)
        for name in ("used", "written", "errors"):
            mine, new = getattr(self, name), getattr(later, name)
            for key, values in new.items():
                mine.setdefault(key, _window()).extend(values)

    @property
    def is_due(self) -> bool:
        """Whether it is time to see what follows: always at first, then after some more requests.

        It takes half a millisecond, and a window of a hundred changes slowly.
        """
        return self.requests <= _ALWAYS or self.requests % _SELDOM == 0

    def statistics(self, others: TaskStatistics, level: float = USUAL_LEVEL) -> TaskStatistics:
        """What follows; where a correction is known from too few requests, that of `others`.

        `level` is the quantile of the errors that corrects a p95.
        """
        shares = {cap: _quantiles(values) for cap, values in self.used.items()}
        written = {key: _quantiles(values) for key, values in self.written.items()}
        return TaskStatistics(
            requests=self.requests,
            lengths=_lengths(self.lengths),
            used={cap: share for cap, share in shares.items() if share},
            written={key: share for key, share in written.items() if share},
            corrections={
                mode: _correction(errors, level, others.corrections.get(mode, _NONE))
                for mode, errors in self.errors.items()
            },
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values; a mode and a range of caps are written 'verify/4'."""
        return {
            "requests": self.requests,
            "lengths": list(self.lengths),
            "used": {str(cap): _rounded(values) for cap, values in self.used.items()},
            "written": {f"{m}/{cap}": _rounded(v) for (m, cap), v in self.written.items()},
            "errors": {mode: [_rounded(e) for e in errors] for mode, errors in self.errors.items()},
        }

    @classmethod
    def from_json(cls, values: Any) -> "Record":
        """What `to_json` wrote; raises ValueError, TypeError or KeyError for anything else."""
        lengths = [_length(numbers) for numbers in values["lengths"]]
        written = {}
        for key, shares in values["written"].items():
            mode, _, cap = key.partition("/")
            written[_mode(mode), int(cap)] = deque(map(_share, shares), WINDOW)
        errors = {
            _mode(mode): deque(((_error(a), _error(b)) for a, b in pairs), WINDOW)
            for mode, pairs in values["errors"].items()
        }
        used = {int(c): deque(map(_share, v), WINDOW) for c, v in values["used"].items()}
        return cls(_count(values["requests"]), deque(lengths, WINDOW), used, written, errors)


@dataclass(slots=True)
class Records:
    """Of every task (None: requests of no task) that had one lately, and of all requests together.

    `slowdowns` are, by mode, logarithms of what the first 100 requests took over what their steps
    and tokens cost. They stay: a reference that moves would hide that the machine has changed.
    """

    tasks: dict[str | None, Record] = field(default_factory=dict)
    all: Record = field(default_factory=Record)
    slowdowns: dict[RefineMode, list[float]] = field(default_factory=dict)

    def add(self, result: Result, log_slowdown: float) -> None:
        """Remember a request, under its task and under all."""
        self.all.add(result)
        self.tasks.setdefault(result.signals.task, Record()).add(result)
        self._add_slowdowns(result.plan.refine.mode, [log_slowdown])

    def usual_slowdown(self, mode: RefineMode) -> float:
        """The median of `slowdowns`, 0 where there are none."""
        return quantile(self.slowdowns[mode], 0.5) if self.slowdowns.get(mode) else 0.0

    def _add_slowdowns(self, mode: RefineMode, more: Sequence[float]) -> None:
        known = self.slowdowns.setdefault(mode, [])
        known += more[: WINDOW - len(known)]

    def extend(self, later: "Records") -> None:
        """Remember also what came later; of too many tasks, those that had no request longest."""
        self.all.extend(later.all)
        for mode, slowdowns in later.slowdowns.items():
            self._add_slowdowns(mode, slowdowns)
        for task, record in later.tasks.items():
            known = self.tasks.pop(task, Record())
            known.extend(record)
            self.tasks[task] = known
        for task in [*self.tasks][:-MAX_TASKS]:
            del self.tasks[task]

    def to_json(self, basis: str, saved_at: float) -> dict[str, Any]:
        """As plain values, with the name of the costs that errors are relative to and the time
        (seconds since 1970).
        """
        tasks = [{"task": task, **record.to_json()} for task, record in self.tasks.items()]
        slowdowns = {mode: _rounded(values) for mode, values in self.slowdowns.items()}
        about = {"version": VERSION, "basis": basis, "saved_at": saved_at}
        return {**about, "slowdowns": slowdowns, "all": self.all.to_json(), "tasks": tasks}

    @classmethod
    def from_json(cls, values: Any, basis: str, now: float) -> "Records":
        """What `to_json` wrote, without errors relative to other costs; raises Obsolete for what
        is too old, and ValueError, TypeError, AttributeError or KeyError for anything else.
        """
        if values["version"] != VERSION:
            raise Obsolete("was written by another version")
        age_s = now - values["saved_at"]
        if not -86_400.0 <= age_s <= MAX_AGE_S:
            raise Obsolete(f"is {age_s / 86_400:.0f} days old")
        return cls._from_json(values, basis)

    @classmethod
    def from_archive(cls, values: Any, basis: str) -> "Records":
        """What a run has kept of its own, however old, also in the first format; raises as
        `from_json` does.
        """
        if values["version"] == 1:
            values = {**values, "slowdowns": values["paces"]}
        elif values["version"] != VERSION:
            raise Obsolete("was written by another version")
        return cls._from_json(values, basis)

    @classmethod
    def _from_json(cls, values: Any, basis: str) -> "Records":
        tasks = {_task(entry): Record.from_json(entry) for entry in values["tasks"]}
        logs = {_mode(m): [*map(_slowdown, v)][:WINDOW] for m, v in values["slowdowns"].items()}
        found = cls(tasks, Record.from_json(values["all"]), logs)
        if values["basis"] != basis:
            found.slowdowns.clear()
            for record in (found.all, *found.tasks.values()):
                record.errors.clear()
        return found


def _quantiles(values: Sequence[float]) -> Quantiles | None:
    if len(values) < _ENOUGH_FOR_MEDIAN:
        return None
    return Quantiles(quantile(values, 0.5), quantile(values, 0.95))


def _correction(
    errors: Sequence[tuple[float, float]], level: float, others: Quantiles
) -> Quantiles:
    p50, p95 = others.p50, others.p95
    if len(errors) >= _ENOUGH_FOR_MEDIAN:
        p50 = math.exp(quantile((median for median, _ in errors), 0.5))
    if len(errors) >= _ENOUGH_FOR_P95:
        p95 = math.exp(quantile((slow for _, slow in errors), level))
    return Quantiles(p50, p95)


def _lengths(seen: Sequence[tuple[int, int, int]]) -> Lengths | None:
    if len(seen) < _ENOUGH_FOR_MEDIAN:
        return None
    by_prompt = Lengths("prompt_tokens", *_sorted((prompt, answer) for prompt, _, answer in seen))
    by_amount = Lengths("amount", *_sorted((amount, answer) for _, amount, answer in seen))
    if len({amount for _, amount, _ in seen}) == 1:  # of a model that says nothing about lengths
        return by_prompt
    is_told = _missed(by_amount.answers) < _CLEARLY * _missed(by_prompt.answers)
    return by_amount if is_told else by_prompt


def _sorted(pairs: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    places, answers = zip(*sorted(pairs), strict=True)
    return places, answers


def _missed(answers: Sequence[int]) -> float:
    """Tokens by which those nearest in order miss an answer's, in all."""
    here = np.asarray(answers)
    count = min(NEAREST, len(here))
    medians = np.median(sliding_window_view(here, count), axis=-1)
    places = np.clip(np.arange(len(here)) - count // 2, 0, len(medians) - 1)
    return float(np.abs(here - medians[places]).sum())


def _length(numbers: Sequence[Any]) -> tuple[int, int, int]:
    if len(numbers) not in (2, 3):
        raise ValueError(numbers)
    prompt, answer = _count(numbers[0]), _count(numbers[-1])
    if max(prompt, answer) > _MAX_TOKENS:
        raise ValueError(numbers)
    return prompt, _count(numbers[1]) if len(numbers) == 3 else 0, answer  # 2: before amounts


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 4) for value in values]


def service_s(result: Result) -> float:
    """Seconds that a request took without waiting, above zero."""
    timing = result.timing
    waited_s = timing.waiting_s if 0 < timing.waiting_s < math.inf else 0.0
    return max(timing.total_s - waited_s, 1e-6)


def _log_error(took_s: float, predicted_s: float) -> float:
    if not 0 < predicted_s < math.inf:
        return 0.0
    return _clipped(math.log(took_s) - math.log(predicted_s))


def _clipped(error: float) -> float:
    return min(max(error, -_MAX_LOG_ERROR), _MAX_LOG_ERROR)


def _within(value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(value)
    return float(value)


def _share(value: Any) -> float:
    return _within(value, 0.0, _MAX_SHARE)


def _error(value: Any) -> float:
    return _clipped(_within(value, -MAX_LOG_SLOWDOWN, MAX_LOG_SLOWDOWN))


def _slowdown(value: Any) -> float:
    return _within(value, -MAX_LOG_SLOWDOWN, MAX_LOG_SLOWDOWN)


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(value)
    return value


def _mode(name: str) -> RefineMode:
    for mode in get_args(RefineMode):
        if name == mode:
            return mode  # type: ignore[no-any-return]
    raise ValueError(name)


def _task(entry: Any) -> str | None:
    task = entry["task"]
    if not (task is None or isinstance(task, str)):
        raise ValueError(task)
    return task
