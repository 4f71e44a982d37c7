"""What most instructions are: every thread computes one register from others of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.machine import UNSIGNED, Machine, Step
from hybrid.kernels.gate.emulate.parse import Operand

FLOAT_KINDS = ("f32", "f64", "bf16", "bf16x2", "f16", "f16x2", "f32x2")
_SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}


def number_type(kind: str) -> Any:
    """numpy's type for ``s32``, ``u16``, ``b64``, ``f32`` or ``pred``."""
    if kind == "pred":
        return np.bool_
    if kind in ("f32", "f64"):
        return np.float32 if kind == "f32" else np.float64
    return (_SIGNED if kind[0] == "s" else UNSIGNED)[int(kind[1:])]


def union(*masks: Mask) -> Mask:
    """Threads in any of these; None: in none."""
    found: Mask = None
    for mask in masks:
        if mask is not None:
            found = mask if found is None else found | mask
    return found


def by_halves(
    machine: Machine,
    result: Operand,
    sources: Sequence[tuple[Operand, Any]],
    compute: Callable[..., Array],
) -> Step:
    """As `pointwise`, where each half of the result comes from the same halves of the sources."""
    readers = [machine.read(operand, kind) for operand, kind in sources]
    operands = [operand for operand, _ in sources]

    def step(mask: Mask) -> None:
        values = compute(*[read() for read in readers])
        low, high = zip(*[machine.halves_of(operand) for operand in operands], strict=True)
        machine.write_halves(result, values, mask, union(*low), union(*high))

    return step


def pointwise(
    machine: Machine,
    result: Operand,
    sources: Sequence[tuple[Operand, Any]],
    compute: Callable[..., Array],
) -> Step:
    """`result` from `sources`, each read as its type; undefined where one of them is."""
    readers = [machine.read(operand, kind) for operand, kind in sources]
    operands = [operand for operand, _ in sources]

    def step(mask: Mask) -> None:
        values = compute(*[read() for read in readers])
        machine.write(result, values, mask, machine.undefined_of(operands))

    return step
