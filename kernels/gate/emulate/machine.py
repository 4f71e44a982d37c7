"""Several CTAs of a launch at once, all threads in lockstep: registers, divergence, barriers.

Threads are numbered through all CTAs that run together, so that one numpy call does an instruction
for all of them; shared memory and barriers are still a CTA's own. Where threads take different
ways, those at the lowest address run first, until the others have been caught up with.

A register that was never written, or that holds what came from undefined memory, is tracked thread
by thread through everything computed from it: only deciding a branch, an address or a store by it
is a hazard.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hybrid.kernels.gate.emulate.faults import Hazard, NotModelled
from hybrid.kernels.gate.emulate.flow import Flow, Jump, Mask, Wait
from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.locks import Locks
from hybrid.kernels.gate.emulate.memory import GlobalMemory
from hybrid.kernels.gate.emulate.parse import (
    Address,
    Group,
    Instruction,
    Kernel,
    Name,
    Number,
    Operand,
    Register,
)
from hybrid.kernels.gate.emulate.shared import SHARED_BASE, SharedMemory

WARP = 32
UNSIGNED = {1: np.uint8, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


Step = Callable[[Mask], Jump | Wait | None]
Build = Callable[["Machine", Instruction], Step]


class Machine:
    """A kernel for one number of CTAs; `run` executes those CTAs of the grid."""

    def __init__(
        self,
        kernel: Kernel,
        find: Callable[[Instruction], Build],
        memory: GlobalMemory,
        arguments: Mapping[str, int],
        *,
        threads: int,
        ctas: int,
        shared_bytes: int,
    ) -> None:
        self.kernel, self.memory, self.arguments = kernel, memory, arguments
        self.threads, self.ctas, self.total = threads, ctas, threads * ctas
        self.thread = np.arange(self.total)
        self.lane, self.warp = self.thread % WARP, self.thread // WARP
        self.cta = self.thread // threads
        self.everyone = np.ones(self.total, bool)
        self.registers: list[Array] = [
            np.zeros(self.total, np.bool_ if r.bits == 1 else UNSIGNED[r.bits])
            for r in kernel.registers
        ]
        self.undefined: dict[int, Array] = {}
        self.undefined_halves: dict[int, tuple[Mask, Mask]] = {}  # where only one may be
        self.written_at = [-1] * len(self.registers)  # counted in executed instructions
        self.hazards: dict[tuple[int, str], Hazard] = {}
        self.special = self._special_registers()
        self._constants: dict[tuple[int, Any], Array] = {}
        self.shared = SharedMemory(self, shared_bytes, narrowest_access(kernel))
        self.state: dict[str, Any] = {}  # of asynchronous units, each under its own name
        self.locks = Locks()
        self.executed = 0
        self.at = 0
        self._steps = [self._build(find, i) for i in kernel.instructions]
        memory.report = self.hazard
        self._uses = [_registers_of(i) for i in kernel.instructions]

    # --- operands -----------------------------------------------------------------------------

    def read(self, operand: Operand, kind: Any) -> Callable[[], Array]:
        """What gives the operand's bits as an array of this type: cut or widened with zeros."""
        wanted = np.dtype(kind)
        if isinstance(operand, Register):
            return self._read_register(operand, wanted)
        if isinstance(operand, Number):
            row = self._constant(operand.bits, wanted)
        elif isinstance(operand, Name) and operand.text in self.special:
            special, name = self.special, operand.text
            return lambda: special[name].astype(wanted)
        elif isinstance(operand, Name) and operand.text == "global_smem":
            row = self._constant(SHARED_BASE, wanted)
        else:
            raise NotModelled(f"the operand {operand}")
        return lambda: row

    def _read_register(self, operand: Register, wanted: Any) -> Callable[[], Array]:
        registers, index = self.registers, operand.index
        if operand.bits == 1:
            return lambda: registers[index]
        if wanted.itemsize * 8 == operand.bits:
            if wanted == UNSIGNED[operand.bits]:
                return lambda: registers[index]
            return lambda: registers[index].view(wanted)
        unsigned = UNSIGNED[8 * wanted.itemsize]
        return lambda: registers[index].astype(unsigned).view(wanted)

    def _constant(self, bits: int, wanted: Any) -> Array:
        key = (bits, wanted)
        if key not in self._constants:
            if wanted == np.bool_:
                row = np.full(self.total, bits != 0)
            else:
                size = 8 * wanted.itemsize
                row = np.full(self.total, bits & ((1 << size) - 1), UNSIGNED[size]).view(wanted)
            self._constants[key] = row
        return self._constants[key]

    def address(self, operand: Operand) -> Callable[[], Array]:
        """What gives ``[base + offset]`` as int64."""
        if not isinstance(operand, Address):
            raise NotModelled(f"the address {operand}")
        is_wide = isinstance(operand.base, Register) and operand.base.bits == 64
        base = self.read(operand.base, np.uint64 if is_wide else np.uint32)
        offset = operand.offset
        return lambda: base().astype(np.int64) + offset

    def write(self, operand: Operand, values: Array, mask: Mask, undefined: Mask = None) -> None:
        """Put bits into a register where `mask` allows; `undefined` None: all are defined."""
        if not isinstance(operand, Register):
            if operand == Name("_"):
                return
            raise NotModelled(f"the result {operand}")
        index, held = operand.index, self.registers[operand.index]
        if values.dtype != held.dtype:
            same_size = values.dtype.itemsize == held.dtype.itemsize and values.dtype != np.bool_
            values = values.view(held.dtype) if same_size else values.astype(held.dtype)
        if mask is None:
            self.registers[index] = values
        else:
            self.registers[index] = np.where(mask, values, held)
        self.written_at[index] = self.executed
        before = self.undefined.pop(index, None)
        self.undefined_halves.pop(index, None)
        if before is not None and mask is not None:
            after = before & ~mask if undefined is None else np.where(mask, undefined, before)
        elif undefined is not None:
            after = undefined if mask is None else undefined & mask
        else:
            return
        if after.any():
            self.undefined[index] = after

    def write_halves(
        self, operand: Operand, values: Array, mask: Mask, low: Mask, high: Mask
    ) -> None:
        """As `write`, of a register whose halves are computed apart: one may be undefined."""
        if low is None and high is None:
            self.write(operand, values, mask)
            return
        nothing = ~self.everyone
        low, high = (nothing if half is None else half for half in (low, high))
        before = self.halves_of(operand)
        self.write(operand, values, mask, low | high)
        if isinstance(operand, Register) and operand.index in self.undefined:
            if mask is not None:
                held = (nothing if half is None else half for half in before)
                low, high = (
                    np.where(mask, new, old) for new, old in zip((low, high), held, strict=True)
                )
            self.undefined_halves[operand.index] = low, high

    def halves_of(self, operand: Operand) -> tuple[Mask, Mask]:
        """Threads in which the low, and the high half of a register is undefined."""
        if isinstance(operand, Register) and operand.index in self.undefined_halves:
            return self.undefined_halves[operand.index]
        undefined = self.undefined_of((operand,))
        return undefined, undefined

    def undefined_of(self, operands: Sequence[Operand]) -> Mask:
        """Threads in which one of these registers holds nothing defined; None: in none."""
        found: Mask = None
        for operand in operands:
            if isinstance(operand, Register) and operand.index in self.undefined:
                more = self.undefined[operand.index]
                found = more if found is None else found | more
        return found

    def require_defined(self, operands: Sequence[Operand], mask: Mask, use: str) -> None:
        """A hazard where what is used here, for example as an address, was never defined."""
        bad = self.undefined_of(operands)
        if bad is not None and (bad if mask is None else bad & mask).any():
            self.hazard(f"an undefined value is used as {use}")

    # --- running ------------------------------------------------------------------------------

    def hazard(self, what: str) -> None:
        """Note what PTX leaves undefined at this instruction, once."""
        instruction = self.kernel.instructions[self.at]
        key = (instruction.line, what)
        self.hazards.setdefault(key, Hazard(instruction.line, instruction.text[:120], what))

    def run(self, ctas: Sequence[int], grid: tuple[int, int, int]) -> None:
        """Run these CTAs, numbered with x fastest; fewer than the machine holds may be given."""
        self._begin(ctas, grid)
        flow = Flow(self.live)
        with np.errstate(all="ignore"):
            while flow.advance():
                step = self._steps[flow.pc]
                self.at = flow.pc
                self.executed += 1
                if self.locks.held:
                    self._check_locks(flow.mask)
                outcome = step(flow.mask)
                if outcome is None:
                    flow.step()
                else:
                    flow.follow(outcome)

    def _begin(self, ctas: Sequence[int], grid: tuple[int, int, int]) -> None:
        numbers = np.zeros(self.ctas, np.int64)
        numbers[: len(ctas)] = ctas
        self.live = self.cta < len(ctas)
        self.cta_number = numbers[self.cta]
        x, y, _ = grid
        for axis, value in zip(
            "xyz", (numbers % x, numbers // x % y, numbers // (x * y)), strict=True
        ):
            self.special[f"%ctaid.{axis}"] = value[self.cta]
        for axis, size in zip("xyz", grid, strict=True):
            self.special[f"%nctaid.{axis}"] = np.full(self.total, size)
        for index, row in enumerate(self.registers):
            self.registers[index] = np.zeros_like(row)
            self.undefined[index] = self.everyone
        self.undefined_halves.clear()
        self.locks.clear()
        self.state.clear()
        self.shared.clear()

    def _special_registers(self) -> dict[str, Array]:
        zero = np.zeros(self.total, np.int64)
        axes = {
            f"%{name}.{axis}": zero.copy() for name in ("tid", "ctaid", "nctaid") for axis in "xyz"
        }
        shape = {f"%ntid.{axis}": np.ones_like(zero) for axis in "yz"}
        return {
            **axes,
            **shape,
            "%tid.x": self.thread % self.threads,
            "%ntid.x": np.full_like(zero, self.threads),
            "%laneid": self.lane,
        }

    def _build(self, find: Callable[[Instruction], Build], instruction: Instruction) -> Step:
        try:
            step = find(instruction)(self, instruction)
        except (KeyError, IndexError, ValueError) as error:
            raise NotModelled(f"{instruction.text} ({error!r})") from None
        guard = instruction.guard
        if guard is None:
            return step
        index, negated, operands = guard.register.index, guard.negated, (guard.register,)

        def guarded(mask: Mask) -> Jump | Wait | None:
            self.require_defined(operands, mask, "a predicate")
            allowed = ~self.registers[index] if negated else self.registers[index]
            allowed = allowed if mask is None else allowed & mask
            count = np.count_nonzero(allowed)
            if count == 0:
                return None
            return step(None if count == self.total else allowed)

        return guarded

    def _check_locks(self, mask: Mask) -> None:
        for index, is_written in self._uses[self.at]:
            lock = self.locks.held.get(index)
            if lock is None:
                continue
            threads = lock.busy if is_written else lock.written
            if threads is not None and (threads if mask is None else threads & mask).any():
                name = self.kernel.instructions[self.at].name
                if not lock.allows(name):
                    verb = "written" if is_written else "read"
                    self.hazard(f"a register is {verb} while {lock.owner} may still use it")


def _registers_of(instruction: Instruction) -> tuple[tuple[int, bool], ...]:
    """Every register of an instruction, and whether it may be written: the first operand's are."""
    found: list[tuple[int, bool]] = []

    def collect(operand: Operand, is_written: bool) -> None:
        if isinstance(operand, Register):
            found.append((operand.index, is_written))
        elif isinstance(operand, Group):
            for item in operand.items:
                collect(item, is_written)
        elif isinstance(operand, Address):
            collect(operand.base, False)

    for place, operand in enumerate(instruction.operands):
        collect(operand, place == 0)
    if instruction.guard:
        found.append((instruction.guard.register.index, False))
    return tuple(found)


def narrowest_access(kernel: Kernel) -> int:
    """Bytes of the narrowest access to shared memory, at most four."""
    widths = [4]
    for i in kernel.instructions:
        if i.name in ("ld", "st") and any(m.startswith("shared") for m in i.modifiers):
            widths.append(int(i.modifiers[-1][1:]) // 8)
    return min(widths)
