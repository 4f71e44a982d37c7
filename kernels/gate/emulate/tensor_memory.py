"""The B200's tensor memory, 128 lanes of 512 columns of 32 bits a CTA, and its loads and stores.

Loads and stores are asynchronous: the registers of a load must not be touched before
``tcgen05.wait::ld``, and what is stored is there after ``tcgen05.wait::st``, for other warps after
a barrier as well. What products read and write is kept by columns.
"""

from typing import Any

import numpy as np

from hybrid.kernels.gate.emulate.control import whole_warps
from hybrid.kernels.gate.emulate.faults import Fault, NotModelled
from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.fragments import items
from hybrid.kernels.gate.emulate.machine import WARP, Machine, Step
from hybrid.kernels.gate.emulate.parse import Group, Instruction, Number, Operand, Register

LANES, COLUMNS = 128, 512


class TensorMemory:
    """All CTAs' cells [ctas, 128, 512], and who may touch them."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        shape = (machine.ctas, LANES, COLUMNS)
        self.words, self.defined = np.zeros(shape, np.uint32), np.zeros(shape, bool)
        self._storing, self._loading = np.zeros(shape, bool), np.zeros(shape, bool)
        self._stored_at = np.full(shape, -1, np.int64)
        self._stored_by = np.full(shape, -1, np.int32)  # warp
        self.allocated = np.zeros((machine.ctas, COLUMNS), bool)
        self.read_by_products = np.zeros((machine.ctas, COLUMNS), np.int32)
        self.written_by_products = np.zeros((machine.ctas, COLUMNS), np.int32)
        self._done_at = np.full((machine.ctas, COLUMNS), -1, np.int64)
        self._seen_by = np.zeros((machine.ctas, COLUMNS), np.int64)  # bits of warps

    def load(self, cells: tuple[Array, Array, Array], warps: Array) -> tuple[Array, Array]:
        """Words and whether each is defined, of cells [n, k] for warps [n]."""
        ctas, _, columns = cells
        self._check(cells)
        if self.written_by_products[ctas, columns].any():
            self._machine.hazard("tensor memory is read while a product still writes it")
        self._check_stores(cells, warps[:, None])
        since = self._machine.shared.last_barrier(ctas)
        unseen = (self._seen_by[ctas, columns] >> (warps % 32)[:, None] & 1) == 0
        if ((self._done_at[ctas, columns] > since) & unseen).any():
            self._machine.hazard(
                "tensor memory is read by a warp that did not wait for the product"
            )
        self._loading[cells] = True
        return self.words[cells], self.defined[cells]

    def store(
        self, cells: tuple[Array, Array, Array], warps: Array, words: Array, bad: Array
    ) -> None:
        """Put words [n, k] into cells."""
        ctas, _, columns = cells
        self._check(cells)
        busy = self.written_by_products[ctas, columns] | self.read_by_products[ctas, columns]
        if busy.any():
            self._machine.hazard("tensor memory is written while a product may still use it")
        if self._loading[cells].any():
            self._machine.hazard("tensor memory is written while a load may still read it")
        self.words[cells], self.defined[cells] = words, ~bad
        self._storing[cells] = True
        self._stored_at[cells] = self._machine.executed
        self._stored_by[cells] = warps[:, None]

    def end(self, kind: str, warps: Array) -> None:
        """These warps have waited for their loads or stores."""
        states, lanes = (self._loading if kind == "ld" else self._storing), np.arange(LANES)
        per_cta = self._machine.threads // WARP
        for warp in warps:
            # Loads and stores reach a quarter of the lanes, and warps of a quarter wait together.
            mine = lanes // WARP == warp % per_cta % 4
            states[warp // per_cta, mine] = False

    def use(self, cta: int, columns: slice, warp: int) -> None:
        """A product issued by `warp` reads or adds to these columns."""
        if not self.allocated[cta, columns].all():
            raise Fault("a product outside the allocated tensor memory")
        if self._storing[cta, :, columns].any():
            self._machine.hazard("a product uses tensor memory before tcgen05.wait::st")
        if self._loading[cta, :, columns].any():
            self._machine.hazard("a product uses tensor memory before tcgen05.wait::ld")
        since = self._machine.shared.last_barrier(np.array([cta]))[0]
        stored = self._stored_at[cta, :, columns] > since
        if (stored & (self._stored_by[cta, :, columns] != warp)).any():
            self._machine.hazard("a product uses what another warp stored, without a barrier")

    def end_product(self, cta: int, columns: slice) -> None:
        """A product's sums are there."""
        self.written_by_products[cta, columns] -= 1
        self._done_at[cta, columns] = self._machine.executed
        self._seen_by[cta, columns] = 0

    def see(self, cta: int, warps: Array) -> None:
        """These warps have waited: what is done, they may read."""
        bits = np.bitwise_or.reduce(1 << (warps.astype(np.int64) % 32))
        self._seen_by[cta] |= bits

    def _check(self, cells: tuple[Array, Array, Array]) -> None:
        ctas, lanes, columns = cells
        inside = (columns < COLUMNS) & (lanes < LANES)
        if not inside.all() or not self.allocated[ctas, columns].all():
            raise Fault("an address outside the allocated tensor memory")

    def _check_stores(self, cells: tuple[Array, Array, Array], warps: Array) -> None:
        if self._storing[cells].any():
            self._machine.hazard("tensor memory is read before tcgen05.wait::st")
        since = self._machine.shared.last_barrier(cells[0])
        others = self._stored_by[cells] != warps
        if ((self._stored_at[cells] > since) & others).any():
            self._machine.hazard("tensor memory is read without a barrier after a store")


def tensor_memory(machine: Machine) -> TensorMemory:
    """The tensor memory of this run."""
    found: TensorMemory | None = machine.state.get("tensor memory")
    if found is None:
        found = machine.state["tensor memory"] = TensorMemory(machine)
    return found


def allocate(machine: Machine, instruction: Instruction) -> Step:
    """Columns from the first on; their address goes to shared memory."""
    target, size = instruction.operands
    if not isinstance(size, Number):
        raise NotModelled(instruction.text)
    address, count = machine.address(target), size.bits

    def step(mask: Mask) -> None:
        whole_warps(machine, mask, "tcgen05.alloc")
        threads = (machine.thread if mask is None else np.flatnonzero(mask))[::WARP]
        ctas, memory = machine.cta[threads], tensor_memory(machine)
        if memory.allocated[ctas].any():
            raise NotModelled("tcgen05.alloc more than once")
        memory.allocated[ctas, :count] = True
        at = machine.shared.places(address()[threads], ctas, 4)
        machine.shared.store(at, threads, [np.zeros(len(at), np.uint32)], None)

    return step


def deallocate(machine: Machine, instruction: Instruction) -> Step:
    """Products and loads must be over."""

    def step(mask: Mask) -> None:
        threads = (machine.thread if mask is None else np.flatnonzero(mask))[::WARP]
        memory, ctas = tensor_memory(machine), machine.cta[threads]
        if memory.written_by_products[ctas].any():
            machine.hazard("tensor memory is freed while a product still writes it")
        memory.allocated[ctas] = False

    return step


def transfer(machine: Machine, instruction: Instruction) -> Step:
    """``tcgen05.ld`` and ``tcgen05.st``: of every thread a lane and columns next to each other."""
    way, _, _, shape, repeats, *others, _ = instruction.modifiers
    if shape not in ("32x32b", "16x32bx2") or others:
        raise NotModelled(instruction.opcode)
    registers = next(o for o in instruction.operands if isinstance(o, Group))
    target = instruction.operands[1 if way == "ld" else 0]
    splits = [o.bits for o in instruction.operands if isinstance(o, Number)]
    address, count = machine.address(target), int(repeats[1:])
    if len(registers.items) != count or len(splits) != (shape == "16x32bx2"):
        raise NotModelled(instruction.text)

    def cells(threads: Array) -> tuple[Array, Array, Array]:
        begin = address()[threads]
        lane, column = begin >> 16, begin & 0xFFFF
        within = machine.lane[threads]
        if splits:
            lane, column = lane + within % 16, column + within // 16 * splits[0]
        else:
            lane = lane + within
        quarter = machine.warp[threads] % (machine.threads // WARP) % 4
        if (lane // WARP != quarter).any():
            raise Fault("a warp reaches for lanes of tensor memory that are not its own")
        columns = column[:, None] + np.arange(count)
        shape = columns.shape
        ctas = np.broadcast_to(machine.cta[threads][:, None], shape)
        return ctas, np.broadcast_to(lane[:, None], shape), columns

    if way == "ld":
        return _load(machine, registers, cells)
    return _store(machine, registers, cells)


def _load(machine: Machine, registers: Group, cells: Any) -> Step:
    results = [r for r in registers.items if isinstance(r, Register)]

    def step(mask: Mask) -> None:
        whole_warps(machine, mask, "tcgen05.ld")
        threads = machine.thread if mask is None else np.flatnonzero(mask)
        words, defined = tensor_memory(machine).load(cells(threads), machine.warp[threads])
        for i, item in enumerate(registers.items):
            values, bad = np.zeros(machine.total, np.uint32), np.zeros(machine.total, bool)
            values[threads], bad[threads] = words[:, i], ~defined[:, i]
            machine.write(item, values, mask, bad if bad.any() else None)
        taken = machine.everyone if mask is None else mask
        machine.locks.take(results, taken, "tcgen05.ld", writes=True)
        machine.state.setdefault("loads", []).append((results, taken))

    return step


def _store(machine: Machine, registers: Group, cells: Any) -> Step:
    readers = [machine.read(item, np.uint32) for item in items(registers)]
    sources = [r for r in registers.items if isinstance(r, Register)]

    def step(mask: Mask) -> None:
        whole_warps(machine, mask, "tcgen05.st")
        threads = machine.thread if mask is None else np.flatnonzero(mask)
        words = np.stack([read()[threads] for read in readers], 1)
        bad = np.stack([_undefined(machine, item)[threads] for item in registers.items], 1)
        tensor_memory(machine).store(cells(threads), machine.warp[threads], words, bad)
        taken = machine.everyone if mask is None else mask
        machine.locks.take(sources, taken, "tcgen05.st", writes=False)
        machine.state.setdefault("stores", []).append((sources, taken))

    return step


def _undefined(machine: Machine, item: Operand) -> Array:
    found = machine.undefined_of((item,))
    return ~machine.everyone if found is None else found


def wait(machine: Machine, kind: str) -> Step:
    """All loads, or stores, of these warps are over."""
    held = "loads" if kind == "ld" else "stores"

    def step(mask: Mask) -> None:
        waiting = machine.everyone if mask is None else mask
        left = []
        for registers, threads in machine.state.get(held, []):
            machine.locks.release(registers, threads & waiting)
            rest = threads & ~waiting
            if rest.any():
                left.append((registers, rest))
        machine.state[held] = left
        tensor_memory(machine).end(kind, np.flatnonzero(waiting[::WARP]))

    return step
