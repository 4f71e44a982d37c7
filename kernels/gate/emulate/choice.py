"""Moving, comparing, choosing: ``mov``, ``setp``, ``selp``."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import Array, bfloat16_to_float, half_to_float
from hybrid.kernels.gate.emulate.machine import UNSIGNED, Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Group, Instruction, Operand
from hybrid.kernels.gate.emulate.pointwise import FLOAT_KINDS, by_halves, number_type, pointwise

_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_JOIN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _move(machine: Machine, instruction: Instruction) -> Step:
    """One register, one into several, or several into one."""
    (kind,) = instruction.modifiers
    result, source = instruction.operands
    if isinstance(result, Group):
        return _split(machine, result, instruction)
    if isinstance(source, Group):
        bits = int(kind[1:]) // len(source.items)
        whole = UNSIGNED[int(kind[1:])]

        def join(*parts: Array) -> Array:
            joined = parts[0].astype(whole)
            for place, part in enumerate(parts[1:], 1):
                joined = joined | part.astype(whole) << whole(bits * place)
            return joined

        parts = [(item, UNSIGNED[bits]) for item in source.items]
        if len(parts) == 2:
            return _join_halves(machine, result, source, parts, join)
        return pointwise(machine, result, parts, join)
    number = np.bool_ if kind == "pred" else number_type(kind)
    return by_halves(machine, result, [(source, number)], lambda x: x)


def _join_halves(
    machine: Machine,
    result: Operand,
    source: Group,
    parts: list[tuple[Operand, Any]],
    join: Callable[..., Array],
) -> Step:
    low, high = (machine.read(item, kind) for item, kind in parts)

    def step(mask: Mask) -> None:
        of_low, of_high = (machine.undefined_of((item,)) for item in source.items)
        machine.write_halves(result, join(low(), high()), mask, of_low, of_high)

    return step


def _split(machine: Machine, results: Group, instruction: Instruction) -> Step:
    kind, source = instruction.modifiers[0], instruction.operands[1]
    whole, bits = UNSIGNED[int(kind[1:])], int(kind[1:]) // len(results.items)
    part, read = UNSIGNED[bits], machine.read(source, whole)

    def step(mask: Mask) -> None:
        value, halves = read(), machine.halves_of(source)
        for place, item in enumerate(results.items):
            undefined = halves[place * 2 // len(results.items)]
            machine.write(item, (value >> whole(bits * place)).astype(part), mask, undefined)

    return step


def _set_predicate(machine: Machine, instruction: Instruction) -> Step:
    """Comparisons of floats are false with a NaN, except those that end in ``u`` and ``nan``."""
    compare, *joins, kind = (m for m in instruction.modifiers if m != "ftz")
    result, a, b, *rest = instruction.operands
    if isinstance(result, Group) or len(joins) > 1 or len(rest) != len(joins):
        raise NotModelled(instruction.opcode)
    test = _float_test(compare, kind) if kind in FLOAT_KINDS else _COMPARE[compare]
    number = np.uint16 if kind in ("bf16", "f16") else number_type(kind)
    sources = [(a, number), (b, number), *((operand, np.bool_) for operand in rest)]
    if not joins:
        return pointwise(machine, result, sources, test)
    join = _JOIN[joins[0]]
    return pointwise(machine, result, sources, lambda x, y, p: join(test(x, y), p))


def _float_test(compare: str, kind: str) -> Callable[[Array, Array], Array]:
    widen = {"bf16": bfloat16_to_float, "f16": half_to_float}.get(kind, lambda x: x)
    if kind.endswith("x2"):
        raise NotModelled(f"setp.{compare}.{kind}")

    def test(x: Array, y: Array) -> Array:
        x, y = widen(x), widen(y)
        unordered = np.isnan(x) | np.isnan(y)
        if compare in ("nan", "num"):
            return np.asarray(unordered == (compare == "nan"))
        if compare in _COMPARE:
            return np.asarray(_COMPARE[compare](x, y) & ~unordered)
        return np.asarray(_COMPARE[compare.removesuffix("u")](x, y) | unordered)

    return test


def _select(machine: Machine, instruction: Instruction) -> Step:
    """Undefined only where what is chosen is, or what chooses."""
    (kind,) = instruction.modifiers
    result, a, b, chooser = instruction.operands
    number = UNSIGNED[int(kind[1:])]
    first, second = machine.read(a, number), machine.read(b, number)
    choose = machine.read(chooser, np.bool_)

    def step(mask: Mask) -> None:
        takes_first = choose()
        undefined = machine.undefined_of((a, b, chooser))
        if undefined is not None:
            nothing = ~machine.everyone
            of_first, of_second = (machine.undefined_of((x,)) for x in (a, b))
            chosen = np.where(
                takes_first,
                nothing if of_first is None else of_first,
                nothing if of_second is None else of_second,
            )
            by_chooser = machine.undefined_of((chooser,))
            undefined = chosen if by_chooser is None else chosen | by_chooser
        machine.write(result, np.where(takes_first, first(), second()), mask, undefined)

    return step


BUILDERS: dict[str, Build] = {"mov": _move, "setp": _set_predicate, "selp": _select}
