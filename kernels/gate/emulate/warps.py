"""Exchange within a warp: ``shfl``, ``vote``, ``redux``, ``elect``, ``activemask``."""

from typing import Any

import numpy as np

from hybrid.kernels.gate.emulate.control import whole_warps
from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.machine import WARP, Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Group, Instruction, Operand
from hybrid.kernels.gate.emulate.pointwise import number_type

_REDUCE = {
    "add": np.add,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_EXTREMES = {"min": np.fmin, "max": np.fmax}
_EXTREMES_WITH_NAN = {"min": np.minimum, "max": np.maximum}


def _results(operand: Operand) -> tuple[Operand, Operand | None]:
    if isinstance(operand, Group):
        return operand.items[0], operand.items[1]
    return operand, None


def _shuffle(machine: Machine, instruction: Instruction) -> Step:
    if instruction.modifiers[0] != "sync" or instruction.modifiers[2:] != ("b32",):
        raise NotModelled(instruction.opcode)
    way = instruction.modifiers[1]
    result, in_range = _results(instruction.operands[0])
    value, amount, bounds, _ = instruction.operands[1:]
    read, by, limits = (machine.read(o, np.uint32) for o in (value, amount, bounds))
    lane, first_lane = machine.lane, machine.thread - machine.lane

    def step(mask: Mask) -> None:
        whole_warps(machine, mask, "shfl")
        distance, packed = by().astype(np.int64), limits().astype(np.int64)
        segment, clamp = packed >> 8 & 31, packed & 31
        lowest, highest = lane & segment, (lane & segment) | (clamp & ~segment)
        match way:
            case "up":
                source = lane - distance
                is_inside = source >= highest
            case "down":
                source = lane + distance
                is_inside = source <= highest
            case "bfly":
                source = lane ^ distance
                is_inside = source <= highest
            case _:
                source = lowest | (distance & ~segment & 31)
                is_inside = source <= highest
        source = first_lane + np.where(is_inside, source, lane)
        undefined = machine.undefined_of((value,))
        taken = None if undefined is None else undefined[source]
        machine.write(result, read()[source], mask, taken)
        if in_range is not None:
            machine.write(in_range, is_inside, mask)

    if way not in ("up", "down", "bfly", "idx"):
        raise NotModelled(instruction.opcode)
    return step


def _vote(machine: Machine, instruction: Instruction) -> Step:
    _, way, kind = instruction.modifiers
    result, chooser, _ = instruction.operands
    read = machine.read(chooser, np.bool_)
    if (way, kind) not in (("ballot", "b32"), ("any", "pred"), ("all", "pred")):
        raise NotModelled(instruction.opcode)

    def step(mask: Mask) -> None:
        whole_warps(machine, mask, "vote")
        votes = read().reshape(-1, WARP)
        if way == "ballot":
            count = (votes.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1)
            found: Array = count.astype(np.uint32)
        else:
            found = np.asarray(votes.any(1) if way == "any" else votes.all(1))
        machine.write(result, np.repeat(found, WARP), mask, _any_in_warp(machine, chooser))

    return step


def _reduce(machine: Machine, instruction: Instruction) -> Step:
    _, way, *others, kind = instruction.modifiers
    result, value, _ = instruction.operands
    number = number_type(kind)
    if others not in ([], ["NaN"]) or (others and kind != "f32"):
        raise NotModelled(instruction.opcode)
    keeps_nan = others == ["NaN"] or kind != "f32"
    extremes = _EXTREMES_WITH_NAN if keeps_nan else _EXTREMES
    pick: Any = {**(_REDUCE if kind != "f32" else {}), **extremes}[way]
    read = machine.read(value, number)

    def step(mask: Mask) -> None:
        whole_warps(machine, mask, "redux")
        found = pick.reduce(read().reshape(-1, WARP), axis=1, dtype=number)
        machine.write(result, np.repeat(found, WARP), mask, _any_in_warp(machine, value))

    return step


def _any_in_warp(machine: Machine, operand: Operand) -> Mask:
    undefined = machine.undefined_of((operand,))
    return None if undefined is None else np.repeat(undefined.reshape(-1, WARP).any(1), WARP)


def _elect(machine: Machine, instruction: Instruction) -> Step:
    """The first thread of the warp is the one."""
    number, chosen = _results(instruction.operands[0])
    if instruction.modifiers != ("sync",):
        raise NotModelled(instruction.opcode)

    def step(mask: Mask) -> None:
        whole_warps(machine, mask, "elect")
        machine.write(number, np.zeros(machine.total, np.uint32), mask)
        if chosen is not None:
            machine.write(chosen, machine.lane == 0, mask)

    return step


BUILDERS: dict[str, Build] = {
    "shfl": _shuffle,
    "vote": _vote,
    "redux": _reduce,
    "elect": _elect,
}
