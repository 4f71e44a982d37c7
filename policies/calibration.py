"""Timing the pair through the protocols: a second at first use, a minute by `hybrid calibrate`.

Both take the same samples, in turns, so that whatever else the machine does slows every part
alike; the minute gives each part a spread of its own and longer prompts their price.
"""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime

from hybrid.deadline import Deadline
from hybrid.errors import HybridError
from hybrid.policies.latency import LatencyModel, quantile
from hybrid.policies.measurements import (
    Measurement,
    cache_file,
    read_measurement,
    write_measurement,
)
from hybrid.policies.schema import Policy
from hybrid.protocols import Drafter, DraftJob, Refiner
from hybrid.types import DraftParams, Message, Request

SHORT, LONG, LONGEST = "add 12 + 34", "add 12 + 34 " * 8, "add 12 + 34 " * 40
_QUICK_ROUNDS, _LEAST_ROUNDS = 6, 12
_QUICK_STEPS, _STEPS, _TOKENS = (4,), (2, 8), 8
_QUICK_SPREAD, _LEAST_SPREAD, _MOST_SPREAD = 1.15, 1.02, 10.0
_PATIENCE_S = 20.0  # with a server, for one sample
_UNKNOWN_READ_S, _UNKNOWN_TOKEN_S = 0.1, 0.02  # of a refiner that does not answer just now
_PARTS = ("overhead", "prefill", "step", "commit", "read", "token")

Progress = Callable[[float], None]
Samples = dict[str, list[tuple[int, float]]]  # by part: prompt tokens, seconds


def load_or_measure(
    policy: Policy, drafter: Drafter | None, refiner: Refiner | None
) -> Measurement:
    """This machine's costs for a policy's pair: the kept ones while they hold, or measured anew.

    A quick measurement never replaces a calibration. Either way the models have run afterwards:
    their first pass is many times slower than others. A refiner that fails (a server that is down)
    does not keep the drafter from its work: its costs are guessed, this once.
    """
    file = cache_file(policy)
    kept = read_measurement(file)
    if isinstance(kept, Measurement) and still_holds(kept.costs, drafter, refiner):
        return kept
    try:
        measured = Measurement(measure(drafter, refiner), "quick", now())
    except HybridError:
        if drafter is None or refiner is None:
            raise
        costs = replace(measure(drafter, None), read_s=_UNKNOWN_READ_S, token_s=_UNKNOWN_TOKEN_S)
        return Measurement(costs, "quick", now())
    if not (isinstance(kept, Measurement) and kept.method == "calibrated"):
        write_measurement(file, measured, policy)
    return measured


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def still_holds(costs: LatencyModel, drafter: Drafter | None, refiner: Refiner | None) -> bool:
    """Whether one step and one token take what the costs say, within a factor of two.

    A refiner that fails is left out.
    """
    request = _ask(SHORT)
    expected, fastest = 0.0, math.inf
    for is_warm in (False, True, True, True):  # the first passes are slow for once
        expected, started = 0.0, time.perf_counter()
        if drafter is not None:
            params = DraftParams(max_denoising_steps=1)
            drafter.draft([DraftJob(request, params, 0, 1, Deadline(), self_score=True)])
            prompt_tokens = drafter.count_prompt_tokens(request)
            expected += costs.draft(prompt_tokens, 1, 1, 1).p50_s + costs.commit_s
        if refiner is not None:
            try:
                refiner.open(request, 1, Deadline.after(_PATIENCE_S)).write((), 1)
                expected += costs.read(refiner.count_prompt_tokens(request)).p50_s
            except HybridError:
                refiner, started = None, math.inf
        if is_warm:
            fastest = min(fastest, time.perf_counter() - started)
    return expected / 2 < fastest < expected * 2


def measure(drafter: Drafter | None, refiner: Refiner | None) -> LatencyModel:
    """In about a second for a small pair: every part's median, and one spread for all of them."""
    samples: Samples = defaultdict(list)
    for number in range(_QUICK_ROUNDS):
        taken: Samples = defaultdict(list)
        _round(taken, number, (SHORT, LONG), _QUICK_STEPS, drafter, refiner)
        if number:  # the first passes are slow for once
            _add(samples, taken)
    return _fit(samples, drafter, _QUICK_SPREAD, own_spreads=False)


def measure_well(
    drafter: Drafter | None,
    refiner: Refiner | None,
    seconds: float,
    progress: Progress = lambda share: None,
) -> LatencyModel:
    """As `measure`, for so many seconds (12 rounds at least), with longer prompts and a spread for
    every part. `progress` is told the share that is done.
    """
    prompts = _that_fit((SHORT, LONG, LONGEST), drafter)
    samples: Samples = defaultdict(list)
    started, number = time.monotonic(), 0
    while number <= _LEAST_ROUNDS or time.monotonic() - started < seconds:
        taken: Samples = defaultdict(list)
        _round(taken, number, prompts, _STEPS, drafter, refiner)
        if number:
            _add(samples, taken)
        number += 1
        by_time = (time.monotonic() - started) / max(seconds, 1e-9)
        progress(min(1.0, by_time, number / (_LEAST_ROUNDS + 1)))
    return _fit(samples, drafter, _LEAST_SPREAD, own_spreads=True)


def _that_fit(prompts: Sequence[str], drafter: Drafter | None) -> Sequence[str]:
    if drafter is None:  # a refiner does not say how much it can read
        return prompts[:2]
    room = drafter.max_context - drafter.canvas_length
    return [prompt for prompt in prompts if drafter.count_prompt_tokens(_ask(prompt)) <= room]


def _round(
    samples: Samples,
    seed: int,
    prompts: Sequence[str],
    steps: Sequence[int],
    drafter: Drafter | None,
    refiner: Refiner | None,
) -> None:
    for prompt in prompts:
        if drafter is not None:
            for cap in steps:
                _sample_draft(samples, drafter, prompt, cap, seed)
        if refiner is not None:
            _sample_answer(samples, refiner, prompt)


def _sample_draft(samples: Samples, drafter: Drafter, prompt: str, cap: int, seed: int) -> None:
    params = DraftParams(max_denoising_steps=cap, confidence_threshold=0.0)
    request, room = _ask(prompt), drafter.canvas_length
    job = DraftJob(request, params, seed, room, Deadline(), self_score=True)
    started = time.perf_counter()
    (draft,) = drafter.draft([job])
    total = time.perf_counter() - started
    tokens, timing = drafter.count_prompt_tokens(request), draft.timing
    commits = len(draft.canvases)  # each is read again for its score
    samples["prefill"].append((tokens, timing.prefill_s))
    samples["step"].append((tokens, timing.denoise_s / max(1, draft.steps)))
    samples["commit"].append((tokens, timing.commit_s / commits))
    around = total - timing.prefill_s - timing.denoise_s - timing.commit_s
    samples["overhead"].append((tokens, max(0.0, around)))


def _sample_answer(samples: Samples, refiner: Refiner, prompt: str) -> None:
    request = _ask(prompt)
    started = time.perf_counter()
    session = refiner.open(request, 2 * _TOKENS, Deadline.after(_PATIENCE_S))
    session.score(())
    read, before = time.perf_counter(), session.forward_passes
    written: tuple[int, ...] = ()
    while session.forward_passes < before + _TOKENS:  # an answer may end early: go on behind it
        written, reason = session.write(written[-1:], _TOKENS)
        if reason == "budget" or not written:
            break
    passes, done = session.forward_passes - before, time.perf_counter()
    tokens = refiner.count_prompt_tokens(request)
    samples["read"].append((tokens, read - started))
    samples["token"].append((tokens, (done - read) / passes if passes else read - started))


def _add(samples: Samples, more: Samples) -> None:
    for part, taken in more.items():
        samples[part] += taken


def _fit(
    samples: Samples, drafter: Drafter | None, least_spread: float, own_spreads: bool
) -> LatencyModel:
    lines = {part: _line(samples[part]) for part in _PARTS}
    flat = {part: _median(seconds for _, seconds in samples[part]) for part in _PARTS}
    spreads = {part: _spread(samples[part], lines[part]) for part in _PARTS if samples[part]}
    shared = [spreads[part] for part in ("step", "token", "read", "prefill") if part in spreads]
    common = max([least_spread, (min if own_spreads else max)(shared, default=1.0)])
    costs = LatencyModel(
        overhead_s=flat["overhead"],
        prefill_s=lines["prefill"][0],
        prefill_token_s=lines["prefill"][1],
        step_s=lines["step"][0] if own_spreads else flat["step"],
        commit_s=flat["commit"],
        read_s=lines["read"][0],
        read_token_s=lines["read"][1],
        token_s=flat["token"],
        spread=common,
        canvas_length=drafter.canvas_length if drafter else 0,
        step_token_s=lines["step"][1] if own_spreads else 0.0,
    )
    if not own_spreads:
        return costs
    own = {f"{part}_spread": max(1.0, spread) for part, spread in spreads.items()}
    learned = ("draft_wait", "refine_wait", "tasks", "all_tasks")
    values = {name: value for name, value in asdict(costs).items() if name not in learned}
    return LatencyModel(**{**values, **own})


def _line(samples: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Intercept and slope, neither below zero, of the line that is nearest in proportion to the
    medians at each prompt length.
    """
    by_length: dict[int, list[float]] = defaultdict(list)
    for tokens, seconds in samples:
        by_length[tokens].append(seconds)
    medians = [(tokens, _median(seconds)) for tokens, seconds in by_length.items()]
    points = [(tokens, seconds, seconds**-2) for tokens, seconds in medians if seconds > 0]
    total = sum(weight for _, _, weight in points)
    if not total:
        return 0.0, 0.0
    mean_x = sum(weight * x for x, _, weight in points) / total
    mean_y = sum(weight * y for _, y, weight in points) / total
    variance = sum(weight * (x - mean_x) ** 2 for x, _, weight in points)
    together = sum(weight * (x - mean_x) * (y - mean_y) for x, y, weight in points)
    slope = max(0.0, together / variance) if variance else 0.0
    if slope * mean_x <= mean_y:
        return mean_y - slope * mean_x, slope
    squares = sum(weight * x * x for x, _, weight in points)
    return 0.0, sum(weight * x * y for x, y, weight in points) / squares


def _spread(samples: Sequence[tuple[int, float]], line: tuple[float, float]) -> float:
    """p95 over p50 of what samples took relative to the line."""
    base, slope = line
    ratios = [seconds / max(base + slope * tokens, 1e-9) for tokens, seconds in samples]
    median = quantile(ratios, 0.5)
    return min(_MOST_SPREAD, quantile(ratios, 0.95) / median) if median > 0 else 1.0


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else 0.0


def _ask(prompt: str) -> Request:
    return Request(messages=(Message("user", prompt),))
