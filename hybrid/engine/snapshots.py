"""What canvases have come to, on its way to the host while the next step runs.

Reading the device's memory waits for everything that was asked of it. A snapshot is copied to
page-locked memory in the order of the work instead, and looked at later.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybrid.engine.canvases import Canvases


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Host copies of `Canvases`' tensors of the same names; `wait` before reading them."""

    best_ids: Tensor
    entropy: Tensor
    kept: Tensor
    ids: Tensor
    outcome: Tensor
    event: Any = None

    def wait(self) -> None:
        """Return once the copies are complete."""
        if self.event is not None:
            self.event.synchronize()


class Snapshots:
    """Takes snapshots of canvases in turns of `kept` buffers, so the last ones stay readable."""

    def __init__(self, canvases: Canvases, kept: int = 2) -> None:
        self._canvases, self._turn = canvases, 0
        self._on_gpu = canvases.outcome.is_cuda
        with torch.inference_mode(False):
            self._buffers = [self._buffer() for _ in range(kept)]

    def take(self) -> Snapshot:
        """Copy what the canvases will be once all work asked for so far is done."""
        buffer = self._buffers[self._turn]
        self._turn = (self._turn + 1) % len(self._buffers)
        for name in ("best_ids", "entropy", "kept", "ids", "outcome"):
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
            kept=copy_of(canvases.kept),
            ids=copy_of(canvases.ids),
            outcome=copy_of(canvases.outcome),
            event=torch.cuda.Event() if self._on_gpu else None,  # type: ignore[no-untyped-call]
        )
