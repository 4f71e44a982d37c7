"""Work of fixed shape, captured once as a CUDA graph and replayed with other inputs.

A pass launches about four hundred kernels, each of which costs the host ten to twenty microseconds
that a graph replay does not. On a CPU nothing is captured: the work is computed directly.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from hybrid.engine.device_errors import device_errors

T = TypeVar("T")
_WARM_UPS = 2  # the first compiles kernels, the second settles the allocator
_capturing = Lock()  # torch allows one capture at a time in a process


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Any
    inputs: tuple[Tensor, ...]
    output: Any


class Graphs:
    """Graphs that share a memory pool, so they must be replayed one after another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._captured: dict[Hashable, _Captured] = {}
        self._objects: dict[Hashable, Any] = {}
        self._pool: Any = None
        self._stream: Any = None  # graphs that share a pool are captured on one stream

    def get_or_create(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned at the first call with this key; lives as long as the graphs."""
        if key not in self._objects:
            self._objects[key] = make()
        found: T = self._objects[key]
        return found

    def run(
        self,
        key: Hashable,
        work: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        idle: tuple[Tensor, ...],
    ) -> Any:
        """``work(*inputs)``, whose output lives until the next run.

        `key` names work and shapes. `idle` are inputs with which the work changes no sequence's
        state: warm-ups and the capture run on them.
        """
        with device_errors(self._device):
            return self._run(key, work, inputs, idle)

    def _run(
        self,
        key: Hashable,
        work: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        idle: tuple[Tensor, ...],
    ) -> Any:
        if self._device.type != "cuda":
            return work(*inputs)
        captured = self._captured.get(key)
        if captured is None:
            with _capturing, torch.cuda.device(self._device):
                captured = self._captured[key] = self._capture(work, idle)
        for buffer, given in zip(captured.inputs, inputs, strict=True):
            buffer.copy_(given, non_blocking=True)
        captured.graph.replay()
        return captured.output

    def _capture(self, work: Callable[..., Any], idle: tuple[Tensor, ...]) -> _Captured:
        inputs = tuple(tensor.clone() for tensor in idle)
        if self._stream is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work(*inputs)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on working on this device while this one captures.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            output = work(*inputs)
        return _Captured(graph, inputs, output)
