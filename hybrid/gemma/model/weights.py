"""A checkpoint's tensors in the layout that the stack multiplies with.

Layers that read the same input are one matrix, and the norm before them is folded into its
columns: after that the dense branch, the experts and the router share one normalised input. A
layer's scalar is kept twice, as the causal and the denoising pass may differ in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.gemma import weights as stack
from hybrid.gemma.checkpoint.stack_reader import StackReader
from hybrid.gemma.checkpoint.tensors import Checkpoint
from hybrid.gemma.config import GemmaConfig

# Running a few experts on all of few tokens beats gathering for each: one multiplication, not many.
FEW_EXPERTS = 8


@dataclass(frozen=True, slots=True)
class FoldedAttention:
    """Shapes: [heads * D, H], [query and key heads, D], [H, query heads * D], [H]."""

    query_key_value: Tensor
    head_norm: Tensor
    output: Tensor
    post_norm: Tensor


@dataclass(frozen=True, slots=True)
class JoinedExperts:
    """Few experts as one network beside the dense one, for running all of them on every token.

    `input` [gates, ups, both with the experts' after the dense ones, and router logits, H]; `down`
    [H, E * I].
    """

    input: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class FoldedExperts:
    """`gate_up` [E, 2 * I, H], `down` [E, H, I]; the experts' own scales are folded in."""

    gate_up: Tensor
    down: Tensor
    dense_norm: Tensor
    expert_norm: Tensor
    joined: JoinedExperts | None


@dataclass(frozen=True, slots=True)
class FoldedFeedForward:
    """`input` [gates, ups and router logits, H]; `down` [H, I]; `post_norm` [H]."""

    input: Tensor
    down: Tensor
    post_norm: Tensor
    experts: FoldedExperts | None


@dataclass(frozen=True, slots=True)
class FoldedSelfConditioning:
    """The gated MLP on the previous step's soft embedding: [2 * I, H] and [H, I]."""

    gate_up: Tensor
    down: Tensor


LayerWeights = stack.LayerWeights[FoldedAttention, FoldedFeedForward]
GemmaWeights = stack.StackWeights[FoldedAttention, FoldedFeedForward, FoldedSelfConditioning]


def read_weights(
    checkpoint: Checkpoint, config: GemmaConfig, device: torch.device, dtype: torch.dtype
) -> GemmaWeights:
    """All weights of the stack; CheckpointError for any that is missing, wrong or too many."""
    reader = _Reader(checkpoint, config, device, dtype)
    diffusion = config.architecture == "diffusion_gemma"
    weights = (
        reader.gemm_weight(
            reader.raw("embed_tokens.weight", (config.vocab_size, config.hidden_size))
        ),
        tuple(reader.layer(index) for index in range(len(config.layers))),
        reader.vector("norm"),
        reader.self_conditioning() if diffusion else None,
    )
    return GemmaWeights(*weights, skipped=reader.skipped())


class _Reader(StackReader):
    """Computes in float32; `cast` moves a finished tensor to its device and dtype."""

    def cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype).contiguous()

    def gemm_weight(self, tensor: Tensor) -> Tensor:
        """A matrix of a linear layer; on a CPU, one that widens its input lies column by column.

        There `linear` takes 44 instead of 117 us for one row (1280 x 160, float32, one core), and
        183 instead of 231 us for 32.
        """
        cast = self.cast(tensor)
        widens = cast.shape[0] > cast.shape[1]
        return cast.t().contiguous().t() if widens and self.device.type == "cpu" else cast

    def raw(self, name: str, shape: Sequence[int]) -> Tensor:
        return self.stored(name, shape).float()

    def vector(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        return self.cast(self.raw(f"{name}.weight", shape or (self.config.hidden_size,)))

    def norm(self, name: str, size: int = 0) -> Tensor:
        return self.raw(f"{name}.weight", (size or self.config.hidden_size,))

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        return self.matrices.read(self.named(name), (rows, columns)).float()

    def layer(self, index: int) -> LayerWeights:
        attention, feed_forward = self.attention(index), self.feed_forward(f"layers.{index}.")
        return LayerWeights(attention, feed_forward, *self.scalars(index))

    def attention(self, index: int) -> FoldedAttention:
        hidden, layer = self.config.hidden_size, self.config.layers[index]
        head_dim, prefix = layer.head_dim, f"layers.{index}."
        num_heads, name = self.config.num_attention_heads, f"{prefix}self_attn."
        stacked = torch.cat(
            [
                self.matrix(projection, heads * head_dim, hidden)
                for projection, heads in self.projections(index)
            ]
        )
        head_norm = (
            self.norm(f"{name}q_norm", head_dim).expand(num_heads, -1),
            self.norm(f"{name}k_norm", head_dim).expand(layer.num_key_value_heads, -1),
        )
        return FoldedAttention(
            self.gemm_weight(stacked * self.norm(f"{prefix}input_layernorm")),
            self.cast(torch.cat(head_norm)),
            self.cast(self.matrix(f"{name}o_proj", hidden, num_heads * head_dim)),
            self.vector(f"{prefix}post_attention_layernorm"),
        )

    def feed_forward(self, prefix: str) -> FoldedFeedForward:
        hidden, intermediate = self.config.hidden_size, self.config.intermediate_size
        pre_norm = self.norm(f"{prefix}pre_feedforward_layernorm")
        gate = self.matrix(f"{prefix}mlp.gate_proj", intermediate, hidden) * pre_norm
        up = self.matrix(f"{prefix}mlp.up_proj", intermediate, hidden) * pre_norm
        router: list[Tensor] = []
        experts = None
        if self.config.num_experts:
            gate_up, down = self.experts(prefix)
            router = [self.router(prefix)]
            joined = None
            if self.config.num_experts <= FEW_EXPERTS:
                gates, ups = (half.flatten(0, 1) for half in gate_up.chunk(2, dim=1))
                joined = JoinedExperts(
                    self.gemm_weight(torch.cat([gate, gates, up, ups, *router])),
                    self.cast(down.transpose(0, 1).flatten(1)),
                )
            experts = FoldedExperts(
                self.cast(gate_up),
                self.cast(down),
                self.vector(f"{prefix}post_feedforward_layernorm_1"),
                self.vector(f"{prefix}post_feedforward_layernorm_2"),
                joined,
            )
        return FoldedFeedForward(
            self.gemm_weight(torch.cat([gate, up, *router])),
            self.cast(self.matrix(f"{prefix}mlp.down_proj", hidden, intermediate)),
            self.vector(f"{prefix}post_feedforward_layernorm"),
            experts,
        )

    def router(self, prefix: str) -> Tensor:
        """Rows that give router logits of the input normalised without weight, [E, H]."""
        hidden, num_experts = self.config.hidden_size, self.config.num_experts
        scale = self.raw(f"{prefix}router.scale", (hidden,)) / math.sqrt(hidden)
        return self.matrix(f"{prefix}router.proj", num_experts, hidden) * scale

    def experts(self, prefix: str) -> tuple[Tensor, Tensor]:
        """Gate and up [E, 2 * I, H] with their norm, and down [E, H, I] with the experts' scale."""
        hidden, intermediate = self.config.hidden_size, self.config.moe_intermediate_size
        num_experts = self.config.num_experts
        gate_up = torch.empty(num_experts, 2 * intermediate, hidden)
        down = torch.empty(num_experts, hidden, intermediate)
        fused = f"{prefix}experts.gate_up_proj"
        if self.named(fused) in self.checkpoint:
            gate_up.copy_(self.raw(fused, gate_up.shape))
            down.copy_(self.raw(f"{prefix}experts.down_proj", down.shape))
        else:
            for expert in range(num_experts):
                name = f"{prefix}experts.{expert}."
                gate, up = gate_up[expert].chunk(2)
                gate.copy_(self.matrix(f"{name}gate_proj", intermediate, hidden))
                up.copy_(self.matrix(f"{name}up_proj", intermediate, hidden))
                down[expert].copy_(self.matrix(f"{name}down_proj", hidden, intermediate))
        gate_up *= self.norm(f"{prefix}pre_feedforward_layernorm_2")
        down *= self.raw(f"{prefix}router.per_expert_scale", (num_experts,))[:, None, None]
        return gate_up, down

    def self_conditioning(self) -> FoldedSelfConditioning:
        hidden, intermediate = self.config.hidden_size, self.config.intermediate_size
        name = "self_conditioning."
        gate = self.matrix(f"{name}gate_proj", intermediate, hidden)
        up = self.matrix(f"{name}up_proj", intermediate, hidden)
        return FoldedSelfConditioning(
            self.gemm_weight(torch.cat((gate, up)) * self.norm(f"{name}pre_norm")),
            self.cast(self.matrix(f"{name}down_proj", hidden, intermediate)),
        )
