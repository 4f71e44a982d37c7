"""A checkpoint's tensors as the engine's weights, in as little memory as they need.

Matrices that are stored in NVFP4 stay in it, re-tiled; all else takes the engine's dtype. The final
tensors are made empty on the device and filled in pieces, so what is needed beside the model is one
expert on the device and one piece of a file on the host, whatever the size of files and tensors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hybrid.engine.packing import Stack, as_bytes, interleave_rows
from hybrid.engine.weights import (
    AttentionWeights,
    EngineWeights,
    ExpertWeights,
    FeedForwardWeights,
    HeadMatrix,
    LayerWeights,
    Matrix,
    SelfConditioningWeights,
)
from hybrid.gemma.checkpoint.nvfp4 import StoredMatrix
from hybrid.gemma.checkpoint.stack_reader import StackReader
from hybrid.gemma.checkpoint.tensors import FLOATS, Checkpoint, all_finite
from hybrid.gemma.config import GemmaConfig
from hybrid.kernels.native import native_matrix
from hybrid.kernels.nvfp4 import PackedMatrix, pack_matrix
from hybrid.types import Activations

# Bytes of a file that are on the host at a time, where rows are not longer: what stays in a cache.
# With 64 MB a piece bfloat16 is read at 6 GB/s, with 4 MB at 13 (from memory, one core).
_PIECE = 2**22


def read_weights(
    checkpoint: Checkpoint,
    config: GemmaConfig,
    device: torch.device,
    dtype: torch.dtype,
    activations: Activations = "float",
) -> EngineWeights:
    """All weights of the stack; CheckpointError for any that is missing, wrong or too many.

    `activations` "nvfp4" makes native matrices of what is stored in NVFP4, but for the heads'.
    """
    reader = _Reader(checkpoint, config, device, dtype, activations)
    diffusion = config.architecture == "diffusion_gemma"
    embedding = reader.tensor("embed_tokens.weight", (config.vocab_size, config.hidden_size))
    layers = tuple(reader.layer(index) for index in range(len(config.layers)))
    norm = reader.norm("norm")
    conditioning = reader.self_conditioning() if diffusion else None
    return EngineWeights(embedding, layers, norm, conditioning, reader.skipped())


class _Reader(StackReader):
    """Puts what it reads in its place on the device, a piece of the file at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: GemmaConfig,
        device: torch.device,
        dtype: torch.dtype,
        activations: Activations,
    ) -> None:
        super().__init__(checkpoint, config, device, dtype)
        self.activations = activations

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """A tensor in the engine's dtype."""
        target = self.empty(*shape)
        self.fill(target, self.named(name))
        return target

    def empty(self, *shape: int) -> Tensor:
        """Memory of the engine's dtype on the device."""
        return torch.empty(shape, device=self.device, dtype=self.dtype)

    def fill(self, target: Tensor, name: str) -> None:
        """Copy a stored tensor of the target's shape."""
        self.checkpoint.check(name, target.shape, FLOATS)
        is_finite = torch.ones((), dtype=torch.bool, device=self.device)
        for part, piece in self.checkpoint.pieces(name, _PIECE):
            is_finite &= all_finite(target[part].copy_(piece))
        self.checkpoint.require_finite(name, is_finite)

    def norm(self, name: str, size: int = 0) -> Tensor:
        return self.tensor(f"{name}.weight", (size or self.config.hidden_size,))

    def matrix(self, name: str, rows: int, columns: int) -> Matrix:
        """A linear layer."""
        return self.gemm_weight(self.stacked([name], [rows], columns))

    def gemm_weight(self, matrix: HeadMatrix) -> Matrix:
        """A matrix in the form in which it multiplies activations."""
        if self.activations == "nvfp4" and isinstance(matrix, PackedMatrix):
            return native_matrix(matrix)
        return matrix

    def stacked(self, names: Sequence[str], rows: Sequence[int], columns: int) -> HeadMatrix:
        """Linear layers that read the same input, one below the other."""
        names = [self.named(name) for name in names]
        pairs = [*zip(names, [(height, columns) for height in rows], strict=True)]
        if all(self.matrices.is_quantized(name) for name in names):
            stored = [self.matrices.stored(name, shape) for name, shape in pairs]
            return self.packed(
                torch.cat([part.packed for part in stored]),
                torch.cat([as_bytes(part.scales) for part in stored]),
                torch.cat([self.factors(part) for part in stored]),
            )
        whole = self.empty(sum(rows), columns)
        first = 0
        for name, height in zip(names, rows, strict=True):
            self.fill_linear(whole[first : first + height], name)
            first += height
        return whole

    def fill_linear(self, target: Tensor, name: str) -> None:
        """Copy the matrix of a linear layer, decoded if it is quantised."""
        if self.matrices.is_quantized(name):
            target.copy_(self.matrices.read(name, target.shape))
        else:
            self.fill(target, f"{name}.weight")

    def packed(self, codes: Tensor, scales: Tensor, factors: Tensor) -> PackedMatrix:
        """One matrix from its bytes on the host and its factors on the device."""
        return pack_matrix(
            codes.to(self.device)[None],
            scales.to(self.device)[None].view(torch.float8_e4m3fn),
            factors[None],
        )

    def interleaved_gate_up(self, prefix: str, rows: int, columns: int) -> Matrix:
        """Gate and up, their rows alternating."""
        names = [self.named(f"{prefix}{part}_proj") for part in ("gate", "up")]
        if all(self.matrices.is_quantized(name) for name in names):
            gate, up = (self.matrices.stored(name, (rows, columns)) for name in names)
            packed = self.packed(
                interleave_rows(gate.packed, up.packed),
                interleave_rows(as_bytes(gate.scales), as_bytes(up.scales)),
                interleave_rows(self.factors(gate), self.factors(up)),
            )
            return self.gemm_weight(packed)
        whole = self.empty(rows, 2, columns)
        for part, name in enumerate(names):
            self.fill_linear(whole[:, part], name)
        return whole.flatten(0, 1)

    def factors(self, stored: StoredMatrix) -> Tensor:
        """One factor a row."""
        return torch.full((len(stored.packed),), stored.factor, device=self.device)

    def layer(self, index: int) -> LayerWeights:
        prefix = f"layers.{index}."
        attention, feed_forward = self.attention(index), self.feed_forward(prefix)
        return LayerWeights(attention, feed_forward, *self.scalars(index))

    def attention(self, index: int) -> AttentionWeights:
        hidden, head_dim = self.config.hidden_size, self.config.layers[index].head_dim
        prefix = f"layers.{index}."
        name, queries = f"{prefix}self_attn.", self.config.num_attention_heads * head_dim
        names, heads = zip(*self.projections(index), strict=True)
        return AttentionWeights(
            input_norm=self.norm(f"{prefix}input_layernorm"),
            query_key_value=self.stacked(names, [count * head_dim for count in heads], hidden),
            query_norm=self.norm(f"{name}q_norm", head_dim),
            key_norm=self.norm(f"{name}k_norm", head_dim),
            output=self.matrix(f"{name}o_proj", hidden, queries),
            post_norm=self.norm(f"{prefix}post_attention_layernorm"),
        )

    def feed_forward(self, prefix: str) -> FeedForwardWeights:
        hidden, intermediate = self.config.hidden_size, self.config.intermediate_size
        return FeedForwardWeights(
            input_norm=self.norm(f"{prefix}pre_feedforward_layernorm"),
            gate_up=self.interleaved_gate_up(f"{prefix}mlp.", intermediate, hidden),
            down=self.matrix(f"{prefix}mlp.down_proj", hidden, intermediate),
            post_norm=self.norm(f"{prefix}post_feedforward_layernorm"),
            experts=self.experts(prefix) if self.config.num_experts else None,
        )

    def experts(self, prefix: str) -> ExpertWeights:
        hidden, count = self.config.hidden_size, self.config.num_experts
        gate_up, down = self.expert_matrices(f"{prefix}experts.")
        scale = self.stored(f"{prefix}router.per_expert_scale", (count,))
        return ExpertWeights(
            input_norm=self.norm(f"{prefix}pre_feedforward_layernorm_2"),
            router=self.tensor(f"{prefix}router.proj.weight", (count, hidden)),
            router_scale=self.tensor(f"{prefix}router.scale", (hidden,)),
            expert_scale=scale.to(self.device).float(),
            gate_up=gate_up,
            down=down,
            dense_norm=self.norm(f"{prefix}post_feedforward_layernorm_1"),
            expert_norm=self.norm(f"{prefix}post_feedforward_layernorm_2"),
        )

    def expert_matrices(self, prefix: str) -> tuple[Matrix, Matrix]:
        """All experts' gate and up, and down, one expert at a time."""
        hidden, inner = self.config.hidden_size, self.config.moe_intermediate_size
        count = self.config.num_experts
        if self.named(f"{prefix}gate_up_proj") in self.checkpoint:
            down = self.tensor(f"{prefix}down_proj", (count, hidden, inner))
            return self.fused_gate_up(f"{prefix}gate_up_proj"), down
        gate_up, downs = Stack(count), Stack(count)
        for expert in range(count):
            name = f"{prefix}{expert}."
            gate_up.put(expert, self.interleaved_gate_up(name, inner, hidden))
            downs.put(expert, self.matrix(f"{name}down_proj", hidden, inner))
        return gate_up.whole(), downs.whole()

    def fused_gate_up(self, name: str) -> Tensor:
        """Of experts that share a tensor [E, 2 * I, H] with all gate rows first."""
        count, hidden = self.config.num_experts, self.config.hidden_size
        inner, name = self.config.moe_intermediate_size, self.named(name)
        whole = self.empty(count, inner, 2, hidden)
        self.checkpoint.check(name, (count, 2 * inner, hidden), FLOATS)
        is_finite = torch.ones((), dtype=torch.bool, device=self.device)
        for part, piece in self.checkpoint.pieces(name, _PIECE):
            whole[part].transpose(1, 2).copy_(piece.view(-1, 2, inner, hidden))
            is_finite &= all_finite(whole[part])
        self.checkpoint.require_finite(name, is_finite)
        return whole.flatten(1, 2)

    def self_conditioning(self) -> SelfConditioningWeights:
        hidden, intermediate = self.config.hidden_size, self.config.intermediate_size
        return SelfConditioningWeights(
            pre_norm=self.norm("self_conditioning.pre_norm"),
            gate_up=self.interleaved_gate_up("self_conditioning.", intermediate, hidden),
            down=self.matrix("self_conditioning.down_proj", hidden, intermediate),
        )
