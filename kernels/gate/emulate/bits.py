"""Logic, shifts, and fields of bits and bytes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.machine import Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Instruction, Number
from hybrid.kernels.gate.emulate.pointwise import number_type, pointwise

_U32, _U64 = np.uint32, np.uint64


def _logic(compute: Callable[..., Array]) -> Build:
    def build(machine: Machine, instruction: Instruction) -> Step:
        (kind,) = instruction.modifiers
        number = number_type(kind)
        result, *sources = instruction.operands
        return pointwise(machine, result, [(source, number) for source in sources], compute)

    return build


def _not(x: Array) -> Array:
    return ~x


def _shift(machine: Machine, instruction: Instruction) -> Step:
    """Amounts beyond the width give zeros, or the sign's."""
    (kind,) = instruction.modifiers
    number, bits = number_type(kind), int(kind[1:])
    result, value, amount = instruction.operands
    is_left, keeps_sign = instruction.name == "shl", kind[0] == "s"

    def shift(x: Array, by: Array) -> Array:
        within = np.minimum(by, bits - 1).astype(x.dtype)
        moved = x << within if is_left else x >> within
        return np.asarray(moved if keeps_sign else np.where(by >= bits, x.dtype.type(0), moved))

    if amount == Number(bits // 2):
        return _shift_by_half(machine, instruction, number, shift)
    return pointwise(machine, result, [(value, number), (amount, _U32)], shift)


def _shift_by_half(
    machine: Machine, instruction: Instruction, number: Any, shift: Callable[..., Array]
) -> Step:
    """One half goes, the other takes its place: only what stays may be undefined."""
    result, value, amount = instruction.operands
    read, by = machine.read(value, number), machine.read(amount, _U32)
    is_left, keeps_sign = instruction.name == "shl", instruction.modifiers[0][0] == "s"

    def step(mask: Mask) -> None:
        low, high = machine.halves_of(value)
        kept = (None, low) if is_left else (high, high if keeps_sign else None)
        machine.write_halves(result, shift(read(), by()), mask, *kept)

    return step


def _funnel(machine: Machine, instruction: Instruction) -> Step:
    """``shf``: 32 bits out of 64."""
    direction, mode, _ = instruction.modifiers
    result, *sources = instruction.operands
    if direction not in ("l", "r") or mode not in ("wrap", "clamp"):
        raise NotModelled(instruction.opcode)

    def shift(low: Array, high: Array, by: Array) -> Array:
        both = high.astype(_U64) << _U64(32) | low
        amount = (by & _U32(31) if mode == "wrap" else np.minimum(by, 32)).astype(_U64)
        moved = (both << amount) >> _U64(32) if direction == "l" else both >> amount
        return moved.astype(_U32)

    return pointwise(machine, result, [(source, _U32) for source in sources], shift)


def _extract(machine: Machine, instruction: Instruction) -> Step:
    """``bfe`` of 32 bits: a field, with the field's sign for ``s32``."""
    (kind,) = instruction.modifiers
    if kind not in ("s32", "u32"):
        raise NotModelled(instruction.opcode)
    result, *sources = instruction.operands
    is_signed = kind == "s32"

    def extract(x: Array, start: Array, length: Array) -> Array:
        begin = np.minimum(start & 255, 63).astype(_U64)
        size = np.minimum(length & 255, 32).astype(np.int64)
        wide = x.astype(np.int64) if is_signed else x.astype(_U64)
        field = (wide >> begin.astype(wide.dtype)) & ((1 << size) - 1).astype(wide.dtype)
        if is_signed:
            top = np.minimum(begin.astype(np.int64) + size - 1, 31)
            sign = (wide >> top) & 1
            field = np.where((sign == 1) & (size > 0), field | (-1 << size), field)
        return np.asarray(field.astype(number_type(kind)))

    number = number_type(kind)
    return pointwise(
        machine, result, list(zip(sources, (number, _U32, _U32), strict=True)), extract
    )


def _insert(machine: Machine, instruction: Instruction) -> Step:
    """``bfi`` of 32 bits: the low bits of the first into a field of the second."""
    if instruction.modifiers != ("b32",):
        raise NotModelled(instruction.opcode)
    result, *sources = instruction.operands

    def insert(x: Array, y: Array, start: Array, length: Array) -> Array:
        size, begin = np.minimum(length & 255, 32), np.minimum(start & 255, 32)
        field = (((_U64(1) << size.astype(_U64)) - _U64(1)) << begin.astype(_U64)).astype(_U32)
        moved = (x.astype(_U64) << begin.astype(_U64)).astype(_U32)
        return np.asarray((y & ~field) | (moved & field))

    return pointwise(machine, result, [(source, _U32) for source in sources], insert)


def _lookup(machine: Machine, instruction: Instruction) -> Step:
    """``lop3``: any function of three bits, by its table."""
    result, *sources, table = instruction.operands
    if instruction.modifiers != ("b32",) or not isinstance(table, Number):
        raise NotModelled(instruction.opcode)
    rows = [row for row in range(8) if table.bits >> row & 1]

    def look_up(x: Array, y: Array, z: Array) -> Array:
        found = np.zeros_like(x)
        for row in rows:
            a, b, c = x if row & 4 else ~x, y if row & 2 else ~y, z if row & 1 else ~z
            found |= a & b & c
        return found

    return pointwise(machine, result, [(source, _U32) for source in sources], look_up)


def _permute(machine: Machine, instruction: Instruction) -> Step:
    """``prmt`` in its default mode: four of eight bytes, or a byte's sign eight times."""
    if instruction.modifiers != ("b32",):
        raise NotModelled(instruction.opcode)
    result, *sources = instruction.operands

    def permute(low: Array, high: Array, selector: Array) -> Array:
        both = high.astype(_U64) << _U64(32) | low
        chosen = np.zeros_like(low)
        for place in range(4):
            pick = selector >> _U32(4 * place)
            byte = ((both >> (_U64(8) * (pick & _U32(7)))) & _U64(255)).astype(_U32)
            signs = np.where(byte >> _U32(7), _U32(255), _U32(0))
            chosen |= np.where(pick & _U32(8), signs, byte) << _U32(8 * place)
        return chosen

    return pointwise(machine, result, [(source, _U32) for source in sources], permute)


def _count(machine: Machine, instruction: Instruction) -> Step:
    (kind,) = instruction.modifiers
    result, source = instruction.operands

    def count(x: Array) -> Array:
        return np.bitwise_count(x).astype(_U32)

    def zeros(x: Array) -> Array:
        used = np.ceil(np.log2(x.astype(np.float64) + 1))
        return (32 - used).astype(_U32)

    if instruction.name == "clz" and kind != "b32":
        raise NotModelled(instruction.opcode)
    compute = zeros if instruction.name == "clz" else count
    return pointwise(machine, result, [(source, number_type(kind))], compute)


BUILDERS: dict[str, Build] = {
    "and": _logic(np.bitwise_and),
    "or": _logic(np.bitwise_or),
    "xor": _logic(np.bitwise_xor),
    "not": _logic(_not),
    "shl": _shift,
    "shr": _shift,
    "shf": _funnel,
    "bfe": _extract,
    "bfi": _insert,
    "lop3": _lookup,
    "prmt": _permute,
    "popc": _count,
    "clz": _count,
}
