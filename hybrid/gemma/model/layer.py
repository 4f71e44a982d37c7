"""One layer of the stack: attention, then the feed-forward network with or without experts.

    x += norm(attention(x));  x += norm(feed_forward(x));  x *= scalar

The two passes of the model, causal and denoising, differ only in the span and in the scalar. Inputs
are normalised without weight, because weights.py folds the norms' weights into the matrices.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import linear

from hybrid.gemma.config import GemmaConfig, LayerConfig
from hybrid.gemma.model.cache import Span
from hybrid.gemma.model.mixture import mixture_torch
from hybrid.gemma.model.weights import (
    FoldedExperts,
    FoldedFeedForward,
    JoinedExperts,
    LayerWeights,
)
from hybrid.kernels.arithmetic import constant, gelu_gate_torch
from hybrid.kernels.attention import attention_torch
from hybrid.kernels.norms import add_rms_norm_torch, rms_norm_torch
from hybrid.kernels.rope import rotate_torch
from hybrid.kernels.route import choose_experts_torch, route_dense_torch

# From here on few experts gather their tokens, too: 1.15 instead of 1.27 ms for 256 tokens, and as
# long for 64 (4 experts, 2 of them a token, one CPU core).
MANY_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and signed sine of a pass's positions, [T, 1, D] or [R, T, 1, D]."""

    cosine: Tensor
    signed_sine: Tensor


class Layer:
    """A layer's weights and geometry."""

    def __init__(self, config: GemmaConfig, layer: LayerConfig, weights: LayerWeights) -> None:
        self.config, self.geometry, self.weights = config, layer, weights
        self.kind_and_group = (layer.kind, config.num_attention_heads // layer.num_key_value_heads)
        self.rope = layer.rope

    def attend(
        self, x: Tensor, span: Span, rotation: Rotation, keys: Tensor, values: Tensor
    ) -> Tensor:
        """``x`` [R, T, H] with attention added; writes this pass's keys and values to the cache."""
        weights, eps = self.weights.attention, self.config.rms_norm_eps
        query = self.project(x, span, rotation, keys, values)
        attended = attention_torch(query, span.read(keys), span.read(values), span.mask)
        return add_rms_norm_torch(x, linear(attended, weights.output), weights.post_norm, eps)

    def project(
        self, x: Tensor, span: Span, rotation: Rotation, keys: Tensor, values: Tensor
    ) -> Tensor:
        """The queries [R, T, heads, D] of ``x``; writes its keys and values to the cache."""
        query, key, value = self.heads(x, rotation)
        span.write(keys, key)
        span.write(values, value)
        return query

    def heads(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [R, T, heads, D] of ``x``."""
        weights, geometry = self.weights.attention, self.geometry
        eps, num_queries = self.config.rms_norm_eps, self.config.num_attention_heads
        num_keys = geometry.num_key_value_heads
        heads = linear(rms_norm_torch(x, None, eps), weights.query_key_value)
        heads = heads.view(*x.shape[:2], -1, geometry.head_dim)
        heads = rms_norm_torch(heads, None, eps)
        value = heads.narrow(2, heads.shape[2] - num_keys, num_keys)
        turning = heads.narrow(2, 0, num_queries + num_keys)
        turned = rotate_torch(turning * weights.head_norm, rotation.cosine, rotation.signed_sine)
        return turned.narrow(2, 0, num_queries), turned.narrow(2, num_queries, num_keys), value

    def feed_forward(self, x: Tensor, scalar: float, is_few: bool) -> Tensor:
        """``x`` [R, T, H] with the feed-forward network added, times `scalar`.

        Few tokens run through all of few experts.
        """
        weights, eps = self.weights.feed_forward, self.config.rms_norm_eps
        normed = rms_norm_torch(x, None, eps)
        if weights.experts is None:
            gate, up = linear(normed, weights.input).chunk(2, -1)
            output = linear(gelu_gate_torch(gate, up), weights.down)
        else:
            joined = weights.experts.joined if is_few else None
            dense, mixed = (
                self._gathered(normed, weights, weights.experts)
                if joined is None
                else self._joined(normed, weights, joined)
            )
            output = rms_norm_torch(dense, weights.experts.dense_norm, eps)
            output = add_rms_norm_torch(output, mixed, weights.experts.expert_norm, eps)
        x = add_rms_norm_torch(x, output, weights.post_norm, eps)
        return x.mul_(constant(scalar, x.device))

    def _gathered(
        self, normed: Tensor, weights: FoldedFeedForward, experts: FoldedExperts
    ) -> tuple[Tensor, Tensor]:
        """What the dense network and the experts make of [R, T, H], each run on its own tokens."""
        config = self.config
        sizes = [config.intermediate_size] * 2 + [config.num_experts]
        gate, up, router_logits = linear(normed, weights.input).split_with_sizes(sizes, -1)
        dense = linear(gelu_gate_torch(gate, up), weights.down)
        chosen, shares = choose_experts_torch(router_logits.flatten(0, 1), config.top_k_experts)
        flat = normed.flatten(0, 1)
        mixed = mixture_torch(flat, chosen, shares, experts.gate_up, experts.down)
        return dense, mixed.view(normed.shape)

    def _joined(
        self, normed: Tensor, weights: FoldedFeedForward, joined: JoinedExperts
    ) -> tuple[Tensor, Tensor]:
        """As `_gathered`, with all experts run on all tokens."""
        config = self.config
        sizes = [config.intermediate_size, config.num_experts * config.moe_intermediate_size]
        wide = linear(normed, joined.input)
        gate, up, router_logits = wide.split_with_sizes([sum(sizes)] * 2 + [config.num_experts], -1)
        gated, hidden = gelu_gate_torch(gate, up).split_with_sizes(sizes, -1)
        shares = route_dense_torch(router_logits, config.top_k_experts)
        hidden = hidden.view(*shares.shape, -1) * shares[..., None]
        return linear(gated, weights.down), linear(hidden.flatten(-2), joined.down)
