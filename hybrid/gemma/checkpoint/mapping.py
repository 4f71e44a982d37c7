"""Which of a checkpoint's tensors a model reads, and whether it can, from their headers alone.

Reading 18 GB takes a minute, and a shape that is wrong in the last shard would be found at its end.
The same names and shapes are checked here in seconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybrid.gemma.checkpoint.nvfp4 import ACTIVATION_SCALES, MatrixReader, read_convention
from hybrid.gemma.checkpoint.stack_reader import TOWERS
from hybrid.gemma.checkpoint.tensors import FLOATS, Checkpoint
from hybrid.gemma.config import GemmaConfig

Shapes = Iterator[tuple[str, tuple[int, ...]]]
_LAYER_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_EXPERT_NORMS = (
    "post_feedforward_layernorm_1",
    "pre_feedforward_layernorm_2",
    "post_feedforward_layernorm_2",
)


@dataclass(frozen=True, slots=True)
class TensorMap:
    """Names of the tensors that the text model reads, and of those that it has no use for."""

    read: tuple[str, ...]
    skipped: tuple[str, ...]


def map_tensors(path: str | Path, config: GemmaConfig) -> TensorMap:
    """Find a place for every tensor of the model folder; CheckpointError for the first without."""
    checkpoint = Checkpoint(path)
    try:
        is_fused = f"{config.tensor_prefix}layers.0.experts.gate_up_proj" in checkpoint
        matrices = MatrixReader(checkpoint, read_convention(checkpoint.directory))
        for name, shape in plain_tensors(config, is_fused):
            checkpoint.check(name, shape, FLOATS)
        for name, shape in linear_layers(config, is_fused):
            matrices.check(name, shape)
        skipped = checkpoint.skip(TOWERS, ACTIVATION_SCALES)
        checkpoint.refuse_unread()
        left_out = {*skipped}
        read = tuple(name for name in checkpoint.names if name not in left_out)
    finally:
        checkpoint.close()
    return TensorMap(read, skipped)


def plain_tensors(config: GemmaConfig, is_fused: bool) -> Shapes:
    """What is never quantized: embedding, norms, scalars, routers, and fused experts."""
    start, hidden, count = config.tensor_prefix, config.hidden_size, config.num_experts
    inner = config.moe_intermediate_size
    yield f"{start}embed_tokens.weight", (config.vocab_size, hidden)
    yield f"{start}norm.weight", (hidden,)
    if config.canvas_length:
        yield f"{start}self_conditioning.pre_norm.weight", (hidden,)
    for index, layer in enumerate(config.layers):
        prefix = f"{start}layers.{index}."
        for norm in (*_LAYER_NORMS, *(_EXPERT_NORMS if count else ())):
            yield f"{prefix}{norm}.weight", (hidden,)
        for norm in ("q_norm", "k_norm"):
            yield f"{prefix}self_attn.{norm}.weight", (layer.head_dim,)
        yield f"{prefix}layer_scalar", (1,)
        if config.canvas_length:
            yield f"model.encoder.language_model.layers.{index}.layer_scalar", (1,)
        if count:
            yield f"{prefix}router.proj.weight", (count, hidden)
            yield f"{prefix}router.scale", (hidden,)
            yield f"{prefix}router.per_expert_scale", (count,)
        if count and is_fused:
            yield f"{prefix}experts.gate_up_proj", (count, 2 * inner, hidden)
            yield f"{prefix}experts.down_proj", (count, hidden, inner)


def linear_layers(config: GemmaConfig, is_fused: bool) -> Shapes:
    """Names without `.weight` of what may be quantized, and shapes [N, K]."""
    start, hidden = config.tensor_prefix, config.hidden_size
    if config.canvas_length:
        yield from _gated(f"{start}self_conditioning.", hidden, config.intermediate_size)
    for index, layer in enumerate(config.layers):
        prefix = f"{start}layers.{index}."
        queries = config.num_attention_heads * layer.head_dim
        keys = layer.num_key_value_heads * layer.head_dim
        yield f"{prefix}self_attn.q_proj", (queries, hidden)
        yield f"{prefix}self_attn.k_proj", (keys, hidden)
        if not layer.key_is_value:
            yield f"{prefix}self_attn.v_proj", (keys, hidden)
        yield f"{prefix}self_attn.o_proj", (hidden, queries)
        yield from _gated(f"{prefix}mlp.", hidden, config.intermediate_size)
        for expert in range(0 if is_fused else config.num_experts):
            inner = config.moe_intermediate_size
            yield from _gated(f"{prefix}experts.{expert}.", hidden, inner)


def _gated(prefix: str, hidden: int, inner: int) -> Shapes:
    yield f"{prefix}gate_proj", (inner, hidden)
    yield f"{prefix}up_proj", (inner, hidden)
    yield f"{prefix}down_proj", (hidden, inner)
