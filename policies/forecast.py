"""What each plan for one request will take, as columns: an entry a cap on denoising steps.

All that depends on the request is worked out once; a candidate then costs a few multiplications and
a root. Medians add up. Of what may make a plan slower than its median, the machine's noise hits all
parts together and adds up too, while steps and tokens vary by themselves: those spreads add up as
the sides of a right angle do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from hybrid.policies.latency import Latency, LatencyModel, Quantiles, cap_range
from hybrid.types import RefineMode

Columns = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class Forecast:
    """One request's plans under one latency model.

    `used` are steps a canvas expected at each cap where nothing is learned, and `tokens` the
    answer's.
    """

    latency: LatencyModel
    task: str | None
    prompt_tokens: int
    tokens: Quantiles
    caps: tuple[int, ...]
    drafts: tuple[list[float], list[float], list[float]]

    def generate(self) -> Latency:
        """The refiner alone; the pass over the prompt yields the first token."""
        start = self.latency.overhead() + self.latency.read(self.prompt_tokens)
        token = self.latency.write(1, 1)
        p50 = start.p50_s + (self.tokens.p50 - 1) * token.p50_s
        noise = _noise(start) + (self.tokens.p50 - 1) * _noise(token)
        longer = (self.tokens.p95 - self.tokens.p50) * token.p50_s
        factors = self.latency.correction(self.task, "generate")
        p95 = (p50 + sqrt(noise * noise + longer * longer)) * factors.p95
        return Latency(p50 * factors.p50, max(p95, p50 * factors.p50))

    def draft_and(self, mode: RefineMode, by_itself: bool, kept: Sequence[float]) -> Columns:
        """A draft at each cap, refined so: p50 and p95 in seconds.

        `by_itself`: the draft is judged by its own scores; `kept` is the share of it that the
        refiner is expected to keep, where nothing is learned.
        """
        factors = self.latency.correction(self.task, mode)
        median, slow = factors.p50, factors.p95
        read, more_noise = self._reading(mode, by_itself)
        drafts, noises, squares = self.drafts
        if mode in ("none", "score"):
            p50 = [(draft + read) * median for draft in drafts]
            rows = zip(drafts, noises, squares, p50, strict=True)
            p95 = [
                max((d + read + sqrt((n + more_noise) ** 2 + s)) * slow, least)
                for d, n, s, least in rows
            ]
            return p50, p95
        writing, square = self._writing(mode, by_itself, kept)
        p50 = [(d + read + w) * median for d, w in zip(drafts, writing, strict=True)]
        every = zip(drafts, noises, squares, writing, square, p50, strict=True)
        p95 = [
            max((d + read + w + sqrt((n + more_noise) ** 2 + s + q)) * slow, least)
            for d, n, s, w, q, least in every
        ]
        return p50, p95

    def _reading(self, mode: RefineMode, by_itself: bool) -> tuple[float, float]:
        """The refiner's pass over the draft, or the drafter's own: median and noise."""
        if mode == "none":
            return 0.0, 0.0
        if by_itself and mode in ("score", "cascade"):
            reading = self.latency.commit(1)
        else:
            reading = self.latency.read(self.prompt_tokens + self.tokens.p50)
        return reading.p50_s, _noise(reading)

    def _writing(
        self, mode: RefineMode, by_itself: bool, kept: Sequence[float]
    ) -> tuple[list[float], list[float]]:
        """What the refiner writes after a draft at each cap: median, and its spread squared."""
        token = self.latency.token_s
        failed = self.latency.read(self.prompt_tokens).p50_s if by_itself else 0.0
        shares = [
            self._written(mode, cap, share) for cap, share in zip(self.caps, kept, strict=True)
        ]
        answer = self.tokens.p50 * token + failed
        writing = [share.p50 * answer for share in shares]
        longest = [share.p95 * (self.tokens.p95 * token + failed) for share in shares]
        return writing, [(m - w) ** 2 for m, w in zip(longest, writing, strict=True)]

    def _written(self, mode: RefineMode, cap: int, kept: float) -> Quantiles:
        key = mode, cap_range(cap)
        known = self.latency.work.get(self.task)
        learned = known and known.written.get(key)
        return learned or Quantiles(1 - kept, 1.0)


def forecast(
    latency: LatencyModel,
    task: str | None,
    prompt_tokens: int,
    tokens: Quantiles,
    canvases: int,
    caps: tuple[int, ...],
    used: Sequence[float],
) -> Forecast:
    """Of drafts of `canvases` canvases that use `used` steps each, an entry a cap, where nothing
    else is learned.
    """
    start = latency.overhead() + latency.prefill(prompt_tokens) + latency.commit(canvases - 1)
    step = latency.step(prompt_tokens)
    step_s, step_noise, start_s, start_noise = step.p50_s, _noise(step), start.p50_s, _noise(start)
    ranges = {cap_range(cap): latency.share_used(task, cap) for cap in caps}
    shares = [ranges[cap_range(cap)] for cap in caps]
    steps = [
        (s.p50 * cap, s.p95 * cap) if s else (canvases * u, canvases * cap)
        for cap, s, u in zip(caps, shares, used, strict=True)
    ]
    return Forecast(
        latency,
        task,
        prompt_tokens,
        tokens,
        caps,
        (
            [start_s + usual * step_s for usual, _ in steps],
            [start_noise + usual * step_noise for usual, _ in steps],
            [((most - usual) * step_s) ** 2 for usual, most in steps],
        ),
    )


def _noise(part: Latency) -> float:
    return part.p95_s - part.p50_s
