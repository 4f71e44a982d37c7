"""Operations run their kernels emulated: compiled, with their shipped settings, on CPU tensors."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybrid.kernels.gate.emulate.compiler import Compiled, compile_ptx
from hybrid.kernels.gate.emulate.faults import Fault, Hazard
from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.instructions import find_builder
from hybrid.kernels.gate.emulate.machine import Machine
from hybrid.kernels.gate.emulate.memory import GlobalMemory
from hybrid.kernels.gate.emulate.parse import Kernel, parse
from hybrid.kernels.launch import Launch, taken

_THREADS = 4096  # that run together, in whole CTAs
_SHARED_BYTES = 4 << 20  # of all CTAs that run together

Edit = Callable[[str, str], str]  # a kernel's name and PTX to the PTX that runs


@dataclass(frozen=True, slots=True)
class Ran:
    """What one launch did."""

    launch: Launch
    grid: tuple[int, int, int]
    instructions: int
    hazards: tuple[Hazard, ...]


@contextmanager
def emulated(
    architecture: int, multiprocessors: int = 4, edit: Edit | None = None
) -> Iterator[list[Ran]]:
    """Operations run in the emulator, launch by launch; the list says what ran.

    Raises `Fault` or `NotModelled` out of the operation. `edit` may change the PTX before it runs.
    """
    ran: list[Ran] = []

    def take(launch: Launch) -> None:
        ran.append(emulate(launch, compile_ptx(launch, architecture), edit))

    with taken(architecture, take, multiprocessors):
        yield ran


def emulate(launch: Launch, compiled: Compiled, edit: Edit | None = None) -> Ran:
    """Run all CTAs of a launch; its tensors get what the kernel stores."""
    name = str(launch.kernel.__name__)
    kernel = parse(edit(name, compiled.ptx) if edit else compiled.ptx)
    storages = {}
    for value in compiled.values:
        if isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage()
    arrays = [_bytes(storage) for storage in storages.values()]
    memory = GlobalMemory(arrays)
    begins = dict(zip(storages, memory.addresses, strict=True))
    values = [_bits(value, begins) for value in compiled.values]
    padding = [0] * (len(kernel.parameters) - len(values))  # scratch pointers that Triton adds
    arguments = dict(zip(kernel.parameters, [*values, *padding], strict=True))
    x, y, z = (*launch.grid, 1, 1)[:3]
    instructions, hazards = _run(kernel, compiled, memory, arguments, (x, y, z))
    for index, array in enumerate(arrays):
        array[:] = memory.contents(index, array.size)
    return Ran(launch, (x, y, z), instructions, hazards)


def _run(
    kernel: Kernel,
    compiled: Compiled,
    memory: GlobalMemory,
    arguments: dict[str, int],
    grid: tuple[int, int, int],
) -> tuple[int, tuple[Hazard, ...]]:
    total = grid[0] * grid[1] * grid[2]
    most = max(1, min(_THREADS // compiled.threads, _SHARED_BYTES // (compiled.shared_bytes + 1)))
    together = -(-total // -(-total // most)) if total else 0
    machine: Machine | None = None
    for first in range(0, total, together or 1):
        ctas = range(first, min(first + together, total))
        if machine is None:
            machine = Machine(
                kernel,
                find_builder,
                memory,
                arguments,
                threads=compiled.threads,
                ctas=together,
                shared_bytes=compiled.shared_bytes,
            )
        try:
            machine.run(ctas, grid)
        except Fault as fault:
            instruction = kernel.instructions[machine.at]
            raise Fault(f"{fault}, at line {instruction.line}: {instruction.text[:120]}") from None
    if machine is None:
        return 0, ()
    return machine.executed, tuple(machine.hazards.values())


def _bytes(storage: torch.UntypedStorage) -> Array:
    size = storage.nbytes()
    if not size:
        return np.zeros(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(storage.data_ptr()))


def _bits(value: Any, begins: dict[int, int]) -> int:
    """An argument as the driver would pass it."""
    if isinstance(value, Tensor):
        begin = value.untyped_storage().data_ptr()
        return begins[begin] + value.data_ptr() - begin
    if isinstance(value, float):
        return int(np.float32(value).view(np.uint32))
    return int(value)
