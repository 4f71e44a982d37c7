"""How long a plan will take on this machine: a handful of costs, measured once and kept.

A draft costs a prefill and so many denoising steps; refining costs a pass over prompt and draft and
so many autoregressive tokens. Measured through the protocols at first use (seconds for the embedded
pair) and cached under the user's cache directory, keyed by hardware, models and versions.
"""

import hashlib
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hybrid.deadline import Deadline
from hybrid.policies.schema import Policy
from hybrid.protocols import Drafter, DraftJob, Refiner
from hybrid.types import DraftParams, Message, Request

_SHORT, _LONG = "add 12 + 34", "add 12 + 34 " * 8
_ROUNDS, _STEPS, _TOKENS = 7, 4, 8
_LEAST_SPREAD = 1.15
_DRIVER, _PROCESSORS = Path("/proc/driver/nvidia"), Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Latency:
    """A time in seconds that half and 95 % of runs keep."""

    p50_s: float
    p95_s: float

    def __add__(self, other: "Latency") -> "Latency":
        return Latency(self.p50_s + other.p50_s, self.p95_s + other.p95_s)


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Median costs in seconds, and how much longer (`spread`, a factor) the slowest 5 % take.

    `overhead_s` is everything around the models; `prefill_token_s` and `read_token_s` are the
    drafter's and the refiner's cost of one more prompt token.
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

    def draft(self, prompt_tokens: int, steps_p50: float, cap: int, canvases: int) -> Latency:
        """A draft of so many canvases; at p95, every canvas uses all its steps."""
        fixed = self.overhead_s + self.prefill_s + self.prefill_token_s * prompt_tokens
        fixed += self.commit_s * (canvases - 1)
        p50 = fixed + canvases * steps_p50 * self.step_s
        return Latency(p50, (fixed + canvases * cap * self.step_s) * self.spread)

    def read(self, tokens: int) -> Latency:
        """One refiner pass over so many tokens."""
        seconds = self.read_s + self.read_token_s * tokens
        return Latency(seconds, seconds * self.spread)

    def write(self, tokens_p50: float, tokens_p95: float) -> Latency:
        """So many autoregressive tokens."""
        return Latency(tokens_p50 * self.token_s, tokens_p95 * self.token_s * self.spread)


def load_or_measure(
    policy: Policy, drafter: Drafter | None, refiner: Refiner | None
) -> LatencyModel:
    """This machine's costs for a policy's pair: the kept ones while they hold, or measured anew.

    Either way the models have run afterwards: their first pass is many times slower than others.
    """
    file = cache_file(policy)
    kept = read_cache(file)
    if kept is not None and still_holds(kept, drafter, refiner):
        return kept
    measured = measure(drafter, refiner)
    write_cache(file, measured)
    return measured


def cache_file(policy: Policy) -> Path:
    """Where the costs of this machine and the policy's models are kept."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = json.dumps([_hardware(), policy.models.model_dump(), _versions()], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return root / "hybrid" / "latency" / f"{digest}.json"


def read_cache(file: Path) -> LatencyModel | None:
    """The kept costs, or None where there are none that can be read."""
    try:
        costs = LatencyModel(**json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    values = asdict(costs).values()
    are_times = all(isinstance(v, int | float) and 0 <= v < 3600 for v in values)
    return costs if are_times and costs.canvas_length >= 0 else None


def write_cache(file: Path, costs: LatencyModel) -> None:
    """Keep the costs; a cache directory that cannot be written costs a measurement next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}.new")
        new.write_text(json.dumps(asdict(costs), indent=1))
        os.replace(new, file)
    except OSError:
        return


def still_holds(costs: LatencyModel, drafter: Drafter | None, refiner: Refiner | None) -> bool:
    """Whether one step and one token take what the costs say, within a factor of two."""
    request = _ask(_SHORT)
    expected, fastest = 0.0, math.inf
    for is_warm in (False, True, True, True):  # the first passes are slow for once
        expected, started = 0.0, time.perf_counter()
        if drafter is not None:
            params = DraftParams(max_denoising_steps=1)
            drafter.draft([DraftJob(request, params, 0, 1, Deadline(), self_score=True)])
            prompt_tokens = drafter.count_prompt_tokens(request)
            expected += costs.draft(prompt_tokens, 1, 1, 1).p50_s + costs.commit_s
        if refiner is not None:
            refiner.open(request, 1).continue_greedily((), 1, Deadline())
            expected += costs.read(refiner.count_prompt_tokens(request)).p50_s
        if is_warm:
            fastest = min(fastest, time.perf_counter() - started)
    return expected / 2 < fastest < expected * 2


def measure(drafter: Drafter | None, refiner: Refiner | None) -> LatencyModel:
    """Time the pair through the protocols: a few short drafts and answers."""
    costs: dict[str, Any] = {"spread": _LEAST_SPREAD, "canvas_length": 0}
    costs |= dict.fromkeys(("prefill_s", "prefill_token_s", "step_s", "commit_s"), 0.0)
    costs |= dict.fromkeys(("read_s", "read_token_s", "token_s", "overhead_s"), 0.0)
    if drafter is not None:
        costs |= _measure_drafter(drafter)
    if refiner is not None:
        costs |= _measure_refiner(refiner)
    return LatencyModel(**costs)


def _measure_drafter(drafter: Drafter) -> dict[str, float]:
    params = DraftParams(max_denoising_steps=_STEPS, confidence_threshold=0.0)
    totals: list[float] = []
    rounds: dict[str, list[Any]] = {_SHORT: [], _LONG: []}
    for seed in range(_ROUNDS):
        for prompt, drafts in rounds.items():
            deadline, room = Deadline(), drafter.canvas_length
            job = DraftJob(_ask(prompt), params, seed, room, deadline, self_score=True)
            started = time.perf_counter()
            (draft,) = drafter.draft([job])
            totals.append(time.perf_counter() - started)
            drafts.append(draft)
    timings = {prompt: [d.timing for d in drafts[1:]] for prompt, drafts in rounds.items()}
    every = [timing for parts in timings.values() for timing in parts]
    prefill, slope = _line(
        drafter.count_prompt_tokens(_ask(_SHORT)),
        _typical(t.prefill_s for t in timings[_SHORT]),
        drafter.count_prompt_tokens(_ask(_LONG)),
        _typical(t.prefill_s for t in timings[_LONG]),
    )
    parts = [t.prefill_s + t.denoise_s + t.commit_s for t in every]
    typical = _typical(totals[2:])
    return {
        "prefill_s": prefill,
        "prefill_token_s": slope,
        "step_s": _typical(t.denoise_s for t in every) / _STEPS,
        "commit_s": _typical(t.commit_s for t in every),
        "overhead_s": max(0.0, typical - _typical(parts)),
        "spread": max(_LEAST_SPREAD, statistics.median(totals[2:]) / max(typical, 1e-9)),
        "canvas_length": drafter.canvas_length,
    }


def _measure_refiner(refiner: Refiner) -> dict[str, float]:
    def read(prompt: str) -> float:
        def once() -> None:
            refiner.open(_ask(prompt), _TOKENS + 1).score(())

        return _time(once)

    def write() -> None:
        session = refiner.open(_ask(_SHORT), _TOKENS + 1)
        written: tuple[int, ...] = ()
        session.score(())
        for _ in range(_TOKENS):  # one at a time, so that an early end does not cut it short
            written, _reason = session.continue_greedily(written[-1:], 1, Deadline())

    short, long = read(_SHORT), read(_LONG)
    fixed, slope = _line(
        refiner.count_prompt_tokens(_ask(_SHORT)),
        short,
        refiner.count_prompt_tokens(_ask(_LONG)),
        long,
    )
    token = max(0.0, _time(write) - short) / _TOKENS
    return {"read_s": fixed, "read_token_s": slope, "token_s": token}


def _time(work: Callable[[], None]) -> float:
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return _typical(times[1:])


def _typical(seconds: Iterable[float]) -> float:
    """The lower quartile: what other programs take meanwhile is not the model's cost."""
    return statistics.quantiles(seconds, n=4, method="inclusive")[0]


def _line(x0: int, y0: float, x1: int, y1: float) -> tuple[float, float]:
    """Intercept and slope through two points, neither below zero."""
    slope = max(0.0, (y1 - y0) / max(1, x1 - x0))
    return max(0.0, y0 - slope * x0), slope


def _ask(prompt: str) -> Request:
    return Request(messages=(Message("user", prompt),))


def _hardware() -> str:
    """Processor, cores and NVIDIA GPUs, as the system names them: asking torch takes a second."""
    gpus = [_read(path) for path in sorted(_DRIVER.glob("gpus/*/information"))]
    models = re.findall(r"^model name\s*: (.*)$", _read(_PROCESSORS), re.MULTILINE)
    processor = models[0] if models else platform.processor()
    return f"{platform.machine()} {processor} x{os.cpu_count()} {gpus}"


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError:  # not Linux
        return ""


def _versions() -> list[str]:
    found = []
    for name in ("hybrid-gemma", "torch"):
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("")
    return found
