"""How much memory a model takes, computed from its headers before anything is loaded.

Running out of memory in the middle of loading 18 GB is a crash after a minute; the same sum made
beforehand is an error message with numbers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hybrid.engine.host import free_memory
from hybrid.engine.kv_cache import KVCacheSize
from hybrid.errors import CapabilityError
from hybrid.gemma.checkpoint.nvfp4 import ACTIVATION_SCALES
from hybrid.gemma.checkpoint.stack_reader import TOWERS
from hybrid.gemma.checkpoint.tensors import Checkpoint
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.model.cache import default_spare, slots_by_kind
from hybrid.gemma.model.weights import FEW_EXPERTS
from hybrid.kernels.head import VOCABULARY_TILE
from hybrid.kernels.nvfp4 import BLOCK, TILE_COLUMNS, TILE_ROWS

USUAL_CONTEXT = 4096
# What CUDA, Triton's kernels and captured graphs take besides tensors: an allowance, not measured.
OVERHEAD = 700_000_000
_PASS_TOKENS = 512
MAX_LOGITS_ROWS = 128  # rows of whole float32 logits that are held at a time, 134 MB
_SCALES = ("weight_scale", "weight_scale_2", "weight_global_scale")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes: the model, the keys and values of `rows` rows of `context` tokens, and work."""

    weights: int
    cache: int
    work: int
    rows: int
    context: int

    @property
    def total(self) -> int:
        """All that must be free."""
        return self.weights + self.cache + self.work

    def __str__(self) -> str:
        return (
            f"{gigabytes(self.weights)} of weights, {gigabytes(self.cache)} of keys and values "
            f"({self.rows} x {self.context} tokens), {gigabytes(self.work)} to work in: "
            f"{gigabytes(self.total)}"
        )


def plan_memory(
    checkpoint: Checkpoint,
    config: GemmaConfig,
    dtype: torch.dtype = torch.bfloat16,
    rows: int = 1,
    context: int = USUAL_CONTEXT,
) -> MemoryPlan:
    """What the engine needs for so many rows at once; reads headers only."""
    weights = weight_bytes(checkpoint, dtype)
    cache = (rows + 1) * row_bytes(config, context, dtype)
    return MemoryPlan(weights, cache, work_bytes(config, rows, dtype), rows, context)


def require_memory(
    checkpoint: Checkpoint,
    config: GemmaConfig,
    device: torch.device,
    dtype: torch.dtype,
    promised: int = 0,
) -> MemoryPlan:
    """The plan for one row; CapabilityError if it does not fit in what is free on the device.

    `promised` bytes of it are those that models on the device will still take.
    """
    plan = plan_memory(checkpoint, config, dtype)
    if device.type == "cuda":
        free, size = torch.cuda.mem_get_info(device)
        free -= promised
        if plan.total > free:
            name = f"{device} ({torch.cuda.get_device_name(device)}, {gigabytes(size)})"
            missing = f"needs {plan}, and {gigabytes(free)} are free"
            raise CapabilityError(f"loading {checkpoint.directory}", name, missing)
    return plan


def require_host_memory(checkpoint: Checkpoint, config: GemmaConfig) -> int:
    """Bytes that loading in float32 takes; CapabilityError if the system has less to give."""
    needed, free = decoded_bytes(checkpoint, config), free_memory()
    if free is not None and needed > free:
        have = f"{gigabytes(free)} are free"
        missing = f"needs {gigabytes(needed)} to decode all weights to float32, and {have}"
        raise CapabilityError(f"loading {checkpoint.directory}", "cpu", missing)
    return needed


def decoded_bytes(checkpoint: Checkpoint, config: GemmaConfig) -> int:
    """Bytes of the weights in float32, with what the largest of them takes on its way there."""
    total = largest = 0
    twice = (".experts.", ".mlp.") if 0 < config.num_experts <= FEW_EXPERTS else ()
    for name, kind, shape in _weights(checkpoint):
        numbers = math.prod(shape) * (2 if kind == "U8" else 1)
        total += 2 * numbers if any(word in name for word in twice) else numbers
        largest = max(largest, numbers)
    return 4 * total + 6 * largest


def weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Bytes of the weights as `hybrid.engine.reading` lays them out."""
    total = 0
    for name, kind, shape in _weights(checkpoint):
        if kind != "U8":
            total += math.prod(shape) * dtype.itemsize
        elif ".gate_proj." in name:  # in the same tiles as its up projection
            total += _packed_bytes(2 * shape[0], 2 * shape[1])
        elif ".up_proj." not in name:
            total += _packed_bytes(shape[0], 2 * shape[1])
    return total


def row_bytes(config: GemmaConfig, context: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one row."""
    spare = default_spare(config)
    size = KVCacheSize(1, context, spare).rounded_up()
    slots = slots_by_kind(config, size.capacity, size.spare)
    numbers = sum(
        2 * layer.num_key_value_heads * layer.head_dim * (slots[layer.kind] + 1)
        for layer in config.layers
    )
    return numbers * dtype.itemsize


def work_bytes(config: GemmaConfig, rows: int, dtype: torch.dtype) -> int:
    """Bytes that steps of `rows` canvases and prompts work in, and what CUDA itself takes."""
    step = step_bytes(config, rows, dtype) if config.canvas_length else 0
    return step + pass_bytes(config, dtype) + OVERHEAD


def step_bytes(config: GemmaConfig, rows: int, dtype: torch.dtype) -> int:
    """Bytes of a denoising step of `rows` canvases: graphs keep them for good.

    The largest parts are the logits, the sums that make soft embeddings, and the experts' rows.
    """
    tokens = rows * config.canvas_length
    soft = 8 * config.hidden_size * 4  # float32 sums of the vocabulary's shares
    return tokens * (config.vocab_size * dtype.itemsize + soft) + _layer_bytes(
        config, tokens, dtype
    )


def pass_bytes(config: GemmaConfig, dtype: torch.dtype) -> int:
    """Bytes that a causal pass works in, with the scores of its tokens over the vocabulary.

    Scores take three numbers a tile of the vocabulary; whole logits only of the few tokens that a
    refiner writes at a time.
    """
    scores = _PASS_TOKENS * -(-config.vocab_size // VOCABULARY_TILE) * 12
    written = MAX_LOGITS_ROWS * config.vocab_size * 4
    return _layer_bytes(config, _PASS_TOKENS, dtype) + scores + written


def _layer_bytes(config: GemmaConfig, tokens: int, dtype: torch.dtype) -> int:
    assigned = config.top_k_experts * (config.moe_intermediate_size + config.hidden_size)
    return tokens * (assigned + 8 * config.hidden_size) * dtype.itemsize


def _weights(checkpoint: Checkpoint) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, stored type and shape of all but what is left out and quantised matrices' scales."""
    for name in checkpoint.names:
        if not (name.startswith(TOWERS) or name.endswith((*ACTIVATION_SCALES, *_SCALES))):
            yield name, *checkpoint.describe(name)


def _packed_bytes(rows: int, columns: int) -> int:
    """Codes, scales and factors of an NVFP4 matrix in whole tiles."""
    padded = _up(rows, TILE_ROWS) * _up(columns, TILE_COLUMNS)
    return padded // 2 + padded // BLOCK + 4 * rows


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def gigabytes(number: int) -> str:
    """A number of bytes for people."""
    return f"{number / 1e9:.2f} GB"
