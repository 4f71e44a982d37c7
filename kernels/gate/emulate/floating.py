"""Floating-point arithmetic: computed in float64 and rounded once.

Approximate functions are exact here: a GPU's differ in the last bits, which tolerances allow for.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.formats import (
    Array,
    bfloat16_to_float,
    float_to_bfloat16,
    float_to_half,
    flush,
    half_to_float,
)
from hybrid.kernels.gate.emulate.machine import Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Instruction
from hybrid.kernels.gate.emulate.pointwise import by_halves, pointwise

Compute = Callable[..., Array]
_ALLOWED = {"rn", "ftz", "approx", "full", "NaN", "f32"}
_WIDEN = {"bf16": bfloat16_to_float, "f16": half_to_float}
_NARROW = {"bf16": float_to_bfloat16, "f16": float_to_half}


def _floats(compute: Compute) -> Build:
    def build(machine: Machine, instruction: Instruction) -> Step:
        *others, kind = instruction.modifiers
        if not set(others) <= _ALLOWED:
            raise NotModelled(instruction.opcode)
        result, *sources = instruction.operands
        if "f32" in others:
            return _mixed(machine, instruction, kind, compute)
        if kind == "f32":
            rounded = _in_float32(compute, flushes="ftz" in others)
            return pointwise(machine, result, [(s, np.float32) for s in sources], rounded)
        if kind == "f64":
            return pointwise(machine, result, [(s, np.float64) for s in sources], compute)
        if "ftz" in others:
            raise NotModelled(instruction.opcode)
        if kind in _WIDEN:
            return pointwise(
                machine, result, [(s, np.uint16) for s in sources], _in_16_bits(compute, kind)
            )
        paired = _in_pairs(compute, kind)
        whole = np.uint64 if kind == "f32x2" else np.uint32
        return by_halves(machine, result, [(s, whole) for s in sources], paired)

    return build


def _in_float32(compute: Compute, *, flushes: bool) -> Compute:
    def rounded(*values: Array) -> Array:
        if not flushes:
            return compute(*[v.astype(np.float64) for v in values]).astype(np.float32)
        wide = [flush(v).astype(np.float64) for v in values]
        return flush(compute(*wide).astype(np.float32))

    return rounded


def _in_16_bits(compute: Compute, kind: str) -> Compute:
    widen, narrow = _WIDEN[kind], _NARROW[kind]

    def rounded(*values: Array) -> Array:
        return narrow(compute(*[widen(v).astype(np.float64) for v in values]))

    return rounded


def _in_pairs(compute: Compute, kind: str) -> Compute:
    """Two numbers a register, the first in the low half."""
    if kind == "f32x2":
        part: Any = np.float32
        one = _in_float32(compute, flushes=False)
    elif kind in ("bf16x2", "f16x2"):
        part, one = np.uint16, _in_16_bits(compute, kind[:-2])
    else:
        raise NotModelled(f"arithmetic of {kind}")

    def both(*values: Array) -> Array:
        pairs = [np.ascontiguousarray(v)[:, None].view(part) for v in values]
        done = [one(*[np.ascontiguousarray(p[:, i]) for p in pairs]) for i in range(2)]
        return np.stack(done, -1).view(values[0].dtype)[:, 0]

    return both


def _mixed(machine: Machine, instruction: Instruction, kind: str, compute: Compute) -> Step:
    """``fma.rn.f32.bf16``: factors of 16 bits, and the rest in float32. ``add`` and ``sub`` take
    their first operand narrow.
    """
    result, *sources = instruction.operands
    narrow = 2 if instruction.name == "fma" else 1
    if kind not in _WIDEN or instruction.name not in ("fma", "add", "sub"):
        raise NotModelled(instruction.opcode)
    widen = _WIDEN[kind]
    kinds = [np.uint16] * narrow + [np.float32] * (len(sources) - narrow)

    def rounded(*values: Array) -> Array:
        wide = [widen(v) for v in values[:narrow]] + list(values[narrow:])
        return compute(*[v.astype(np.float64) for v in wide]).astype(np.float32)

    return pointwise(machine, result, list(zip(sources, kinds, strict=True)), rounded)


def _fused(x: Array, y: Array, z: Array) -> Array:
    """In float64 the product of two float32 numbers is exact; the sum is rounded a second time."""
    return x * y + z


def _extreme(number: Compute, with_nan: Compute) -> Build:
    def build(machine: Machine, instruction: Instruction) -> Step:
        if "xorsign" in instruction.modifiers:
            raise NotModelled(instruction.opcode)
        pick = with_nan if "NaN" in instruction.modifiers else number

        def extreme(*values: Array) -> Array:
            return pick(pick(values[0], values[1]), values[-1])

        return _floats(extreme)(machine, instruction)

    return build


BUILDERS: dict[str, Build] = {
    "add": _floats(np.add),
    "sub": _floats(np.subtract),
    "mul": _floats(np.multiply),
    "fma": _floats(_fused),
    "div": _floats(np.divide),
    "neg": _floats(np.negative),
    "abs": _floats(np.abs),
    "min": _extreme(np.fmin, np.minimum),
    "max": _extreme(np.fmax, np.maximum),
    "ex2": _floats(np.exp2),
    "lg2": _floats(np.log2),
    "sqrt": _floats(np.sqrt),
    "rsqrt": _floats(lambda x: 1 / np.sqrt(x)),
    "rcp": _floats(lambda x: 1 / x),
    "tanh": _floats(np.tanh),
    "sin": _floats(np.sin),
    "cos": _floats(np.cos),
}
