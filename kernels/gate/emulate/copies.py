"""``cp.async``: global to shared memory; what is copied can be read after waiting and a barrier."""

import numpy as np

from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.groups import Groups
from hybrid.kernels.gate.emulate.machine import Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Address, Instruction, Number


def _copy(machine: Machine, instruction: Instruction) -> Step:
    match instruction.modifiers:
        case ("async", "commit_group"):
            return lambda mask: _groups(machine).commit(mask)
        case ("async", "wait_group"):
            (keep,) = instruction.operands
            if isinstance(keep, Number):
                count = keep.bits
                return lambda mask: _groups(machine).wait(mask, count)
        case ("async", "wait_all"):
            return lambda mask: _wait_for_all(machine, mask)
        case ("async", "ca" | "cg", "shared" | "shared::cta", "global", *rest):
            if all(hint.startswith("L2::") for hint in rest):
                return _begin(machine, instruction)
    raise NotModelled(instruction.opcode)


def _groups(machine: Machine) -> Groups:
    groups: Groups = machine.state.setdefault("copies", Groups(machine.total))
    return groups


def _wait_for_all(machine: Machine, mask: Mask) -> None:
    _groups(machine).commit(mask)
    _groups(machine).wait(mask, 0)


def _begin(machine: Machine, instruction: Instruction) -> Step:
    """Bytes beyond the source size are zeros."""
    target, source, size, *rest = instruction.operands
    if not isinstance(size, Number) or len(rest) > 1:
        raise NotModelled(instruction.text)
    width, to, start = size.bits, machine.address(target), machine.address(source)
    taken = machine.read(rest[0], np.uint32) if rest else None
    bases = [o.base for o in (target, source) if isinstance(o, Address)]

    def step(mask: Mask) -> None:
        machine.require_defined([*bases, *rest], mask, "an address or a size")
        threads = machine.thread if mask is None else np.flatnonzero(mask)
        at = machine.shared.places(to()[threads], machine.cta[threads], width)
        words = [np.zeros(len(threads), np.uint32) for _ in range(width // 4)]
        reads = np.ones(len(threads), bool)
        if taken is not None:
            sizes = taken()[threads]
            if not np.isin(sizes, (0, width)).all():
                raise NotModelled("cp.async of a part of its bytes")
            reads = sizes == width
        if reads.any():
            from_global = machine.memory.load(
                start()[threads][reads], machine.cta_number[threads[reads]], 4, width // 4
            )
            for word, values in zip(words, from_global, strict=True):
                word[reads] = values
        machine.shared.begin_copy(at, threads, width)

        def finish(chosen: Array) -> None:
            machine.shared.end_copy(at[chosen], threads[chosen], [w[chosen] for w in words])

        _groups(machine).add(threads, finish)

    return step


BUILDERS: dict[str, Build] = {"cp": _copy}
