"""Key-value buffers of one model, reused from one cache to the next."""

from weakref import WeakKeyDictionary, WeakSet, finalize

import torch

from hybrid.engine.device_errors import require_working
from hybrid.engine.kv_cache import KVCacheBuffers, KVCacheSize
from hybrid.engine.memory import OVERHEAD, USUAL_CONTEXT, row_bytes, work_bytes
from hybrid.errors import CapabilityError
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.model.cache import Cache, default_spare

_pools: WeakSet["KVCachePool"] = WeakSet()  # of all models in this process
MAX_BATCH_SIZE = 8  # more canvases gain nothing: an H100 is bound by arithmetic from about four on


class KVCachePool:
    """Makes caches, and takes their buffers back when a cache is no longer referenced."""

    def __init__(self, config: GemmaConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._config, self._device, self._dtype = config, device, dtype
        self._free: dict[KVCacheSize, list[KVCacheBuffers]] = {}
        self._in_use: WeakKeyDictionary[Cache, KVCacheBuffers] = WeakKeyDictionary()
        self._batch_sizes: dict[int, int] = {}
        self._allocated = 0
        _pools.add(self)

    def new_cache(self, batch_size: int, capacity: int, spare: int | None) -> Cache:
        """See `EngineModel.new_cache`."""
        require_working(self._device)
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
            free -= outstanding_bytes(self._device, besides=self)
            row = row_bytes(self._config, max_total_tokens, self._dtype)
            rows = MAX_BATCH_SIZE
            while rows > 1 and (rows + 1) * row + self._work_bytes(rows) > free:
                rows //= 2
            self._batch_sizes[max_total_tokens] = rows
        return self._batch_sizes[max_total_tokens]

    @property
    def outstanding(self) -> int:
        """Bytes that the model's first rows will take and have not taken yet."""
        one = 2 * row_bytes(self._config, USUAL_CONTEXT, self._dtype) + self._work_bytes(1)
        return max(0, one - OVERHEAD - self._allocated)

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return self._device

    def _work_bytes(self, rows: int) -> int:
        return work_bytes(self._config, rows, self._dtype)

    def _new_buffers(self, size: KVCacheSize) -> KVCacheBuffers:
        buffers = self._allocate(size)
        self._allocated += buffers.nbytes
        finalize(buffers, self._count_freed, buffers.nbytes)
        return buffers

    def _count_freed(self, nbytes: int) -> None:
        self._allocated -= nbytes

    def _allocate(self, size: KVCacheSize) -> KVCacheBuffers:
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


def outstanding_bytes(device: torch.device, besides: KVCachePool | None = None) -> int:
    """Bytes that the models on a device still have to take for their first rows."""
    return sum(p.outstanding for p in _pools if p is not besides and p.device == device)
