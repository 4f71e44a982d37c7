"""One memory plan for a drafter and a refiner on one device, and what fits where it does not.

A drafter has rows of a batch, a refiner one session. What CUDA itself takes is counted once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hybrid.engine.memory import (
    OVERHEAD,
    USUAL_CONTEXT,
    gigabytes,
    pass_bytes,
    row_bytes,
    step_bytes,
    weight_bytes,
)
from hybrid.errors import CapabilityError
from hybrid.gemma.checkpoint.tensors import Checkpoint
from hybrid.gemma.config import GemmaConfig

ROWS = (8, 4, 2, 1)
CONTEXTS = tuple(1 << power for power in range(18, 9, -1))  # 262,144 to 1,024 tokens


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model's geometry, and the bytes of its weights on the device."""

    config: GemmaConfig
    weights: int
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def from_directory(cls, path: str | Path) -> "PlannedModel":
        """Read from a model folder's settings and headers."""
        config, checkpoint = GemmaConfig.from_directory(path), Checkpoint(path)
        try:
            return cls(config, weight_bytes(checkpoint, torch.bfloat16))
        finally:
            checkpoint.close()

    def working_bytes(self, rows: int, context: int) -> int:
        """Keys and values of `rows` rows and the idle one, and what passes and steps work in."""
        cache = (rows + 1) * row_bytes(self.config, context, self.dtype)
        work = pass_bytes(self.config, self.dtype)
        if self.config.canvas_length:
            work += step_bytes(self.config, rows, self.dtype)
        return cache + work


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """The models of one device; either may be missing."""

    drafter: PlannedModel | None
    refiner: PlannedModel | None

    def total_bytes(self, rows: int, context: int) -> int:
        """All that must be free for `rows` drafts at a time and one refiner session."""
        total = OVERHEAD
        if self.drafter:
            total += self.drafter.weights + self.drafter.working_bytes(rows, context)
        if self.refiner:
            total += self.refiner.weights + self.refiner.working_bytes(1, context)
        return total

    def max_rows(self, free: int, context: int) -> int:
        """The largest batch that fits; 0 if not even one row does."""
        return next((rows for rows in ROWS if self.total_bytes(rows, context) <= free), 0)

    def max_context(self, free: int, rows: int) -> int:
        """The longest context, a power of two, with so many rows; 0 if not even the shortest."""
        models = [model for model in (self.drafter, self.refiner) if model]
        limit = min(model.config.max_position_embeddings for model in models)
        fitting = (c for c in CONTEXTS if c <= limit and self.total_bytes(rows, c) <= free)
        return next(fitting, 0)

    def __str__(self) -> str:
        parts = [
            f"{name}: {gigabytes(model.weights)} of weights and "
            f"{gigabytes(model.working_bytes(1, USUAL_CONTEXT))} to work in"
            for name, model in (("drafter", self.drafter), ("refiner", self.refiner))
            if model
        ]
        total = gigabytes(self.total_bytes(1, USUAL_CONTEXT))
        return f"{total} for one row of {USUAL_CONTEXT} tokens ({'; '.join(parts)})"


def require_pair(drafter: PlannedModel, refiner: PlannedModel, device: torch.device) -> None:
    """CapabilityError, with what would fit, if a GPU's free memory does not hold both models."""
    plan = DevicePlan(drafter, refiner)
    free, size = torch.cuda.mem_get_info(device)
    if plan.total_bytes(1, USUAL_CONTEXT) <= free:
        return
    name = f"{device} ({torch.cuda.get_device_name(device)}, {gigabytes(size)})"
    missing = f"needs {plan}, and {gigabytes(free)} are free; {'; '.join(_what_fits(plan, free))}"
    raise CapabilityError("loading drafter and refiner", name, missing)


def _what_fits(plan: DevicePlan, free: int) -> Iterator[str]:
    """Suggestions, the smallest change first."""
    if (context := plan.max_context(free, 1)) > 0:
        yield f"a context of {context} tokens fits"
    assert plan.drafter is not None
    left = free - DevicePlan(plan.drafter, None).total_bytes(1, USUAL_CONTEXT)
    if left > 0:
        yield f"the drafter alone fits and leaves {gigabytes(left)}, a smaller refiner's share"
        yield "or set models.refiner.device to another device, such as cuda:1 or cpu"
    else:
        short = gigabytes(-left)
        yield f"the drafter alone is {short} too large: use an NVFP4 checkpoint or a larger GPU"
