"""The B200's products: one thread asks, the result is there when an mbarrier says so.

A product is computed when it is issued. Until a wait on the mbarrier that it was committed to, its
shared memory must not be written, and its sums in tensor memory neither read nor written.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid.kernels.gate.emulate.descriptors import Descriptor
from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import (
    E2M1_VALUES,
    Array,
    bfloat16_to_float,
    e4m3_to_float,
    half_to_float,
    halves,
)
from hybrid.kernels.gate.emulate.machine import Build, Machine, Step
from hybrid.kernels.gate.emulate.mbarriers import arrive_later
from hybrid.kernels.gate.emulate.parse import Address, Instruction
from hybrid.kernels.gate.emulate.tensor_memory import (
    LANES,
    allocate,
    deallocate,
    tensor_memory,
    transfer,
    wait,
)


@dataclass(frozen=True, slots=True)
class _Running:
    """A product that may still run: its granules of shared memory, and its columns."""

    granules: tuple[Array, ...]
    read: tuple[slice, ...]
    written: slice


def _build(machine: Machine, instruction: Instruction) -> Step:
    match instruction.modifiers:
        case ("alloc", "cta_group::1", *_):
            return allocate(machine, instruction)
        case ("dealloc", "cta_group::1", *_):
            return deallocate(machine, instruction)
        case ("relinquish_alloc_permit", "cta_group::1", *_):
            return lambda mask: None
        case ("ld" | "st", "sync", "aligned", *_):
            return transfer(machine, instruction)
        case (("wait::ld" | "wait::st") as kind, "sync", "aligned"):
            return wait(machine, kind[-2:])
        case ("commit", "cta_group::1", "mbarrier::arrive::one", "shared::cluster", "b64"):
            return _commit(machine, instruction)
        case ("mma", "cta_group::1", "kind::f16"):
            return _multiply(machine, instruction)
        case ("mma", "cta_group::1", "kind::mxf4nvf4", "block_scale", "scale_vec::4X"):
            return _multiply_scaled(machine, instruction)
    raise NotModelled(instruction.opcode)


def _running(machine: Machine, cta: int) -> list[_Running]:
    running: list[_Running] = machine.state.setdefault("tcgen05", {}).setdefault(cta, [])
    return running


def _commit(machine: Machine, instruction: Instruction) -> Step:
    """All products before it, committed already or not, end no later than its arrival."""
    address = machine.address(instruction.operands[0])

    def step(mask: Mask) -> None:
        threads = machine.thread if mask is None else np.flatnonzero(mask)
        places = machine.shared.places(address()[threads], machine.cta[threads], 8)
        for thread, place in zip(threads.tolist(), places.tolist(), strict=True):
            cta = int(machine.cta[thread])
            products = list(_running(machine, cta))
            arrive_later(machine, place, _ending(machine, cta, products), _seeing(machine, cta))

    return step


def _ending(machine: Machine, cta: int, products: list[_Running]) -> Any:
    def arrive() -> None:
        running, memory = _running(machine, cta), tensor_memory(machine)
        for product in products:
            if not any(product is other for other in running):
                continue
            running[:] = [other for other in running if other is not product]
            for granules in product.granules:
                machine.shared.end_read(granules)
            for columns in product.read:
                memory.read_by_products[cta, columns] -= 1
            memory.end_product(cta, product.written)

    return arrive


def _seeing(machine: Machine, cta: int) -> Any:
    def observe(threads: Array) -> None:
        tensor_memory(machine).see(cta, np.unique(machine.warp[threads]))

    return observe


@dataclass(frozen=True, slots=True)
class _Shape:
    """What an instruction descriptor says of a product."""

    rows: int
    columns: int
    a_transposed: bool
    b_transposed: bool

    @classmethod
    def read(cls, bits: int, allowed: int) -> "_Shape":
        """Fields other than the size and the transposes have to be `allowed`."""
        size, rows = 0x1F << 24 | 0x3F << 17 | 3 << 15, (bits >> 24 & 0x1F) * 16
        if bits & ~size != allowed or rows not in (64, 128):
            raise NotModelled(f"the instruction descriptor {bits:#x}")
        return cls(rows, (bits >> 17 & 0x3F) * 8, bool(bits >> 15 & 1), bool(bits >> 16 & 1))


_FLOAT_SUMS = 1 << 4
_KINDS = {1 << 7 | 1 << 10: bfloat16_to_float, 0: half_to_float}
_E2M1 = 1 << 7 | 1 << 10


def _multiply(machine: Machine, instruction: Instruction) -> Step:
    """``d = a . b (+ d)`` of 64 or 128 rows, bfloat16 or float16; A may be in tensor memory."""
    d, a, b, shape, accumulate = instruction.operands
    from_memory = isinstance(a, Address)
    d_read = machine.address(d)
    a_read: Any = machine.address(a) if from_memory else machine.read(a, np.uint64)
    b_read, shape_read = machine.read(b, np.uint64), machine.read(shape, np.uint32)
    adds = machine.read(accumulate, np.bool_)
    used = [x.base if isinstance(x, Address) else x for x in (d, a, b, shape)]

    def step(mask: Mask) -> None:
        machine.require_defined([*used, accumulate], mask, "an operand of tcgen05.mma")
        for thread in (machine.thread if mask is None else np.flatnonzero(mask)).tolist():
            bits = int(shape_read()[thread])
            kind = bits & (7 << 7 | 7 << 10)
            if kind not in _KINDS:
                raise NotModelled(f"the instruction descriptor {bits:#x}")
            form = _Shape.read(bits, _FLOAT_SUMS | kind)
            product = _Product(machine, thread, _KINDS[kind])
            if from_memory:
                left, bad_left = product.from_tensor_memory(int(a_read()[thread]), form.rows)
            else:
                left, bad_left = product.from_shared(
                    int(a_read()[thread]), form.rows, form.a_transposed
                )
            right, bad_right = product.from_shared(
                int(b_read()[thread]), form.columns, form.b_transposed
            )
            target = int(d_read()[thread])
            product.put(target, left @ right.T, bad_left, bad_right, adds=bool(adds()[thread]))

    return step


def _multiply_scaled(machine: Machine, instruction: Instruction) -> Step:
    """NVFP4: 64 e2m1 numbers along k, with an e4m3 scale in tensor memory for every 16."""
    d, a, b, shape, a_scale, b_scale, accumulate = instruction.operands
    d_read, a_scale_read, b_scale_read = (machine.address(x) for x in (d, a_scale, b_scale))
    a_read, b_read = machine.read(a, np.uint64), machine.read(b, np.uint64)
    shape_read, adds = machine.read(shape, np.uint32), machine.read(accumulate, np.bool_)

    def step(mask: Mask) -> None:
        machine.require_defined([a, b, shape, accumulate], mask, "an operand of tcgen05.mma")
        for thread in (machine.thread if mask is None else np.flatnonzero(mask)).tolist():
            form = _Shape.read(int(shape_read()[thread]), _E2M1)
            if form.a_transposed or form.b_transposed or form.rows != LANES:
                raise NotModelled("matrices of four bits that are transposed or have 64 rows")
            product = _Product(machine, thread, None)
            left, bad_left = product.from_shared(int(a_read()[thread]), LANES, False)
            right, bad_right = product.from_shared(int(b_read()[thread]), form.columns, False)
            of_a, lost_a = product.scales(int(a_scale_read()[thread]), LANES)
            of_b, lost_b = product.scales(int(b_scale_read()[thread]), form.columns)
            sums = (left * of_a) @ (right * of_b).T
            target, keeps = int(d_read()[thread]), bool(adds()[thread])
            product.put(target, sums, bad_left | lost_a, bad_right | lost_b, adds=keeps)

    return step


class _Product:
    """One product of one thread: collects what it reads, and is running once it has its sums."""

    def __init__(self, machine: Machine, thread: int, widen: Any) -> None:
        self._machine, self._thread, self._widen = machine, thread, widen
        self._cta, self._warp = int(machine.cta[thread]), int(machine.warp[thread])
        self._memory = tensor_memory(machine)
        self._granules: list[Array] = []
        self._columns: list[slice] = []

    def from_shared(self, bits: int, rows: int, is_transposed: bool) -> tuple[Array, Array]:
        """Values [rows, k] of a tile, and rows with undefined ones."""
        size = 1 if self._widen is None else 2
        places = Descriptor.of_tcgen05(bits).places(rows, size, is_transposed=is_transposed)
        at = self._machine.shared.flat(places, self._cta)[..., None] + np.arange(size)
        data, undefined, granules = self._machine.shared.read_tile(at, self._thread)
        self._granules.append(granules)
        bad = np.asarray(undefined.any((1, 2)))
        if self._widen is None:
            pairs = np.stack([data & 15, data >> 4], -1).reshape(rows, -1)
            return E2M1_VALUES[pairs], bad
        return self._widen(np.ascontiguousarray(data).view(np.uint16)[..., 0]), bad

    def from_tensor_memory(self, address: int, rows: int) -> tuple[Array, Array]:
        """A [rows, 16] of a lane a row, two numbers a column."""
        lanes, columns = _lanes(address, rows), self._use(address & 0xFFFF, 8)
        words = self._memory.words[self._cta, lanes, columns]
        values = self._widen(halves(words).reshape(rows, -1))
        return values, np.asarray(~self._memory.defined[self._cta, lanes, columns].all(1))

    def scales(self, address: int, rows: int) -> tuple[Array, Array]:
        """[rows, 64]: row r's four scales are a word in lane r % 32, column r // 32, and the same
        in every quarter of the lanes.
        """
        columns = self._use(address, -(-rows // 32))
        words = self._memory.words[self._cta, :, columns]
        defined = self._memory.defined[self._cta, :, columns]
        quarters = words.reshape(4, 32, -1)
        if (quarters != quarters[:1]).any():
            self._machine.hazard("scales are not the same in all quarters of tensor memory")
        by_row = quarters[0].T.reshape(-1)[:rows]
        bad = ~defined.reshape(4, 32, -1).all(0).T.reshape(-1)[:rows]
        values = e4m3_to_float(np.ascontiguousarray(by_row)[:, None].view(np.uint8))
        return np.repeat(values, 16, axis=1), bad

    def _use(self, address: int, count: int) -> slice:
        if address >> 16:
            raise NotModelled(f"a matrix at lane {address >> 16} of tensor memory")
        columns = slice(address & 0xFFFF, (address & 0xFFFF) + count)
        self._memory.use(self._cta, columns, self._warp)
        self._memory.read_by_products[self._cta, columns] += 1
        self._columns.append(columns)
        return columns

    def put(
        self, address: int, sums: Array, bad_rows: Array, bad_columns: Array, *, adds: bool
    ) -> None:
        """The sums become those of tensor memory, which is not to be touched until they are."""
        lanes = _lanes(address, len(sums))
        columns = slice(address & 0xFFFF, (address & 0xFFFF) + sums.shape[1])
        memory, cta = self._memory, self._cta
        memory.use(cta, columns, self._warp)
        bad = bad_rows[:, None] | bad_columns[None, :]
        if adds:
            sums = sums + np.ascontiguousarray(memory.words[cta, lanes, columns]).view(np.float32)
            bad = bad | ~memory.defined[cta, lanes, columns]
        memory.words[cta, lanes, columns] = sums.astype(np.float32).view(np.uint32)
        memory.defined[cta, lanes, columns] = ~bad
        memory.written_by_products[cta, columns] += 1
        running = _Running(tuple(self._granules), tuple(self._columns), columns)
        _running(self._machine, cta).append(running)


def _lanes(address: int, rows: int) -> Array:
    """A lane a row; 64 rows lie 16 by 16 in the first, or second, half of every quarter."""
    first = address >> 16
    if rows == LANES and first == 0:
        return np.arange(LANES)
    if rows == LANES or first not in (0, 16):
        raise NotModelled(f"a matrix of {rows} rows at lane {first} of tensor memory")
    row = np.arange(rows)
    return np.asarray(row // 16 * 32 + row % 16 + first)


BUILDERS: dict[str, Build] = {"tcgen05": _build}
