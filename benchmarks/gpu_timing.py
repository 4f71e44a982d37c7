"""How long work takes on a device, and how fast that device copies."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def copy_gb_s(device: torch.device) -> float:
    """Bytes read and written a second by copying 4 GB."""
    source = torch.empty(2**31, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    ms = replayed_ms(device, [lambda: target.copy_(source)], repeats=10)
    return 2 * source.nbytes / 1e6 / ms


def replayed_ms(
    device: torch.device, calls: Sequence[Callable[[], object]], repeats: int = 20
) -> float:
    """Median milliseconds of one of `calls`, which are captured in one graph and replayed.

    Calls on different weights keep the second-level cache from answering. On a CPU nothing is
    captured: every call is made once.
    """
    for call in calls:
        call()
    if device.type != "cuda":
        return timed_ms(device, lambda: [call() for call in calls], 1) / len(calls)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return timed_ms(device, graph.replay, repeats) / len(calls)


def timed_ms(device: torch.device, call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds by the device's own clock, after two calls to warm up."""
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - started)
    times = []
    for repeat in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        if repeat >= 2:
            times.append(float(start.elapsed_time(end)))
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
