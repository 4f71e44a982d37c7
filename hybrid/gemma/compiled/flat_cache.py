"""A cache whose rows a compiled pass finds by number: all slots of all rows in one dimension.

What an eager pass gets as views is given here as lists of slots, padded to a multiple of `PADDING`
and hidden beyond what a row has, so that the number of shapes stays small and is never one. numpy
makes them: 80 us a pass where torch takes 150 (embedded refiner, one token).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid.gemma.config import LayerKind
from hybrid.gemma.model.cache import AttentionMetadata, Cache, flat_slots

PADDING = 16
_HIDDEN = np.finfo(np.float32).min


class FlatCache(Cache):
    """A float32 `Cache`, and the places of passes in it.

    `prepared` is what the last canvases' pass was given, which their next step gets, too.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.flat_keys, self.flat_values = (
            [tensor.view(-1, *tensor.shape[2:]) for tensor in tensors]
            for tensors in (self.keys, self.values)
        )
        self.prepared: tuple[AttentionMetadata, list[list[Tensor]]] | None = None

    def earlier(self, metadata: AttentionMetadata, kind: LayerKind) -> tuple[Tensor, Tensor]:
        """Slots, int64 [R, S], of the tokens that canvases see, and an additive mask [R, 1, S]."""
        starts = np.array(metadata.starts)[:, None]
        first, most = 0, max(metadata.starts)
        if kind == "sliding":
            first, most = np.maximum(starts - self._window + 1, 0), min(most, self._window - 1)
        positions = first + np.arange(_padded(most))[None]
        mask = np.where(positions >= starts, _HIDDEN, np.float32(0))[:, None]
        slots = flat_slots(np.array(metadata.rows)[:, None], positions, self._slots[kind])
        return torch.from_numpy(slots), torch.from_numpy(mask)

    def packed(self, metadata: AttentionMetadata, kind: LayerKind) -> "Packed":
        """Where T tokens of a causal pass stand, the rows' one after another without padding."""
        if len(metadata.rows) == 1:
            return self._packed_row(metadata.rows[0], metadata.starts[0], metadata.lengths[0], kind)
        rows, starts, lengths = np.array((metadata.rows, metadata.starts, metadata.lengths))
        seen = np.minimum(starts, self._window - 1) if kind == "sliding" else starts
        row, position = _laid_out(rows, starts, lengths)
        count = int(seen.sum())
        seen_row = np.full(_padded(count), -1)  # nobody's
        seen_position = np.zeros_like(seen_row)
        seen_row[:count], seen_position[:count] = _laid_out(rows, starts - seen, seen)
        slots = flat_slots(np.maximum(seen_row, 0), seen_position, self._slots[kind])

        def mask(of_row: NDArray[np.int64], at: NDArray[np.int64]) -> Tensor:
            hidden = (row[:, None] != of_row) | (at > position[:, None])
            if kind == "sliding":
                hidden |= at <= position[:, None] - self._window
            return torch.from_numpy(hidden * _HIDDEN)

        return Packed(
            slots=torch.from_numpy(slots)[None],
            mask=mask(seen_row, seen_position)[None],
            own_mask=mask(row, position),
            written=torch.from_numpy(flat_slots(row, position, self._slots[kind])),
        )

    def _packed_row(self, row: int, start: int, length: int, kind: LayerKind) -> "Packed":
        """As `packed`, of one row: in a third of the time, which counts with every token."""
        window = self._window if kind == "sliding" else start + length + 1
        first = max(0, start - window + 1)
        earlier = np.arange(first, first + _padded(start - first))
        mask = np.zeros((1, length, len(earlier)), np.float32)
        mask[..., start - first :] = _HIDDEN
        if first + window <= start + length - 1:  # the last token does not see the first
            tokens = np.arange(start, start + length)[:, None]
            mask[0, earlier <= tokens - window] = _HIDDEN
        slots, number = self._slots[kind], np.array(row)
        return Packed(
            slots=torch.from_numpy(flat_slots(number, earlier, slots))[None],
            mask=torch.from_numpy(mask),
            own_mask=_own_mask(length, min(window, length)),
            written=torch.from_numpy(flat_slots(number, np.arange(start, start + length), slots)),
        )


@dataclass(frozen=True, slots=True)
class Packed:
    """``slots`` int64 [1, S] of the earlier tokens that any of T sees, and additive masks of what
    is hidden, ``mask`` [1, T, S] of those and ``own_mask`` [T, T]; ``written`` int64 [T].
    """

    slots: Tensor
    mask: Tensor
    own_mask: Tensor
    written: Tensor


@lru_cache(maxsize=512)
def _own_mask(tokens: int, window: int) -> Tensor:
    """Additive, [T, T]: a token sees itself and those before it within the window."""
    distance = np.arange(tokens)[:, None] - np.arange(tokens)
    with torch.inference_mode(False):
        return torch.from_numpy(((distance < 0) | (distance >= window)) * _HIDDEN)


def _padded(count: int) -> int:
    return max(1, -(-count // PADDING)) * PADDING


def _laid_out(
    rows: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and position of every token, one row's after another's."""
    before = lengths.cumsum() - lengths
    return rows.repeat(lengths), np.arange(lengths.sum()) + (starts - before).repeat(lengths)
