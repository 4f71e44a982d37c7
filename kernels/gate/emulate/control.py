"""Branches, ends, barriers of a CTA and of a warp, and fences."""

import numpy as np

from hybrid.kernels.gate.emulate.faults import Fault, NotModelled
from hybrid.kernels.gate.emulate.flow import Jump, Mask, Wait
from hybrid.kernels.gate.emulate.machine import Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Instruction, Name, Number


def _branch(machine: Machine, instruction: Instruction) -> Step:
    (label,) = instruction.operands
    if not isinstance(label, Name) or instruction.modifiers not in ((), ("uni",)):
        raise NotModelled(instruction.text)
    target = machine.kernel.labels[label.text]
    return lambda mask: Jump(target, mask)


def _end(machine: Machine, instruction: Instruction) -> Step:
    def step(mask: Mask) -> Jump:
        machine.live = machine.live & ~(machine.everyone if mask is None else mask)
        return Jump(None, mask)

    return step


def _barrier(machine: Machine, instruction: Instruction) -> Step:
    match instruction.modifiers:
        case ("warp", "sync"):
            return _warp_barrier(machine)
        case ("sync",) | ("sync", "aligned") | ("cta", "sync") | ("cta", "sync", "aligned"):
            if instruction.operands == (Number(0),):
                return _cta_barrier(machine)
    raise NotModelled(instruction.text)


def _cta_barrier(machine: Machine) -> Step:
    """Threads wait until all of their CTA that have not ended are at a barrier, this or another."""
    ctas = np.arange(machine.ctas)

    def step(mask: Mask) -> Wait | None:
        if mask is None:
            machine.shared.pass_barrier(ctas)
            return None
        arrived = machine.state.setdefault("arrived", np.zeros(machine.total, bool))
        passing = machine.state.setdefault("passing", np.zeros(machine.total, bool))
        arrived |= mask & ~passing
        missing = (machine.live & ~arrived).reshape(machine.ctas, -1).any(1)
        complete = ~missing & (arrived & mask).reshape(machine.ctas, -1).any(1)
        if complete.any():
            machine.shared.pass_barrier(np.flatnonzero(complete))
            passing |= arrived & complete[machine.cta]
            arrived &= ~complete[machine.cta]
        going = passing & mask
        passing &= ~going
        staying = mask & ~going
        return Wait(staying) if staying.any() else None

    return step


def _warp_barrier(machine: Machine) -> Step:
    def step(mask: Mask) -> None:
        warps = np.unique(machine.warp if mask is None else machine.warp[mask])
        whole_warps(machine, mask, "bar.warp.sync")
        machine.shared.pass_warp_barrier(warps)

    return step


def whole_warps(machine: Machine, mask: Mask, name: str) -> None:
    """A fault where only some threads of a warp take part in what all have to."""
    if mask is not None:
        active = mask.reshape(-1, 32)
        if (active.any(1) != active.all(1)).any():
            raise Fault(f"{name} by a part of a warp")


def _fence(machine: Machine, instruction: Instruction) -> Step:
    match instruction.modifiers:
        case ("proxy", "async", *_):

            def step(mask: Mask) -> None:
                threads = machine.cta if mask is None else machine.cta[mask]
                machine.shared.fence_proxy(np.unique(threads))

            return step
        case ("mbarrier_init", *_) | ("acq_rel" | "sc", *_):
            return lambda mask: None
    raise NotModelled(instruction.opcode)


BUILDERS: dict[str, Build] = {
    "bra": _branch,
    "ret": _end,
    "exit": _end,
    "bar": _barrier,
    "barrier": _barrier,
    "fence": _fence,
}
