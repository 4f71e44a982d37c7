"""The time of whole denoising steps, as the engine replays them."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gpu_timing import timed_ms
from hybrid.engine.canvases import Canvases, Start
from hybrid.engine.kv_cache import KVCacheBuffers
from hybrid.engine.model import EngineModel
from hybrid.gemma.model.cache import Cache
from hybrid.kernels.accept import FREE

STEPS = (8, 16, 24, 48)


@dataclass(frozen=True, slots=True)
class StepTime:
    """One denoising step and one commit pass of `canvases` canvases with some context each."""

    canvases: int
    step_ms: float
    commit_ms: float
    canvas_of_16_ms: float
    tokens_per_s: dict[int, float]
    peak_gb: float


def step_time(model: EngineModel, canvases: int, context: int) -> StepTime:
    """Graph replays of the denoising step and of the commit pass."""
    device = model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    length = model.config.canvas_length
    cache, buffers, state, rows = prepare(model, canvases, context)
    idle = torch.full_like(rows, state.idle_row)
    step = partial(
        buffers.graphs.run, ("denoise", canvases), partial(state.step, buffers), (rows,), (idle,)
    )
    ids = torch.randint(0, model.config.vocab_size, (canvases, length), device=device)
    numbers = list(range(canvases))

    def commit() -> None:
        cache.rollback(numbers, [context - length] * canvases)
        model.encode(ids, [length] * canvases, cache, numbers)

    def canvas() -> None:
        for _ in range(16):
            step()
        commit()

    step()
    step_ms, commit_ms, canvas_ms = (timed_ms(device, call, 10) for call in (step, commit, canvas))
    if not state.outcome[:-1].isfinite().all():
        raise RuntimeError(f"a step of {canvases} canvases made numbers that are not finite")
    rates = {n: canvases * length / (n * step_ms + commit_ms) * 1e3 for n in STEPS}
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return StepTime(
        canvases,
        round(step_ms, 3),
        round(commit_ms, 3),
        round(canvas_ms, 2),
        {n: round(rate) for n, rate in rates.items()},
        round(peak / 1e9, 3),
    )


def prepare(
    model: EngineModel, canvases: int, context: int
) -> tuple[Cache, KVCacheBuffers, Canvases, Tensor]:
    """Rows that have read `context` tokens, each at the first step of a canvas that never ends."""
    length, vocabulary = model.config.canvas_length, model.config.vocab_size
    cache = model.new_cache(canvases, context)
    prompt = torch.randint(0, vocabulary, (canvases, context), device=model.device)
    model.encode(prompt, [context] * canvases, cache, list(range(canvases)))
    buffers = model.kv_buffers(cache)
    state = buffers.graphs.get_or_create("canvases", partial(Canvases, model, canvases))
    for row in range(canvases):
        ids = torch.randint(0, vocabulary, (length,)).tolist()
        start = Start(row, 0, context, 2**30, 0.1, 0.4, 0.8, 1, 0.0, ids, [FREE] * length)
        state.begin(row, start)
    return cache, buffers, state, torch.arange(canvases, device=model.device)
