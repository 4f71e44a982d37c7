"""``mbarrier``: what threads wait at for the tensor core. A phase ends as late as a wait allows."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hybrid.kernels.gate.emulate.faults import Fault, NotModelled
from hybrid.kernels.gate.emulate.flow import Mask, Wait
from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.machine import Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Instruction

Arrival = Callable[[], None]
Observer = Callable[[Array], None]  # gets the threads that have seen a phase end


@dataclass(slots=True)
class _Barrier:
    """`coming` are arrivals on their way; each ends what it stands for."""

    count: int
    left: int
    phase: int = 0
    coming: list[Arrival] = field(default_factory=list)
    observers: list[Observer] = field(default_factory=list)

    def has_passed(self, parity: int) -> bool:
        """Whether the phase of this parity is over; lets arrivals come until it is."""
        while self.phase % 2 == parity and self.coming:
            self.coming.pop(0)()
            self.left -= 1
            if not self.left:
                self.phase, self.left = self.phase + 1, self.count
        return self.phase % 2 != parity


def _barriers(machine: Machine) -> dict[int, _Barrier]:
    barriers: dict[int, _Barrier] = machine.state.setdefault("mbarriers", {})
    return barriers


def arrive_later(machine: Machine, place: int, arrival: Arrival, observer: Observer) -> None:
    """An arrival is on its way to the barrier at this flat place of shared memory."""
    barrier = _find(machine, place)
    barrier.coming.append(arrival)
    barrier.observers.append(observer)


def _find(machine: Machine, place: int) -> _Barrier:
    barrier = _barriers(machine).get(place)
    if barrier is None:
        raise Fault("an mbarrier is used that was not initialised")
    return barrier


def _build(machine: Machine, instruction: Instruction) -> Step:
    match instruction.modifiers:
        case ("init", "shared" | "shared::cta", "b64"):
            return _initialise(machine, instruction)
        case ("inval", "shared" | "shared::cta", "b64"):
            return _invalidate(machine, instruction)
        case ("try_wait", "parity", "shared" | "shared::cta", "b64"):
            return _try_wait(machine, instruction)
    raise NotModelled(instruction.opcode)


def _initialise(machine: Machine, instruction: Instruction) -> Step:
    target, count = instruction.operands
    address, read = machine.address(target), machine.read(count, np.uint32)

    def step(mask: Mask) -> None:
        threads = machine.thread if mask is None else np.flatnonzero(mask)
        at = machine.shared.places(address()[threads], machine.cta[threads], 8)
        counts = read()[threads]
        machine.shared.store(at, threads, [np.zeros(len(at), np.uint64)], None)
        for place, expected in zip(at.tolist(), counts.tolist(), strict=True):
            _barriers(machine)[place] = _Barrier(expected, expected)

    return step


def _invalidate(machine: Machine, instruction: Instruction) -> Step:
    address = machine.address(instruction.operands[0])

    def step(mask: Mask) -> None:
        threads = machine.thread if mask is None else np.flatnonzero(mask)
        at = machine.shared.places(address()[threads], machine.cta[threads], 8)
        machine.shared.store(at, threads, [np.zeros(len(at), np.uint64)], None)
        for place in at.tolist():
            if _find(machine, place).coming:
                machine.hazard("an mbarrier ends while arrivals are on their way to it")
            del _barriers(machine)[place]

    return step


def _try_wait(machine: Machine, instruction: Instruction) -> Step:
    result, target, parity = instruction.operands
    address, read = machine.address(target), machine.read(parity, np.uint32)

    def step(mask: Mask) -> Wait | None:
        threads = machine.thread if mask is None else np.flatnonzero(mask)
        at = machine.shared.places(address()[threads], machine.cta[threads], 8)
        machine.shared.load(at, threads, 8, 1)
        parities = read()[threads]
        done = np.zeros(len(threads), bool)
        for place, phase in set(zip(at.tolist(), parities.tolist(), strict=True)):
            here = (at == place) & (parities == phase)
            barrier = _find(machine, place)
            if barrier.has_passed(phase):
                done |= here
                for observe in barrier.observers:
                    observe(threads[here])
        passed = np.zeros(machine.total, bool)
        passed[threads] = done
        machine.write(result, passed, mask)
        if done.all():
            return None
        waiting = np.zeros(machine.total, bool)
        waiting[threads[~done]] = True
        return Wait(waiting)

    return step


BUILDERS: dict[str, Build] = {"mbarrier": _build}
