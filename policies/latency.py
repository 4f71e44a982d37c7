"""How long a plan will take: what the parts cost on this machine, and what requests of a task need.

Costs are measured (`calibration`), statistics are learned from finished requests (`history`); both
are medians with a 95th percentile, and plain floats. The two are kept apart because the machine's
speed changes within seconds and a task's statistics do not.
"""

from bisect import bisect, bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from hybrid.types import RefineMode

NEAREST = 15  # requests that are alike tell an answer's length; a line misses tasks of two kinds
_LONGER_ANSWER = 1.5  # p95 of an answer's length, relative to the expected one


@dataclass(frozen=True, slots=True)
class Latency:
    """A time in seconds that half and 95 % of runs keep."""

    p50_s: float
    p95_s: float

    def __add__(self, other: "Latency") -> "Latency":
        return Latency(self.p50_s + other.p50_s, self.p95_s + other.p95_s)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """What half and 95 % of requests stay below: tokens, shares or factors."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of answers seen of a task, sorted by what tells them best: the tokens of their prompts
    or the length hints of those (see `Signals`).
    """

    tells: Literal["prompt_tokens", "amount"]
    places: tuple[int, ...]
    answers: tuple[int, ...]

    def expect(self, prompt_tokens: int, amount: int) -> Quantiles:
        """Tokens of an answer: as of the requests nearest in what tells it."""
        place = amount if self.tells == "amount" else prompt_tokens
        at = (bisect_left(self.places, place) + bisect(self.places, place) - NEAREST) // 2
        at = max(0, min(at, len(self.answers) - NEAREST))
        nearest = self.answers[at : at + NEAREST]
        return Quantiles(max(1.0, quantile(nearest, 0.5)), max(1.0, quantile(nearest, 0.95)))


@dataclass(frozen=True, slots=True)
class TaskStatistics:
    """What requests of a task have come to.

    `used` are the steps of a draft, all its canvases together, as a share of the cap; `written` the
    tokens that the refiner added, as a share of the answer; both by `cap_range`. `corrections` are
    factors on what would be predicted without them, by refine mode.
    """

    requests: int = 0
    lengths: Lengths | None = None
    used: Mapping[int, Quantiles] = field(default_factory=dict)
    written: Mapping[tuple[RefineMode, int], Quantiles] = field(default_factory=dict)
    corrections: Mapping[RefineMode, Quantiles] = field(default_factory=dict)


def cap_range(cap: int) -> int:
    """Caps of one range (1, 2 to 3, 4 to 7, ...) use about the same share of their steps."""
    return cap.bit_length()


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Median costs in seconds, how much longer (a factor) the slowest 5 % take, and statistics.

    `overhead_s` is everything around the models; `prefill_token_s` and `read_token_s` are the
    drafter's and the refiner's cost of one more prompt token, `step_token_s` what each makes a
    denoising step slower. `spread` holds for every part, unless the part's own is larger.
    `slowdown` is how much slower (a factor) the machine is just now; `draft_wait` and `refine_wait`
    are what a request waits before it is drafted and refined. `tasks` has an entry a task (None:
    requests of no task), `all_tasks` is that of all requests together.
    """

    overhead_s: float
    prefill_s: float
    prefill_token_s: float
    step_s: float
    commit_s: float
    read_s: float
    read_token_s: float
    token_s: float
    spread: float
    canvas_length: int
    step_token_s: float = 0.0
    overhead_spread: float = 1.0
    prefill_spread: float = 1.0
    step_spread: float = 1.0
    commit_spread: float = 1.0
    read_spread: float = 1.0
    token_spread: float = 1.0
    slowdown: float = 1.0
    draft_wait: Latency = Latency(0.0, 0.0)
    refine_wait: Latency = Latency(0.0, 0.0)
    tasks: Mapping[str | None, TaskStatistics] = field(default_factory=dict)
    all_tasks: TaskStatistics = TaskStatistics()

    def overhead(self) -> Latency:
        """Everything around the models, once a request."""
        return self._part(self.overhead_s, self.overhead_spread)

    def prefill(self, prompt_tokens: int) -> Latency:
        """The drafter reading a prompt."""
        seconds = self.prefill_s + self.prefill_token_s * prompt_tokens
        return self._part(seconds, self.prefill_spread)

    def step(self, prompt_tokens: int) -> Latency:
        """One denoising step behind a prompt."""
        return self._part(self.step_s + self.step_token_s * prompt_tokens, self.step_spread)

    def commit(self, times: float) -> Latency:
        """So many finished canvases read into the cache."""
        return self._part(self.commit_s * times, self.commit_spread)

    def read(self, tokens: float) -> Latency:
        """One refiner pass over so many tokens."""
        return self._part(self.read_s + self.read_token_s * tokens, self.read_spread)

    def write(self, tokens_p50: float, tokens_p95: float) -> Latency:
        """So many autoregressive tokens."""
        p95 = self._part(tokens_p95 * self.token_s, self.token_spread).p95_s
        return Latency(tokens_p50 * self.token_s, p95)

    def draft(self, prompt_tokens: int, steps_p50: float, cap: int, canvases: int) -> Latency:
        """A draft of so many canvases; at p95, every canvas uses all its steps."""
        start = self.overhead() + self.prefill(prompt_tokens) + self.commit(canvases - 1)
        step = self.step(prompt_tokens)
        steps = Latency(canvases * steps_p50 * step.p50_s, canvases * cap * step.p95_s)
        return start + steps

    def lengths(
        self, task: str | None, prompt_tokens: int, amount: int, expected: int, most: int
    ) -> Quantiles:
        """An answer's tokens, at most `most`: as learned of the task, else around `expected`."""
        known = self.tasks.get(task)
        if known and known.lengths:
            tokens = known.lengths.expect(prompt_tokens, amount)
        else:
            tokens = Quantiles(expected, expected * _LONGER_ANSWER)
        return Quantiles(min(tokens.p50, most), min(tokens.p95, most))

    def correction(self, task: str | None, mode: RefineMode) -> Quantiles:
        """Factors on a prediction: by how much those of the task and mode were wrong so far."""
        known = self.tasks.get(task, self.all_tasks).corrections
        return known.get(mode) or self.all_tasks.corrections.get(mode) or Quantiles(1.0, 1.0)

    def share_used(self, task: str | None, caps: int) -> Quantiles | None:
        """Steps of a draft, over all canvases, as a share of a cap in this `cap_range`: learned of
        the task or of all tasks, else None.
        """
        known = self.tasks.get(task, self.all_tasks).used
        return known.get(caps) or self.all_tasks.used.get(caps)

    def _part(self, seconds: float, spread: float) -> Latency:
        return Latency(seconds, seconds * max(spread, self.spread))


def quantile(values: Iterable[float], share: float) -> float:
    """The value that the next one stays below with this probability, if they are all alike.

    Between order statistics, of which the i-th of n has the probability i / (n + 1).
    """
    ordered = sorted(values)
    place = min(max(share * (len(ordered) + 1) - 1, 0.0), len(ordered) - 1.0)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
