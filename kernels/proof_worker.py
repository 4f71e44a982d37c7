"""`python -m hybrid.kernels.proof_worker DEVICE`: runs the cases of the proof in this process.

Each line of input is a case's name, each line of output what came of it, as JSON. An error of the
device makes everything after it fail too, so the process says so and ends.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hybrid.kernels.proof_cases import ProofCase, proof_cases

_REPEATS = 20
POISONED = 3  # the row that is NaN


def main(device_name: str) -> None:
    """Answer until the input ends, or the device fails."""
    outbox = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    cases = {case.name: case for case in proof_cases(device)}
    bandwidth = copy_bandwidth(device)
    for line in sys.stdin:
        answer = examine(cases[line.strip()], device, bandwidth)
        outbox.write(json.dumps(answer) + "\n")
        outbox.flush()
        if answer["device_failed"]:
            os._exit(1)  # an ordinary exit would wait for the device


def examine(case: ProofCase, device: torch.device, bandwidth: float | None) -> dict[str, Any]:
    """Errors of a case, its time in ms and its share of the copy bandwidth; or what it raised."""
    found: dict[str, Any] = dict.fromkeys(("error", "rms", "ms", "share")) | {"detail": ""}
    try:
        with torch.inference_mode():
            given = case.arguments()
            exact = case.reference(*given)
            found["error"], found["rms"] = _compare(case.call(*case.arguments()), exact)
            if device.type == "cuda":
                for outputs in _replayed(case.call, given):
                    found["error"] = max(found["error"], _compare(outputs, exact)[0])
                found["ms"] = milliseconds(lambda: case.call(*given))
                num_bytes = sum(getattr(value, "nbytes", 0) for value in given)
                found["share"] = num_bytes / found["ms"] / 1e6 / (bandwidth or math.inf)
            found["detail"] = _check_poisoned(case)
        return {**found, "device_failed": False}
    except Exception as error:  # compilers and drivers raise many unrelated types
        text = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
        return {**found, "detail": text, "device_failed": is_device_error(error)}


def is_device_error(error: BaseException) -> bool:
    """Whether every later use of the device in this process fails too, as after a bad address."""
    return not isinstance(error, torch.OutOfMemoryError) and "CUDA error" in str(error)


def copy_bandwidth(device: torch.device) -> float | None:
    """GB/s, read and written, of a large copy; None on a CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) / 1e6


def milliseconds(work: Callable[[], object]) -> float:
    """The median time of one call on the current CUDA device."""
    times = []
    for _ in range(_REPEATS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return sorted(times)[_REPEATS // 2]


def _compare(actual: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> tuple[float, float]:
    """The largest errors, and the RMS ones, as `ProofCase` measures them; infinite for a NaN."""
    largest = rms = 0.0
    for one, other in zip(actual, exact, strict=True):
        if not one.is_floating_point():
            different = float((one != other).float().mean())
            largest, rms = max(largest, different), max(rms, different)
            continue
        wide, right = one.double(), other.double()
        size = right.square().mean().sqrt().clamp(min=1e-30)
        error = torch.nan_to_num((wide - right).abs(), nan=torch.inf)
        largest = max(largest, float((error / (right.abs() + size)).max()))
        rms = max(rms, float(error.square().mean().sqrt() / size))
    return largest, rms


def _replayed(
    call: Callable[..., tuple[Tensor, ...]], given: tuple[Any, ...]
) -> Iterator[tuple[Tensor, ...]]:
    """What a captured graph leaves of each of two replays, over outputs filled with NaN."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.graph(graph, stream=stream):
        outputs = call(*given)
    for _ in range(2):
        for output in outputs:
            output.fill_(math.nan if output.is_floating_point() else 1)
        graph.replay()
        torch.cuda.synchronize()
        yield outputs


def _check_poisoned(case: ProofCase) -> str:
    """What is wrong with a call one of whose input rows is NaN; "" if all is well.

    A bad row must not change the others, and numbers that choose rows of a table stay inside it.
    """
    given = case.arguments()
    first = given[0]
    if not (first.is_floating_point() and first.dim() == 2 and len(first) > POISONED):
        return ""
    right = case.call(*case.arguments())
    first[POISONED] = math.nan
    for one, other in zip(case.call(*given), right, strict=True):
        is_row = len(one) == len(first)
        if is_row and not torch.equal(_without(one), _without(other)):
            return "a NaN in one row of the input changes other rows"
    for ids in case.ids(*given) if case.ids else ():
        if not ((ids >= 0) & (ids < case.id_limit)).all():
            return f"a NaN in the input gives an id of {int(ids.max())}, of {case.id_limit}"
    return ""


def _without(rows: Tensor) -> Tensor:
    return torch.cat((rows[:POISONED], rows[POISONED + 1 :]))


if __name__ == "__main__":
    main(sys.argv[1])
