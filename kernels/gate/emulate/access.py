"""``ld``, ``st`` and ``atom``: parameters, global and shared memory."""

from collections.abc import Sequence

import numpy as np

from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.machine import UNSIGNED, Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Address, Group, Instruction, Name, Operand

_IGNORED = {
    "L1",
    "L2",
    "evict_first",
    "evict_last",
    "evict_normal",
    "evict_unchanged",
    "no_allocate",
}


def _form(instruction: Instruction) -> tuple[str, int, int]:
    """Space, words and bytes of a word."""
    *others, kind = instruction.modifiers
    words, spaces = 1, []
    for modifier in others:
        if modifier in ("v2", "v4"):
            words = int(modifier[1])
        elif modifier in ("param", "global", "shared", "shared::cta"):
            spaces.append(modifier.removesuffix("::cta"))
        elif modifier.partition("::")[0] not in _IGNORED:
            raise NotModelled(instruction.opcode)
    if len(spaces) != 1:
        raise NotModelled(instruction.opcode)
    return spaces[0], words, int(kind[1:]) // 8


def _items(operand: Operand) -> Sequence[Operand]:
    return operand.items if isinstance(operand, Group) else (operand,)


def _load(machine: Machine, instruction: Instruction) -> Step:
    space, count, size = _form(instruction)
    result, source = instruction.operands
    if space == "param":
        return _load_parameter(machine, instruction, size)
    results, address = _items(result), machine.address(source)
    base = (source.base,) if isinstance(source, Address) else ()

    def step(mask: Mask) -> None:
        machine.require_defined(base, mask, "an address")
        threads = machine.thread if mask is None else np.flatnonzero(mask)
        words, undefined = _words(machine, space, address()[threads], threads, size, count)
        for item, word in zip(results, words, strict=True):
            if mask is None:
                machine.write(item, word, None, undefined)
            else:
                whole = np.zeros(machine.total, word.dtype)
                whole[threads] = word
                machine.write(item, whole, mask, _spread(machine, threads, undefined))

    return step


def _spread(machine: Machine, threads: Array, undefined: Mask) -> Mask:
    if undefined is None:
        return None
    whole = np.zeros(machine.total, bool)
    whole[threads] = undefined
    return whole


def _words(
    machine: Machine, space: str, addresses: Array, threads: Array, size: int, count: int
) -> tuple[list[Array], Mask]:
    ctas = machine.cta[threads]
    if space == "global":
        return machine.memory.load(addresses, machine.cta_number[threads], size, count), None
    at = machine.shared.places(addresses, ctas, size * count)
    words, undefined = machine.shared.load(at, threads, size, count)
    return words, undefined if undefined.any() else None


def _load_parameter(machine: Machine, instruction: Instruction, size: int) -> Step:
    result, source = instruction.operands
    if not (isinstance(source, Address) and isinstance(source.base, Name)) or source.offset:
        raise NotModelled(instruction.text)
    bits = machine.arguments[source.base.text]
    kind = UNSIGNED[8 * size]
    row = np.full(machine.total, bits & ((1 << 8 * size) - 1), kind)

    def step(mask: Mask) -> None:
        machine.write(result, row, mask)

    return step


def _store(machine: Machine, instruction: Instruction) -> Step:
    space, _, size = _form(instruction)
    target, source = instruction.operands
    items, address = _items(source), machine.address(target)
    readers = [machine.read(item, UNSIGNED[8 * size]) for item in items]
    base = (target.base,) if isinstance(target, Address) else ()

    def step(mask: Mask) -> None:
        machine.require_defined(base, mask, "an address")
        threads = machine.thread if mask is None else np.flatnonzero(mask)
        words = [read()[threads] for read in readers]
        addresses, ctas = address()[threads], machine.cta[threads]
        if space == "global":
            machine.require_defined(items, mask, "what is stored")
            machine.memory.store(addresses, machine.cta_number[threads], words)
            return
        at = machine.shared.places(addresses, ctas, size * len(words))
        undefined = machine.undefined_of(items)
        machine.shared.store(at, threads, words, None if undefined is None else undefined[threads])

    return step


def _atomic(machine: Machine, instruction: Instruction) -> Step:
    """Additions in shared memory, in the order of threads."""
    kept = [m for m in instruction.modifiers if m not in ("relaxed", "acq_rel", "cta", "gpu")]
    if [m.removesuffix("::cta") for m in kept] not in (
        ["shared", "add", "u32"],
        ["shared", "add", "s32"],
    ):
        raise NotModelled(instruction.opcode)
    result, target, value = instruction.operands
    address, read = machine.address(target), machine.read(value, np.uint32)
    base = (target.base,) if isinstance(target, Address) else ()

    def step(mask: Mask) -> None:
        machine.require_defined((*base, value), mask, "an address or a sum")
        threads = machine.thread if mask is None else np.flatnonzero(mask)
        at = machine.shared.places(address()[threads], machine.cta[threads], 4)
        before = np.zeros(machine.total, np.uint32)
        before[threads] = machine.shared.add(at, read()[threads])
        machine.write(result, before, mask)

    return step


BUILDERS: dict[str, Build] = {"ld": _load, "st": _store, "atom": _atomic}
