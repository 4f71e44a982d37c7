"""NVFP4's ``mma.sync.m16n8k64``: e2m1 numbers with an e4m3 scale for every 16 along k.

A register of scales holds the four of one row of A, or of one column of B. Which threads of each
four are asked for theirs, the instruction says: for A two, which hold rows 8 apart, for B one.
"""

import numpy as np

from hybrid.kernels.gate.emulate.control import whole_warps
from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import E2M1_VALUES, Array, e4m3_to_float
from hybrid.kernels.gate.emulate.fragments import (
    a_tile,
    b_tile,
    c_tile,
    fragments,
    items,
    undefined_product,
)
from hybrid.kernels.gate.emulate.machine import Machine, Step
from hybrid.kernels.gate.emulate.parse import Instruction, Number, Operand

_MODELLED = (
    "sync", "aligned", "m16n8k64", "row", "col", "kind::mxf4nvf4", "block_scale", "scale_vec::4X",
    "f32", "e2m1", "e2m1", "f32", "ue4m3",
)  # fmt: skip


def scaled_product(machine: Machine, instruction: Instruction) -> Step:
    """``d = (a * scales) . (b * scales) + c``."""
    if instruction.modifiers != _MODELLED:
        raise NotModelled(instruction.opcode)
    d, a, b, c = (items(operand) for operand in instruction.operands[:4])
    a_scale, a_from, b_scale, b_from = instruction.operands[4:]
    a_read, b_read = ([machine.read(x, np.uint32) for x in part] for part in (a, b))
    c_read = [machine.read(x, np.float32) for x in c]
    a_scales, b_scales = machine.read(a_scale, np.uint32), machine.read(b_scale, np.uint32)
    a_thread, b_thread = 2 * _selected(a_from), _selected(b_from)

    def step(mask: Mask) -> None:
        whole_warps(machine, mask, "mma")
        left = a_tile(np.stack([e2m1_values(read()) for read in a_read]))
        right = b_tile(np.stack([e2m1_values(read()) for read in b_read]))
        by_row = _four(a_scales())[:, :, a_thread : a_thread + 2]  # [warps, 8, 2, 4]
        rows = by_row.swapaxes(1, 2).reshape(-1, 16, 4)
        columns = _four(b_scales())[:, :, b_thread]  # [warps, 8, 4]
        left = left * np.repeat(rows, 16, axis=2)
        right = right * np.repeat(columns, 16, axis=2).swapaxes(1, 2)
        sums = left @ right + c_tile(np.stack([read() for read in c_read]))
        lost = _undefined(machine, (a, b, c), (a_scale, b_scale), (a_thread, b_thread))
        for i, (item, row) in enumerate(zip(d, fragments(sums), strict=True)):
            machine.write(item, row, mask, None if lost is None else lost[i])

    return step


def e2m1_values(words: Array) -> Array:
    """float32 [..., 8] of 32-bit words, the lowest nibble first."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    return np.asarray(E2M1_VALUES[(words[..., None] >> shifts) & 15])


def _four(words: Array) -> Array:
    """float32 [warps, 8, 4 threads, 4] of a register of scales."""
    codes = np.ascontiguousarray(words)[:, None].view(np.uint8)
    return e4m3_to_float(codes).reshape(-1, 8, 4, 4)


def _selected(operand: Operand) -> int:
    byte, thread = items(operand)
    if not (isinstance(byte, Number) and isinstance(thread, Number)) or byte.bits:
        raise NotModelled(f"the selector of scales {operand}")
    return thread.bits


def _undefined(
    machine: Machine,
    parts: tuple[tuple[Operand, ...], tuple[Operand, ...], tuple[Operand, ...]],
    scales: tuple[Operand, Operand],
    threads: tuple[int, int],
) -> Array | None:
    found = undefined_product(machine, *parts)
    of_a, of_b = (machine.undefined_of((scale,)) for scale in scales)
    if of_a is not None:
        rows = of_a.reshape(-1, 8, 4)[:, :, threads[0] : threads[0] + 2].swapaxes(1, 2)
        more = np.broadcast_to(rows.reshape(-1, 16, 1), (len(rows), 16, 8))
        found = fragments(more) if found is None else found | fragments(more)
    if of_b is not None:
        columns = of_b.reshape(-1, 8, 4)[:, :, threads[1]]
        more = np.broadcast_to(columns[:, None, :], (len(columns), 16, 8))
        found = fragments(more) if found is None else found | fragments(more)
    return found
