"""Tokens that may not be written at a canvas position, in device memory.

A denoising step reads the bans from here, so a step with bans replays a captured graph too. Tables
come in few widths: each width is a kernel variant and a graph of its own.
"""

from collections.abc import Collection

import torch
from torch import Tensor

NO_TOKEN = -1
WIDTHS = (1, 4, 16)  # bans a position; wider tables double, and compile when they are first needed


def table_width(most: int) -> int:
    """The table width for `most` bans at one position; 0 without bans."""
    if not most:
        return 0
    return next((width for width in WIDTHS if width >= most), 1 << (most - 1).bit_length())


class BannedTokens:
    """The bans of `rows` canvases of C positions."""

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        self._length, self._device = length, device
        self._pairs: list[frozenset[tuple[int, int]]] = [frozenset()] * rows
        self._tables: dict[int, Tensor] = {}
        self.width = 0  # of the table that holds the bans of all rows

    def set(self, row: int, pairs: Collection[tuple[int, int]]) -> None:
        """Replace the row's bans, pairs of a position and a token id."""
        if not pairs and not self._pairs[row]:
            return
        self._pairs[row] = frozenset(pairs)
        width = table_width(max(map(_most_at_one_position, self._pairs)))
        changed = range(len(self._pairs)) if width != self.width else (row,)
        self.width = width
        if width:
            table = self.table(width)
            for index in changed:
                table[index] = self._row(self._pairs[index], width)

    def table(self, width: int) -> Tensor:
        """int32 [rows, C, width], -1 where there is no ban; at the same address every time."""
        if width not in self._tables:
            shape = (len(self._pairs), self._length, width)
            with torch.inference_mode(False):
                self._tables[width] = torch.full(
                    shape, NO_TOKEN, device=self._device, dtype=torch.int32
                )
        return self._tables[width]

    def _row(self, pairs: Collection[tuple[int, int]], width: int) -> Tensor:
        values = [[NO_TOKEN] * width for _ in range(self._length)]
        free = [0] * self._length
        for position, token in sorted(pairs):
            values[position][free[position]] = token
            free[position] += 1
        return torch.tensor(values, device=self._device, dtype=torch.int32)


def _most_at_one_position(pairs: Collection[tuple[int, int]]) -> int:
    positions = [position for position, _ in pairs]
    return max((positions.count(position) for position in set(positions)), default=0)
