"""A cache whose rows a compiled pass finds by number: all slots of all rows in one dimension.

What an eager pass gets as views is given here as lists of slots, padded to a multiple of `PADDING`
and hidden beyond what a row has, so that the number of shapes stays small and is never one. numpy
makes them: 80 us a pass where torch takes 150 (embedded refiner, one token).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid.gemma.cache import Cache, Reading
from hybrid.gemma.config import LayerKind

PADDING = 16
_HIDDEN = np.finfo(np.float32).min


class FlatCache(Cache):
    """A float32 `Cache`, and the places of passes in it.

    `prepared` is what the last denoising pass was given, which its next step gets, too.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.flat_keys, self.flat_values = (
            [tensor.view(-1, *tensor.shape[2:]) for tensor in tensors]
            for tensors in (self.keys, self.values)
        )
        self.prepared: tuple[Reading, list[list[Tensor]]] | None = None

    def earlier(self, reading: Reading, kind: LayerKind) -> tuple[Tensor, Tensor]:
        """Slots, int64 [R, S], of the tokens that a pass sees, and an additive mask [R, 1 or T, S].

        Those of one row in a causal pass of several tokens see different ones in sliding layers.
        """
        starts = np.array(reading.starts)[:, None]
        first, most = 0, max(reading.starts)
        if kind == "sliding":
            first, most = np.maximum(starts - self._window + 1, 0), min(most, self._window - 1)
        padded = max(1, -(-most // PADDING)) * PADDING
        positions = first + np.arange(padded)[None]
        hidden = (positions >= starts)[:, None]
        if kind == "sliding" and reading.causal and reading.tokens > 1:
            queries = starts + np.arange(reading.tokens)
            hidden = hidden | (positions[:, None] <= queries[..., None] - self._window)
        mask = np.where(hidden, _HIDDEN, np.float32(0))
        return self._flat(reading.rows, positions, kind), torch.from_numpy(mask)

    def own(self, reading: Reading, kind: LayerKind) -> Tensor:
        """Slots, int64 [R, T], of the pass's tokens."""
        starts = np.array(reading.starts)[:, None]
        return self._flat(reading.rows, starts + np.arange(reading.tokens), kind)

    def _flat(self, rows: Sequence[int], positions: NDArray[np.int64], kind: LayerKind) -> Tensor:
        slots = self._slots[kind]
        before = np.array(rows)[:, None] * (slots + 1)
        return torch.from_numpy(positions % slots + before)
