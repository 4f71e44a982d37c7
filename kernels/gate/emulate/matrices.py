"""A warp's matrices: ``ldmatrix`` and ``stmatrix`` of 8 x 8 halfwords, and ``mma.sync``."""

import numpy as np

from hybrid.kernels.gate.emulate.control import whole_warps
from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.flow import Mask
from hybrid.kernels.gate.emulate.formats import Array, bfloat16_to_float, half_to_float, halves
from hybrid.kernels.gate.emulate.fragments import (
    a_tile,
    b_tile,
    c_tile,
    fragments,
    items,
    undefined_product,
)
from hybrid.kernels.gate.emulate.machine import WARP, Build, Machine, Step
from hybrid.kernels.gate.emulate.parse import Address, Instruction
from hybrid.kernels.gate.emulate.scaled import scaled_product

_ROW, _PAIR = np.arange(WARP) // 4, np.arange(WARP) % 4  # of a thread in an 8 x 8 matrix


def _rows_of_lanes(machine: Machine, addresses: Array, warps: Array, count: int) -> Array:
    """Flat places [warps, 8 * count] of the rows whose addresses the first lanes hold."""
    rows = addresses.reshape(-1, WARP)[warps, : 8 * count]
    ctas = np.repeat(machine.cta.reshape(-1, WARP)[warps, 0], 8 * count)
    return machine.shared.places(rows.reshape(-1), ctas, 16)


def _active_warps(machine: Machine, mask: Mask, name: str) -> Array:
    whole_warps(machine, mask, name)
    return np.flatnonzero((machine.everyone if mask is None else mask)[::WARP])


def _form(instruction: Instruction) -> tuple[int, bool]:
    count, *others = (m for m in instruction.modifiers if m not in ("sync", "aligned", "m8n8"))
    spaces = [m for m in others if m != "trans"]
    if spaces not in (["shared", "b16"], ["shared::cta", "b16"]):
        raise NotModelled(instruction.opcode)
    return int(count[1:]), "trans" in others


def _load_matrix(machine: Machine, instruction: Instruction) -> Step:
    count, transposes = _form(instruction)
    results, source = items(instruction.operands[0]), instruction.operands[1]
    address = machine.address(source)
    base = (source.base,) if isinstance(source, Address) else ()

    def step(mask: Mask) -> None:
        warps = _active_warps(machine, mask, "ldmatrix")
        machine.require_defined(base if count == 4 else (), mask, "an address")
        at = _rows_of_lanes(machine, address(), warps, count)
        halfwords, undefined = machine.shared.rows(at, np.repeat(warps, 8 * count))
        shape = (len(warps), count, 8, 8)
        tiles, bad = halfwords.reshape(shape), undefined.reshape(shape)
        if transposes:
            tiles, bad = tiles.swapaxes(2, 3), bad.swapaxes(2, 3)
        for i, item in enumerate(results):
            low, high = tiles[:, i, _ROW, 2 * _PAIR], tiles[:, i, _ROW, 2 * _PAIR + 1]
            missing = bad[:, i, _ROW, 2 * _PAIR] | bad[:, i, _ROW, 2 * _PAIR + 1]
            words = np.zeros((machine.total // WARP, WARP), np.uint32)
            words[warps] = low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)
            lost = np.zeros(words.shape, bool)
            lost[warps] = missing
            machine.write(item, words.reshape(-1), mask, lost.reshape(-1) if lost.any() else None)

    return step


def _store_matrix(machine: Machine, instruction: Instruction) -> Step:
    count, transposes = _form(instruction)
    target, sources = instruction.operands[0], items(instruction.operands[1])
    address, readers = machine.address(target), [machine.read(s, np.uint32) for s in sources]

    def step(mask: Mask) -> None:
        warps = _active_warps(machine, mask, "stmatrix")
        at = _rows_of_lanes(machine, address(), warps, count)
        tiles = np.zeros((len(warps), count, 8, 8), np.uint16)
        bad = np.zeros(tiles.shape, bool)
        for i, (read, source) in enumerate(zip(readers, sources, strict=True)):
            words = halves(read()).reshape(-1, WARP, 2)[warps]
            undefined = machine.undefined_of((source,))
            for half in range(2):
                where = (_ROW, 2 * _PAIR + half)
                tiles[:, i, where[0], where[1]] = words[..., half]
                if undefined is not None:
                    bad[:, i, where[0], where[1]] = undefined.reshape(-1, WARP)[warps]
        if transposes:
            tiles, bad = tiles.swapaxes(2, 3), bad.swapaxes(2, 3)
        rows = (-1, 8)
        machine.shared.store_rows(
            at, np.repeat(warps, 8 * count), tiles.reshape(rows), bad.reshape(rows)
        )

    return step


def _multiply(machine: Machine, instruction: Instruction) -> Step:
    """``mma.m16n8k16`` of bfloat16 or float16 with float32 sums, and NVFP4's."""
    if "block_scale" in instruction.modifiers:
        return scaled_product(machine, instruction)
    *shape, total, a_kind, b_kind, c_kind = instruction.modifiers
    if shape != ["sync", "aligned", "m16n8k16", "row", "col"] or (total, c_kind) != ("f32", "f32"):
        raise NotModelled(instruction.opcode)
    if a_kind != b_kind or a_kind not in ("bf16", "f16"):
        raise NotModelled(instruction.opcode)
    widen = bfloat16_to_float if a_kind == "bf16" else half_to_float
    d, a, b, c = (items(operand) for operand in instruction.operands)
    a_read, b_read = ([machine.read(x, np.uint32) for x in part] for part in (a, b))
    c_read = [machine.read(x, np.float32) for x in c]

    def step(mask: Mask) -> None:
        whole_warps(machine, mask, "mma")
        left = a_tile(np.stack([widen(halves(read())) for read in a_read]))
        right = b_tile(np.stack([widen(halves(read())) for read in b_read]))
        sums = left @ right + c_tile(np.stack([read() for read in c_read]))
        lost = undefined_product(machine, a, b, c)
        for i, (item, row) in enumerate(zip(d, fragments(sums), strict=True)):
            machine.write(item, row, mask, None if lost is None else lost[i])

    return step


BUILDERS: dict[str, Build] = {
    "ldmatrix": _load_matrix,
    "stmatrix": _store_matrix,
    "mma": _multiply,
}
