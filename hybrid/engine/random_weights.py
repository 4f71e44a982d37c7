"""Weights of a stack that has no files, made on the device: for measuring speed."""

from collections.abc import Collection

import torch
from torch import Tensor

from hybrid.engine.packing import Stack
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
from hybrid.gemma.config import GemmaConfig, LayerConfig
from hybrid.kernels.native import native_matrix
from hybrid.kernels.nvfp4 import PackedMatrix, pack_matrix
from hybrid.types import Activations


def random_weights(
    config: GemmaConfig,
    device: torch.device,
    dtype: torch.dtype,
    packed: Collection[str] = ("experts",),
    activations: Activations = "float",
) -> EngineWeights:
    """Weights of the size that a trained model's have, the same at every call.

    `packed` names what is in NVFP4: "experts", "mlp", "attention"; `activations` as in
    `load_engine`.
    """
    return _Random(config, device, dtype, packed, activations).weights()


class _Random:
    """Numbers with which activations keep their size from layer to layer."""

    def __init__(
        self,
        config: GemmaConfig,
        device: torch.device,
        dtype: torch.dtype,
        packed: Collection[str],
        activations: Activations,
    ) -> None:
        self.config, self.device, self.dtype, self.packed = config, device, dtype, packed
        self.activations = activations
        self.generator = torch.Generator(device).manual_seed(0)

    def weights(self) -> EngineWeights:
        hidden = self.config.hidden_size
        conditioning = None
        if self.config.canvas_length:
            conditioning = SelfConditioningWeights(self.norm(hidden), *self.dense("", hidden))
        return EngineWeights(
            embedding=self.plain(1, self.config.vocab_size, hidden)[0],
            layers=tuple(self.layer(layer) for layer in self.config.layers),
            norm=self.norm(hidden),
            self_conditioning=conditioning,
            skipped=(),
        )

    def layer(self, layer: LayerConfig) -> LayerWeights:
        hidden, head_dim = self.config.hidden_size, layer.head_dim
        queries = self.config.num_attention_heads * head_dim
        keys = layer.num_key_value_heads * head_dim * (1 if layer.key_is_value else 2)
        attention = AttentionWeights(
            input_norm=self.norm(hidden),
            query_key_value=self.matrix("attention", queries + keys, hidden),
            query_norm=self.norm(head_dim) * head_dim**-0.5,
            key_norm=self.norm(head_dim),
            output=self.gemm_weight(self.matrix("attention", hidden, queries)),
            post_norm=self.norm(hidden),
        )
        gate_up, down = self.dense("mlp", hidden)
        experts = self.experts(hidden) if self.config.num_experts else None
        feed_forward = FeedForwardWeights(
            self.norm(hidden), gate_up, down, self.norm(hidden), experts
        )
        return LayerWeights(attention, feed_forward, 0.9, 0.9)

    def experts(self, hidden: int) -> ExpertWeights:
        count, inner = self.config.num_experts, self.config.moe_intermediate_size
        return ExpertWeights(
            input_norm=self.norm(hidden),
            router=self.plain(1, count, hidden)[0],
            router_scale=self.norm(hidden) * hidden**0.5,
            expert_scale=torch.ones(count, device=self.device),
            gate_up=self.stack("experts", count, 2 * inner, hidden),
            down=self.stack("experts", count, hidden, inner),
            dense_norm=self.norm(hidden),
            expert_norm=self.norm(hidden),
        )

    def dense(self, part: str, hidden: int) -> tuple[Matrix, Matrix]:
        inner = self.config.intermediate_size
        shapes = (2 * inner, hidden), (hidden, inner)
        gate_up, down = (self.gemm_weight(self.matrix(part, *shape)) for shape in shapes)
        return gate_up, down

    def matrix(self, part: str, rows: int, columns: int) -> HeadMatrix:
        if part in self.packed:
            return self.packed_matrix(rows, columns)
        return self.plain(1, rows, columns)[0]

    def gemm_weight(self, matrix: HeadMatrix) -> Matrix:
        if self.activations == "nvfp4" and isinstance(matrix, PackedMatrix):
            return native_matrix(matrix)
        return matrix

    def stack(self, part: str, count: int, rows: int, columns: int) -> Matrix:
        if part not in self.packed:
            return self.plain(count, rows, columns)
        stack = Stack(count)
        for index in range(count):
            stack.put(index, self.gemm_weight(self.packed_matrix(rows, columns)))
        return stack.whole()

    def packed_matrix(self, rows: int, columns: int) -> PackedMatrix:
        packed = self.bytes_below(256, 1, rows, columns // 2)
        # From 0.5 to 1.875; uniform codes have a mean square of 8.6.
        scales = self.bytes_below(16, 1, rows, columns // 16) + 0x30
        factors = torch.full((1, rows), columns**-0.5 / 3.4, device=self.device)
        return pack_matrix(packed, scales.view(torch.float8_e4m3fn), factors)

    def plain(self, count: int, rows: int, columns: int) -> Tensor:
        weight = torch.empty(count, rows, columns, device=self.device, dtype=self.dtype)
        return weight.normal_(0, columns**-0.5, generator=self.generator)

    def norm(self, size: int) -> Tensor:
        weight = torch.empty(size, device=self.device, dtype=self.dtype)
        return weight.normal_(1, 0.1, generator=self.generator)

    def bytes_below(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(
            limit, shape, device=self.device, dtype=torch.uint8, generator=self.generator
        )
