"""Which kernels a model launches, for requests of every size.

Triton compiles a kernel at the first launch of each variant, which takes seconds. The work below is
done on tensors without memory, so every variant is known, and compiled, before the first request.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from hybrid.engine.banned_tokens import WIDTHS
from hybrid.engine.canvases import Canvases
from hybrid.engine.kv_cache_pool import MAX_BATCH_SIZE
from hybrid.engine.model import PASS_SIZES, EngineModel
from hybrid.gemma.config import GemmaConfig
from hybrid.kernels.launch import Launch, taken

T = TypeVar("T")
META = torch.device("meta")
# Rows of hidden states that are scored: one for every tile of the head, full and partly filled.
_SCORED = (1, 16, 17, 64, 65, 128)
_MIN_CONTEXT = 1024


def list_launches(model: EngineModel, architecture: int, multiprocessors: int) -> list[Launch]:
    """One launch of every variant that requests of any size need on such a GPU.

    The launches' tensors have no memory.
    """
    found: dict[object, Launch] = {}

    def take(launch: Launch) -> None:
        found.setdefault(variant(launch), launch)

    twin = without_memory(model)
    with torch.inference_mode(), taken(architecture, take, multiprocessors):
        for _ in all_work(twin):
            pass
    return [*found.values()]


def without_memory(model: EngineModel) -> EngineModel:
    """A model that launches what this one launches: each distinct layer once, on no device."""
    config, weights = model.config, model.weights
    distinct = {
        (config.layers[index], _forms(layer)): index for index, layer in enumerate(weights.layers)
    }
    kept = sorted(distinct.values())
    small = replace(config, layers=tuple(config.layers[index] for index in kept))
    layers = tuple(weights.layers[index] for index in kept)
    return EngineModel(small, _to_meta(replace(weights, layers=layers)), model.operations)


def all_work(model: EngineModel) -> Iterator[None]:
    """Prompts, decoded tokens, denoising steps and scores, of every size that differs."""
    config = model.config
    is_drafter = model.weights.self_conditioning is not None
    for capacity in _capacities(config):
        for rows in range(1, MAX_BATCH_SIZE + 1):
            cache = model.new_cache(rows, capacity, max(256, config.canvas_length))
            for tokens in (size for size in PASS_SIZES if size <= model.max_pass_tokens(rows)):
                for row in range(rows):
                    cache.clear(row)
                model.encode(_ids(rows, tokens), [tokens] * rows, cache, range(rows))
                yield
            if is_drafter and rows & (rows - 1) == 0:
                canvases = Canvases(model, rows)
                for width in (0, *WIDTHS) if capacity == _MIN_CONTEXT else (0,):
                    canvases.step(model.kv_buffers(cache), _ids(rows), width)
                    yield
    for tokens in _SCORED:
        hidden = torch.empty(tokens, config.hidden_size, device=META, dtype=model.dtype)
        model.score(hidden, _ids(tokens))
        model.logits(hidden)
        yield


def variant(launch: Launch) -> tuple[object, ...]:
    """Equal for launches that run the same compiled code."""
    arguments = tuple(
        _specialised(launch.arguments[parameter.name], parameter)
        for parameter in launch.kernel.params
    )
    return launch.kernel.__name__, arguments, launch.num_warps, launch.num_stages


def _specialised(value: Any, parameter: Any) -> object:
    """What Triton's code depends on: dtype and alignment of a tensor, ones and multiples of 16."""
    if isinstance(value, Tensor):
        return value.dtype, value.storage_offset() * value.itemsize % 16 == 0
    if parameter.is_constexpr or value is None:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and not parameter.do_not_specialize:
        return value if value == 1 else value % 16 == 0
    return type(value)


def _capacities(config: GemmaConfig) -> Iterator[int]:
    """The capacities of `KVCacheSize.rounded_up`."""
    capacity = _MIN_CONTEXT
    while capacity < 2 * config.max_position_embeddings:
        yield capacity
        capacity *= 2


def _forms(value: object) -> object:
    """Equal for weights whose kernels are the same."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if is_dataclass(value):
        return type(value), *(_forms(getattr(value, field.name)) for field in fields(value))
    return type(value)


def _to_meta(value: T) -> T:
    """A tree of dataclasses and tuples with its tensors on no device."""
    if isinstance(value, Tensor):
        return cast(T, torch.empty(value.shape, dtype=value.dtype, device=META))
    if isinstance(value, tuple):
        return cast(T, tuple(_to_meta(item) for item in value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _to_meta(getattr(value, f.name)) for f in fields(value)})
    return value


def _ids(*shape: int) -> Tensor:
    return torch.empty(shape, device=META, dtype=torch.int64)
