"""Key-value buffers of one model, reused from one cache to the next."""

from weakref import WeakKeyDictionary, finalize

import torch

from hybrid.engine.kv_cache import KVCacheBuffers, KVCacheSize
from hybrid.engine.memory import row_bytes, work_bytes
from hybrid.errors import CapabilityError
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.model.cache import Cache, default_spare

MAX_BATCH_SIZE = 8  # more canvases gain nothing: an H100 is bound by arithmetic from about four on


class KVCachePool:
    """Makes caches, and takes their buffers back when a cache is no longer referenced."""

    def __init__(self, config: GemmaConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._config, self._device, self._dtype = config, device, dtype
        self._free: dict[KVCacheSize, list[KVCacheBuffers]] = {}
        self._in_use: WeakKeyDictionary[Cache, KVCacheBuffers] = WeakKeyDictionary()
        self._batch_sizes: dict[int, int] = {}

    def new_cache(self, batch_size: int, capacity: int, spare: int | None) -> Cache:
        """See `EngineModel.new_cache`."""
        if spare is None:
            spare = default_spare(self._config)
        if min(batch_size, capacity, spare) < 1:
            raise ValueError(f"{batch_size=}, {capacity=} and {spare=} must all be above zero")
        size = KVCacheSize(batch_size, capacity, spare)
        if self._device.type == "cuda":
            size = size.rounded_up()
        free = self._free.setdefault(size, [])
        try:
            buffers = free.pop()
        except IndexError:  # asking `if free` first would race with another thread
            buffers = self._new_buffers(size)
        cache = buffers.new_cache()
        self._in_use[cache] = buffers
        finalize(cache, free.append, buffers)
        return cache

    def buffers(self, cache: Cache) -> KVCacheBuffers:
        """The memory behind a cache of this pool."""
        return self._in_use[cache]

    def max_batch_size(self, max_total_tokens: int) -> int:
        """See `EngineModel.max_batch_size`."""
        if self._device.type != "cuda":
            return MAX_BATCH_SIZE
        if max_total_tokens not in self._batch_sizes:
            free, _ = torch.cuda.mem_get_info(self._device)
            row = row_bytes(self._config, max_total_tokens, self._dtype)
            rows = MAX_BATCH_SIZE
            while rows > 1 and (rows + 1) * row + self._work_bytes(rows) > free:
                rows //= 2
            self._batch_sizes[max_total_tokens] = rows
        return self._batch_sizes[max_total_tokens]

    def _work_bytes(self, rows: int) -> int:
        return work_bytes(self._config, rows, self._dtype)

    def _new_buffers(self, size: KVCacheSize) -> KVCacheBuffers:
        try:
            return KVCacheBuffers(self._config, size, self._device, self._dtype)
        except torch.OutOfMemoryError:
            for unused in self._free.values():
                unused.clear()
        try:
            return KVCacheBuffers(self._config, size, self._device, self._dtype)
        except torch.OutOfMemoryError as error:
            what = f"{size.batch_size} rows of {size.capacity} tokens"
            raise CapabilityError(f"a cache for {what}", str(self._device), str(error)) from None
