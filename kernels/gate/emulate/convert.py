"""``cvt``: between widths of integers, integers and floats, and kinds of floats."""

from collections.abc import Callable

import numpy as np

from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import (
    Array,
    bfloat16_to_float,
    e4m3_to_float,
    float_to_bfloat16,
    float_to_e4m3,
    float_to_half,
    flush,
    half_to_float,
)
from hybrid.kernels.gate.emulate.machine import Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Instruction
from hybrid.kernels.gate.emulate.pointwise import number_type, pointwise

_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_WIDEN = {"bf16": bfloat16_to_float, "f16": half_to_float}
_NARROW = {"bf16": float_to_bfloat16, "f16": float_to_half}


def _convert(machine: Machine, instruction: Instruction) -> Step:
    *how, to, source = instruction.modifiers
    result, *operands = instruction.operands
    saturates = "satfinite" in how
    if saturates != (to == "e4m3x2") or not set(how) <= {*_ROUND, "rn", "ftz", "satfinite"}:
        raise NotModelled(instruction.opcode)
    if to[0] in "sub" and source[0] in "sub" and "f" not in to + source:
        number = number_type(to)
        if 2 * int(to[1:]) <= int(source[1:]):
            return _low_half(machine, instruction, number)
        return pointwise(machine, result, [(operands[0], number_type(source))], _as(number))
    if len(operands) == 2:
        return pointwise(machine, result, [(o, np.float32) for o in operands], _pair(to, source))
    compute, number = _single(how, to, source)
    return pointwise(machine, result, [(operands[0], number)], compute)


def _low_half(machine: Machine, instruction: Instruction, number: type) -> Step:
    """Of a narrower integer, only the half that it is taken from can be undefined."""
    result, operand = instruction.operands
    read = machine.read(operand, number_type(instruction.modifiers[-1]))

    def step(mask: Mask) -> None:
        machine.write(result, read().astype(number), mask, machine.halves_of(operand)[0])

    return step


def _as(number: type) -> Callable[[Array], Array]:
    return lambda x: x.astype(number)


def _pair(to: str, source: str) -> Callable[[Array, Array], Array]:
    """Two float32 numbers to two narrow ones; the first goes to the high half."""
    narrow = {"bf16x2": float_to_bfloat16, "f16x2": float_to_half, "e4m3x2": float_to_e4m3}[to]
    if source != "f32":
        raise NotModelled(f"cvt.{to}.{source}")

    def convert(high: Array, low: Array) -> Array:
        both = np.stack([narrow(low), narrow(high)], -1)
        return both.view(np.uint16 if to == "e4m3x2" else np.uint32)[:, 0]

    return convert


def _single(how: list[str], to: str, source: str) -> tuple[Callable[[Array], Array], type]:
    if to in _NARROW and source == "f32" and "rn" in how:
        return _NARROW[to], np.float32
    if to == "f32" and source in _WIDEN:
        return _WIDEN[source], np.uint16
    if (to, source) == ("f16x2", "e4m3x2"):
        return _halves_of_e4m3, np.uint16
    rounding = next((_ROUND[h] for h in how if h in _ROUND), None)
    if source == "f32" and rounding is not None:
        if to == "f32":
            flushes = "ftz" in how
            return lambda x: rounding(flush(x) if flushes else x), np.float32
        return _to_integer(rounding, number_type(to)), np.float32
    if to == "f32" and source[0] in "su" and "rn" in how:
        return lambda x: x.astype(np.float32), number_type(source)
    if to == "f64" and source == "f32":
        return lambda x: x.astype(np.float64), np.float32
    if to == "f32" and source == "f64" and "rn" in how:
        return lambda x: x.astype(np.float32), np.float64
    raise NotModelled(f"cvt.{'.'.join([*how, to, source])}")


def _to_integer(rounding: Callable[[Array], Array], number: type) -> Callable[[Array], Array]:
    """Clamped to the integer's range; NaN becomes zero."""
    range_of = np.iinfo(number)

    def convert(x: Array) -> Array:
        whole = np.nan_to_num(rounding(x.astype(np.float64)), posinf=np.inf, neginf=-np.inf)
        too_large = whole >= float(range_of.max)
        inside = np.where(too_large, 0, np.maximum(whole, float(range_of.min)))
        return np.where(too_large, range_of.max, inside.astype(number)).astype(number)

    return convert


def _halves_of_e4m3(codes: Array) -> Array:
    both = np.stack([float_to_half(e4m3_to_float(codes >> shift)) for shift in (0, 8)], -1)
    return both.view(np.uint32)[:, 0]


BUILDERS: dict[str, Build] = {"cvt": _convert}
