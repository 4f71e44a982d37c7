"""Where a kernel runs: on a GPU, in Triton's interpreter, or nowhere, only noted down.

Every Triton launch of the product goes through `launch`. That is what lets the compile gate see the
launches of the real model on tensors without memory: an operation called under `recording` leaves
the kernel, the types of its arguments and its settings, exactly as a GPU would get them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

OLDEST_MAJOR = 8  # of the compute capability: Ampere was the first with bfloat16

# Streaming multiprocessors and shared memory of one program, by architecture (CUDA guide, 20.9).
_MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
_SHARED_MEMORY = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch as it would have been: arguments by name, numbers by value, tensors as given."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class _Mode:
    """`take` gets what would be launched; None: kernels run, in the interpreter, on tensors of any
    device. `multiprocessors` None: as many as a GPU of the architecture has.
    """

    architecture: int
    take: Callable[[Launch], None] | None
    multiprocessors: int | None = None


_mode: ContextVar[_Mode | None] = ContextVar("kernel_mode", default=None)


def uses_triton(tensor: Tensor) -> bool:
    """Whether an operation on this tensor launches kernels; if not, its reference computes it."""
    return tensor.is_cuda or _mode.get() is not None


def architecture(device: torch.device) -> int:
    """The compute capability as one number, such as 90 for an H100."""
    mode = _mode.get()
    return mode.architecture if mode else _capability(device)


def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side, for kernels whose programs loop over tiles."""
    mode = _mode.get()
    if mode is None:
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    if mode.multiprocessors is not None:
        return mode.multiprocessors
    return _MULTIPROCESSORS[mode.architecture]


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may use."""
    return 1024 * _SHARED_MEMORY.get(architecture(device), 99)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *tensors: Any,
    num_warps: int = 4,
    num_stages: int = 3,
    **numbers: Any,
) -> None:
    """Run a `@triton.jit` kernel; `tensors` in its order, everything else by name."""
    mode = _mode.get()
    if mode is not None and mode.take is not None:
        arguments = {**dict(zip(kernel.arg_names, tensors, strict=False)), **numbers}
        mode.take(Launch(kernel, grid, arguments, num_warps, num_stages))
        return
    with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]  # Triton asks torch
        kernel[grid](*tensors, **numbers, num_warps=num_warps, num_stages=num_stages)


@contextmanager
def interpreted() -> Iterator[None]:
    """Operations run their kernels on CPU tensors too.

    TRITON_INTERPRET=1 must have been set before Triton was first imported.
    """
    with _switched(_Mode(90, None, multiprocessors=2)):
        yield


@contextmanager
def recording(architecture: int) -> Iterator[list[Launch]]:
    """Operations launch nothing; what they would have launched is appended to the list."""
    records: list[Launch] = []
    with _switched(_Mode(architecture, records.append)):
        yield records


@contextmanager
def taken(
    architecture: int, take: Callable[[Launch], None], multiprocessors: int | None = None
) -> Iterator[None]:
    """Operations hand every launch to `take`, at once, instead of to a GPU."""
    with _switched(_Mode(architecture, take, multiprocessors)):
        yield


@contextmanager
def _switched(mode: _Mode) -> Iterator[None]:
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


@cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
