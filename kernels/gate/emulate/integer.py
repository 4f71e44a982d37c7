"""Integer arithmetic."""

from collections.abc import Callable

import numpy as np

from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.machine import Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Instruction
from hybrid.kernels.gate.emulate.pointwise import number_type, pointwise

_WIDER = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}


def _plain(compute: Callable[..., Array]) -> Build:
    """An instruction whose only modifier is its type."""

    def build(machine: Machine, instruction: Instruction) -> Step:
        (kind,) = instruction.modifiers
        number = number_type(kind)
        result, *sources = instruction.operands
        return pointwise(machine, result, [(source, number) for source in sources], compute)

    return build


def _product(machine: Machine, instruction: Instruction) -> Step:
    """``mul`` and ``mad`` with the ``lo``, ``hi`` or ``wide`` part of the product."""
    part, kind = instruction.modifiers
    result, a, b, *added = instruction.operands
    if part == "lo":
        narrow = number_type(kind)
        sources = [(operand, narrow) for operand in (a, b, *added)]
        return pointwise(machine, result, sources, lambda x, y, z=None: _sum(x * y, z))
    wide, narrow, bits = number_type(_WIDER[kind]), number_type(kind), int(kind[1:])
    if part == "wide":
        sources = [(a, narrow), (b, narrow), *((operand, wide) for operand in added)]
        return pointwise(
            machine, result, sources, lambda x, y, z=None: _sum(x.astype(wide) * y.astype(wide), z)
        )
    if part != "hi":
        raise NotModelled(instruction.opcode)

    def high(x: Array, y: Array, z: Array | None = None) -> Array:
        return _sum(((x.astype(wide) * y.astype(wide)) >> wide(bits)).astype(narrow), z)

    return pointwise(machine, result, [(operand, narrow) for operand in (a, b, *added)], high)


def _sum(product: Array, added: Array | None) -> Array:
    return product if added is None else product + added


def _quotient(x: Array, y: Array) -> Array:
    """Towards zero; by zero, which PTX leaves open, it is zero."""
    safe = np.where(y == 0, 1, y).astype(y.dtype)
    return np.asarray((x - np.fmod(x, safe)) // safe, x.dtype)


def _remainder(x: Array, y: Array) -> Array:
    return np.asarray(np.fmod(x, np.where(y == 0, 1, y).astype(y.dtype)))


BUILDERS: dict[str, Build] = {
    "add": _plain(np.add),
    "sub": _plain(np.subtract),
    "mul": _product,
    "mad": _product,
    "div": _plain(_quotient),
    "rem": _plain(_remainder),
    "neg": _plain(np.negative),
    "abs": _plain(np.abs),
    "min": _plain(np.minimum),
    "max": _plain(np.maximum),
}
