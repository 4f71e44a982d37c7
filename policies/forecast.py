"""What each plan for one request will take, as columns: an entry a cap on denoising steps.

All that depends on the request is worked out once; a candidate then costs a few multiplications.
Medians are added, and so are 95th percentiles, because what slows one part slows all; that steps
and tokens are seldom at their most together is left to the correction that is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from hybrid.policies.latency import Latency, LatencyModel, Quantiles, cap_range
from hybrid.types import RefineMode

Columns = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class Forecast:
    """One request's plans under one latency model, a draft at every one of `caps` worked out.

    `drafts_s` are the drafts' medians and `late_s` their 95th percentiles, uncorrected.
    """

    latency: LatencyModel
    task: str | None
    prompt_tokens: int
    tokens: Quantiles
    caps: tuple[int, ...]
    drafts_s: list[float]
    late_s: list[float]

    def generate(self) -> Latency:
        """The refiner alone; the pass over the prompt yields the first token."""
        start = self.latency.overhead() + self.latency.read(self.prompt_tokens)
        rest = self.latency.write(max(0.0, self.tokens.p50 - 1), max(0.0, self.tokens.p95 - 1))
        alone, factors = start + rest, self.latency.correction(self.task, "generate")
        p50_s = alone.p50_s * factors.p50
        return Latency(p50_s, max(p50_s, alone.p95_s * factors.p95))

    def draft_and(self, mode: RefineMode, by_itself: bool, kept: Sequence[float]) -> Columns:
        """A draft at each cap, refined so: p50 and p95 in seconds.

        `by_itself`: the draft is judged by its own scores; `kept` is the share of it that the
        refiner is expected to keep, where nothing is learned.
        """
        factors = self.latency.correction(self.task, mode)
        median, slow = factors.p50, factors.p95
        read = self._reading(mode, by_itself)
        if mode in ("cascade", "verify"):
            usual, most = self._writing(mode, by_itself, kept)
            both = zip(self.drafts_s, usual, strict=True)
            p50_s = [(draft + read.p50_s + write) * median for draft, write in both]
            both = zip(self.late_s, most, strict=True)
            p95_s = [(late + read.p95_s + write) * slow for late, write in both]
        else:
            p50_s = [(draft + read.p50_s) * median for draft in self.drafts_s]
            p95_s = [(late + read.p95_s) * slow for late in self.late_s]
        if slow < median:  # else none is below its median
            p95_s = [max(pair) for pair in zip(p95_s, p50_s, strict=True)]
        return p50_s, p95_s

    def _reading(self, mode: RefineMode, by_itself: bool) -> Latency:
        """The refiner's pass over the draft, or the drafter's own."""
        if mode == "none":
            return Latency(0.0, 0.0)
        if by_itself and mode in ("score", "cascade"):
            return self.latency.commit(1)
        return self.latency.read(self.prompt_tokens + self.tokens.p50)

    def _writing(self, mode: RefineMode, by_itself: bool, kept: Sequence[float]) -> Columns:
        """What the refiner writes after a draft at each cap: seconds at p50 and p95."""
        writing = self.latency.write(self.tokens.p50, self.tokens.p95)
        if by_itself and mode == "cascade":  # only drafts that fail are read by the refiner
            writing += self.latency.read(self.prompt_tokens + self.tokens.p50)
        usual, most = writing.p50_s, writing.p95_s
        known = self.latency.work.get(self.task)
        if known is None or not known.written:
            return [usual - share * usual for share in kept], [most] * len(kept)
        ranges = _ranges(self.caps)
        shares = {place: known.written.get((mode, place)) for place in set(ranges)}
        learned = {place: share.p50 * usual for place, share in shares.items() if share}
        slowest = {place: share.p95 * most if share else most for place, share in shares.items()}
        medians = [
            usual - agreed * usual if written is None else written
            for written, agreed in zip(map(learned.get, ranges), kept, strict=True)
        ]
        return medians, [*map(slowest.__getitem__, ranges)]


def forecast(
    latency: LatencyModel,
    task: str | None,
    prompt_tokens: int,
    tokens: Quantiles,
    canvases: int,
    caps: tuple[int, ...],
    used: Sequence[float],
) -> Forecast:
    """For drafts of `canvases` canvases that use `used` steps each, an entry a cap, where nothing
    else is learned.
    """
    start = latency.overhead() + latency.prefill(prompt_tokens) + latency.commit(canvases - 1)
    step = latency.step(prompt_tokens)
    start_s, step_s, late_s, slow_s = start.p50_s, step.p50_s, start.p95_s, step.p95_s
    ranges = _ranges(caps)
    shares = {place: latency.share_used(task, place) for place in set(ranges)}
    if any(shares.values()):
        usual = {place: share.p50 * step_s for place, share in shares.items() if share}
        most = {place: (s.p95 if s else canvases) * slow_s for place, s in shares.items()}
        learned = map(usual.get, ranges)
        drafts = [
            start_s + (canvases * steps * step_s if a_step is None else cap * a_step)
            for a_step, cap, steps in zip(learned, caps, used, strict=True)
        ]
        slowest = zip(map(most.__getitem__, ranges), caps, strict=True)
        late = [late_s + cap * a_step for a_step, cap in slowest]
    else:
        drafts = [start_s + canvases * steps * step_s for steps in used]
        late = [late_s + canvases * cap * slow_s for cap in caps]
    return Forecast(latency, task, prompt_tokens, tokens, caps, drafts, late)


@lru_cache(maxsize=256)
def _ranges(caps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(cap_range(cap) for cap in caps)
