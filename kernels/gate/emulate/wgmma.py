"""Hopper's products of a warp group, asynchronous: what they read and write is theirs until waited.

A product is computed when it is issued and its result is written at the wait, so that nothing but
the order of instructions decides: its accumulators, and its first factor where that is in
registers, must not be touched before, nor may anybody write the shared memory that it reads.
"""

import re

import numpy as np

from hybrid.kernels.gate.emulate.control import whole_warps
from hybrid.kernels.gate.emulate.descriptors import Descriptor
from hybrid.kernels.gate.emulate.faults import Fault, NotModelled
from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import Array, bfloat16_to_float, half_to_float, halves
from hybrid.kernels.gate.emulate.fragments import items
from hybrid.kernels.gate.emulate.groups import Groups
from hybrid.kernels.gate.emulate.machine import Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Group, Instruction, Number, Operand, Register

_GROUP = 128  # threads


def _build(machine: Machine, instruction: Instruction) -> Step:
    match instruction.modifiers:
        case ("fence", "sync", "aligned"):
            return lambda mask: _fence(machine, mask)
        case ("commit_group", "sync", "aligned"):
            return lambda mask: _groups(machine).commit(mask)
        case ("wait_group", "sync", "aligned"):
            (keep,) = instruction.operands
            if isinstance(keep, Number):
                count = keep.bits
                return lambda mask: _groups(machine).wait(mask, count)
        case ("mma_async", "sync", "aligned", shape, "f32", ("bf16" | "f16") as kind, other):
            if kind == other:
                return _Product(machine, instruction, shape, kind).issue
    raise NotModelled(instruction.opcode)


def _groups(machine: Machine) -> Groups:
    groups: Groups = machine.state.setdefault("products", Groups(machine.total))
    return groups


def _fence(machine: Machine, mask: Mask) -> None:
    """Registers written before it are there for products after it."""
    machine.state["fenced"] = machine.executed


class _Product:
    """One ``wgmma.mma_async`` of a kernel."""

    def __init__(self, machine: Machine, instruction: Instruction, shape: str, kind: str) -> None:
        self._machine = machine
        found = re.fullmatch(r"m64n(\d+)k16", shape)
        d, a, b, keep, sign_a, sign_b, *transposed = instruction.operands
        if found is None or (sign_a, sign_b) != (Number(1), Number(1)):
            raise NotModelled(instruction.opcode)
        self._columns = int(found[1])
        self._widen = bfloat16_to_float if kind == "bf16" else half_to_float
        self._sums = items(d)
        self._sum_readers = [machine.read(x, np.float32) for x in self._sums]
        self._a_registers: tuple[Operand, ...] = a.items if isinstance(a, Group) else ()
        self._a_readers = [machine.read(x, np.uint32) for x in self._a_registers]
        self._a_descriptor = None if self._a_registers else machine.read(a, np.uint64)
        self._b_descriptor = machine.read(b, np.uint64)
        self._keep, self._keep_reader = keep, machine.read(keep, np.bool_)
        flags = [isinstance(t, Number) and t.bits == 1 for t in transposed]
        self._a_transposed, self._b_transposed = (
            (False, flags[0]) if self._a_registers else (flags[0], flags[1])
        )
        self._descriptors = [x for x in (a, b) if isinstance(x, Register)]

    def issue(self, mask: Mask) -> None:
        """Compute, and keep the result until somebody waits."""
        machine = self._machine
        whole_warps(machine, mask, "wgmma")
        machine.require_defined([*self._descriptors, self._keep], mask, "a matrix descriptor")
        self._require_fence()
        active = (machine.everyone if mask is None else mask).reshape(-1, _GROUP)
        if (active.any(1) != active.all(1)).any():
            raise Fault("wgmma by a part of a warp group")
        groups = np.flatnonzero(active[:, 0])
        tiles = [self._tiles(int(group)) for group in groups]
        left, right, bad_rows, bad_columns = (
            np.stack(part) for part in list(zip(*tiles, strict=True))[:4]
        )
        granules = [got for tile in tiles for got in tile[4]]
        threads = (groups[:, None] * _GROUP + np.arange(_GROUP)).reshape(-1)
        self._accumulate(threads, left @ right.swapaxes(1, 2), bad_rows, bad_columns)
        everyone = np.zeros(machine.total, bool)
        everyone[threads] = True
        a = [x for x in self._a_registers if isinstance(x, Register)]
        d = [x for x in self._sums if isinstance(x, Register)]
        machine.locks.take(a, everyone, "wgmma", writes=False)
        machine.locks.take(d, everyone, "wgmma", writes=True)

        def finish(chosen: Array) -> None:
            ended = np.zeros(machine.total, bool)
            ended[threads[chosen]] = True
            machine.locks.release([*a, *d], ended)
            if len(chosen) == len(threads):
                for got in granules:
                    machine.shared.end_read(got)
            elif len(chosen) % _GROUP:
                raise Fault("a part of a warp group waits for wgmma")
            else:
                per_group = len(granules) // len(groups)
                for place in np.unique(chosen // _GROUP):
                    for got in granules[place * per_group : (place + 1) * per_group]:
                        machine.shared.end_read(got)

        _groups(machine).add(threads, finish)

    def _require_fence(self) -> None:
        machine = self._machine
        fenced = machine.state.get("fenced", -1)
        for register in (*self._a_registers, *self._sums):
            if isinstance(register, Register) and machine.written_at[register.index] > fenced:
                machine.hazard("wgmma takes registers that were written after wgmma.fence")
                return

    def _tiles(self, group: int) -> tuple[Array, Array, Array, Array, list[Array]]:
        """A [64, 16] and B [columns, 16] of a warp group, undefined rows of each, granules."""
        first = group * _GROUP
        granules = []
        if self._a_descriptor is None:
            part = slice(first, first + _GROUP)
            left = a_tile(np.stack([self._widen(halves(read()[part])) for read in self._a_readers]))
            bad_left = self._bad_rows(part)
        else:
            bits = int(self._a_descriptor()[first])
            left, bad_left, got = self._read(bits, 64, first, self._a_transposed)
            granules.append(got)
        bits = int(self._b_descriptor()[first])
        right, bad_right, got = self._read(bits, self._columns, first, self._b_transposed)
        return left, right, bad_left, bad_right, [*granules, got]

    def _bad_rows(self, part: slice) -> Array:
        undefined = [self._machine.undefined_of((x,)) for x in self._a_registers]
        nothing = np.zeros(_GROUP, bool)
        bad = np.stack([nothing if u is None else u[part] for u in undefined])
        return np.asarray(a_tile(bad[:, :, None]).any(1))

    def _read(
        self, bits: int, rows: int, thread: int, is_transposed: bool
    ) -> tuple[Array, Array, Array]:
        machine = self._machine
        places = Descriptor.of_wgmma(bits).places(rows, 2, is_transposed=is_transposed)
        at = machine.shared.flat(places, int(machine.cta[thread]))
        data, undefined, granules = machine.shared.read_tile(at[..., None] + np.arange(2), thread)
        values = self._widen(np.ascontiguousarray(data).view(np.uint16)[..., 0])
        return values, np.asarray(undefined.any((1, 2))), granules

    def _accumulate(
        self, threads: Array, product: Array, bad_rows: Array, bad_columns: Array
    ) -> None:
        """The accumulators of `threads` get their sums; locked registers are read late."""
        machine = self._machine
        shape = (-1, 4, 2, 8, self._columns // 8, 4, 2)  # group, warp, half, row, piece, pair
        order = (4, 2, 6, 0, 1, 3, 5)
        by_register = product.reshape(shape).transpose(order).reshape(self._columns // 2, -1)
        lost = bad_rows[:, :, None] | bad_columns[:, None, :]
        lost_any = lost.any()
        lost = lost.reshape(shape).transpose(order).reshape(self._columns // 2, -1)
        keeps = self._keep_reader()[threads]
        mask = np.zeros(machine.total, bool)
        mask[threads] = True
        for i, (item, read) in enumerate(zip(self._sums, self._sum_readers, strict=True)):
            values = np.zeros(machine.total, np.float32)
            values[threads] = np.where(keeps, read()[threads] + by_register[i], by_register[i])
            before = machine.undefined_of((item,))
            bad: Mask = None
            if lost_any or before is not None:
                bad = np.zeros(machine.total, bool)
                bad[threads] = lost[i] | (keeps & before[threads] if before is not None else False)
            machine.write(item, values, None if mask.all() else mask, bad)
            if isinstance(item, Register):
                machine.written_at[item.index] = -1  # products follow each other without a fence


def a_tile(words: Array) -> Array:
    """[64, elements * 8] of registers [4, 128, elements]: 16 rows a warp."""
    elements = words.shape[2]
    grid = words.reshape(2, 2, 4, 8, 4, elements)  # half of k, half of rows, warp, row, pair
    return grid.transpose(2, 1, 3, 0, 4, 5).reshape(64, 8 * elements)


BUILDERS: dict[str, Build] = {"wgmma": _build}
