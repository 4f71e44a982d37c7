"""How the threads of a warp hold the matrices of ``mma.sync`` in their registers.

A register holds `elements` numbers next to each other along k: two of 16 bits, eight of four.
"""

import numpy as np

from hybrid.kernels.gate.emulate.faults import NotModelled
from hybrid.kernels.gate.emulate.formats import Array
from hybrid.kernels.gate.emulate.machine import WARP, Machine
from hybrid.kernels.gate.emulate.parse import Group, Operand


def items(operand: Operand) -> tuple[Operand, ...]:
    """The registers of ``{...}``."""
    if not isinstance(operand, Group):
        raise NotModelled(f"the operand {operand}")
    return operand.items


def a_tile(words: Array) -> Array:
    """[warps, 16, k] of registers [4, threads, elements]: rows of 8, then the halves of k."""
    _, threads, elements = words.shape
    grid = words.reshape(2, 2, threads // WARP, 8, 4, elements)  # half of k, of rows, warp, row...
    return grid.transpose(2, 1, 3, 0, 4, 5).reshape(threads // WARP, 16, 8 * elements)


def b_tile(words: Array) -> Array:
    """[warps, k, 8] of registers [2, threads, elements]."""
    _, threads, elements = words.shape
    grid = words.reshape(2, threads // WARP, 8, 4, elements)  # half of k, warp, column, ...
    return grid.transpose(1, 0, 3, 4, 2).reshape(threads // WARP, 8 * elements, 8)


def c_tile(words: Array) -> Array:
    """[warps, 16, 8] of registers [4, threads]."""
    grid = words.reshape(2, 2, -1, 8, 4)  # half of rows, of a pair, warp, row, pair
    return grid.transpose(2, 0, 3, 4, 1).reshape(-1, 16, 8)


def fragments(tiles: Array) -> Array:
    """Registers [4, threads] of [warps, 16, 8]."""
    grid = tiles.reshape(-1, 2, 8, 4, 2)
    return grid.transpose(1, 4, 0, 2, 3).reshape(4, -1)


def undefined_product(
    machine: Machine,
    a: tuple[Operand, ...],
    b: tuple[Operand, ...],
    c: tuple[Operand, ...],
) -> Array | None:
    """[4, threads]: where a sum takes in what is undefined; None: nowhere."""
    if machine.undefined_of((*a, *b, *c)) is None:
        return None

    def bad(operand: Operand) -> Array:
        undefined = machine.undefined_of((operand,))
        return ~machine.everyone if undefined is None else undefined

    rows = a_tile(np.stack([bad(x)[:, None] for x in a])).any(axis=2, keepdims=True)
    columns = b_tile(np.stack([bad(x)[:, None] for x in b])).any(axis=1, keepdims=True)
    sums = c_tile(np.stack([bad(x) for x in c]))
    return fragments(sums | rows | columns)
