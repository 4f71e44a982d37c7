"""Asynchronous copies of canvas state to the host, made while the next step runs.

Reading device memory directly waits for all work that was enqueued. A snapshot is instead enqueued
as a copy to page-locked memory, and read later.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybrid.engine.canvases import Canvases
from hybrid.engine.device_errors import device_errors


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Host copies of `Canvases`' tensors of the same names; `wait` before reading them."""

    best_ids: Tensor
    entropy: Tensor
    accepted: Tensor
    ids: Tensor
    outcome: Tensor
    device: torch.device
    event: Any = None

    def wait(self) -> None:
        """Return once the copies are complete."""
        if self.event is not None:
            with device_errors(self.device):
                self.event.synchronize()


class Snapshots:
    """Takes snapshots into `count` buffers in rotation; the last `count` stay readable."""

    def __init__(self, canvases: Canvases, count: int = 2) -> None:
        self._canvases, self._next = canvases, 0
        self._on_gpu = canvases.outcome.is_cuda
        with torch.inference_mode(False):
            self._buffers = [self._buffer() for _ in range(count)]

    def take(self) -> Snapshot:
        """Enqueue a copy of the state after all work enqueued so far."""
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % len(self._buffers)
        for name in ("best_ids", "entropy", "accepted", "ids", "outcome"):
            source: Tensor = getattr(self._canvases, name)
            getattr(buffer, name).copy_(source, non_blocking=True)
        if buffer.event is not None:
            buffer.event.record(torch.cuda.current_stream(self._canvases.outcome.device))
        return buffer

    def _buffer(self) -> Snapshot:
        canvases = self._canvases

        def copy_of(source: Tensor) -> Tensor:
            return torch.empty(source.shape, dtype=source.dtype, pin_memory=self._on_gpu)

        return Snapshot(
            best_ids=copy_of(canvases.best_ids),
            entropy=copy_of(canvases.entropy),
            accepted=copy_of(canvases.accepted),
            ids=copy_of(canvases.ids),
            outcome=copy_of(canvases.outcome),
            device=canvases.outcome.device,
            event=torch.cuda.Event() if self._on_gpu else None,  # type: ignore[no-untyped-call]
        )
