"""Key-value cache memory of a batch, and the CUDA graphs that were captured over it.

A graph holds addresses, so graphs live exactly as long as the buffers that they were captured over.
On a GPU buffers therefore come in few sizes and are reused from request to request. Each has one
row more than asked for: captures and the padding of a batch use that idle row.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from hybrid.engine.graphs import Graphs
from hybrid.gemma.config import GemmaConfig, LayerKind
from hybrid.gemma.model.cache import Cache, slots_by_kind

_MIN_CAPACITY = 1024
_SPARE_STEP = 256  # spare tokens come in multiples of a canvas


@dataclass(frozen=True, slots=True)
class KVCacheSize:
    """Rows, tokens a row, and how many of a row's last tokens can be rolled back."""

    batch_size: int
    capacity: int
    spare: int

    def rounded_up(self) -> Self:
        """The smallest of the few sizes that graphs are captured over which holds this one."""
        capacity = 1 << (max(self.capacity, _MIN_CAPACITY) - 1).bit_length()
        spare = -(-self.spare // _SPARE_STEP) * _SPARE_STEP
        return replace(self, capacity=capacity, spare=spare)


class KVCacheBuffers:
    """Keys and values, [rows + 1, slots + 1, heads, D] for every layer.

    `slots` are the slots of a row by kind of layer, without the last one, which takes padding;
    `max_context` is what a row can have read with a canvas after it.
    """

    def __init__(
        self, config: GemmaConfig, size: KVCacheSize, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._config, self.size = config, size
        self._device, self._dtype = device, dtype
        self.slots: dict[LayerKind, int] = slots_by_kind(config, size.capacity, size.spare)
        self.max_context = size.capacity + config.canvas_length
        self.graphs = Graphs(device)
        with torch.inference_mode(False):
            self.keys = [self._empty(index) for index in range(len(config.layers))]
            self.values = [self._empty(index) for index in range(len(config.layers))]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    @property
    def idle_row(self) -> int:
        """The row that belongs to no sequence."""
        return self.size.batch_size

    def idle_vectors(self, rows: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, starts and lengths of a pass that changes no sequence's row."""
        number = torch.full((rows,), self.idle_row, device=self._device, dtype=torch.int32)
        return number, torch.zeros_like(number), torch.full_like(number, tokens)

    def new_cache(self) -> Cache:
        """An empty cache in this memory."""
        size = self.size
        return Cache(
            self._config,
            size.batch_size,
            size.capacity,
            size.spare,
            self._device,
            self._dtype,
            memory=(self.keys, self.values),
        )

    def _empty(self, index: int) -> Tensor:
        layer = self._config.layers[index]
        rows, slots = self.size.batch_size + 1, self.slots[layer.kind] + 1
        shape = (rows, slots, layer.num_key_value_heads, layer.head_dim)
        return torch.zeros(shape, device=self._device, dtype=self._dtype)
