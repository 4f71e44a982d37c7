"""One layer of the stack: attention, then the feed-forward network with or without experts.

    x += norm(attention(x));  x += norm(feed_forward(x));  x *= scalar

The two passes of the model, causal and denoising, differ only in the span and in the scalar. Inputs
are normalised without weight, because weights.py folds the norms' weights into the matrices.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import linear

from hybrid.gemma.cache import Span
from hybrid.gemma.config import GemmaConfig, LayerConfig
from hybrid.gemma.weights import ExpertWeights, LayerWeights
from hybrid.kernels.attention import attention_torch
from hybrid.kernels.constants import constant
from hybrid.kernels.gated import gelu_gate_torch
from hybrid.kernels.mixture import mixture_torch
from hybrid.kernels.norms import add_rms_norm_torch, rms_norm_torch
from hybrid.kernels.rope import rotate_torch
from hybrid.kernels.route import choose_experts_torch, route_dense_torch


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
        self.rope = (layer.head_dim, layer.rope_theta, layer.rotary_fraction)
        moe_size = config.moe_intermediate_size
        experts = weights.feed_forward.experts
        self._few = experts is not None and not len(experts.gate_up)
        width = config.intermediate_size + (config.num_experts * moe_size if self._few else 0)
        self._widths = [width, width, config.num_experts]

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
        weights, geometry = self.weights.attention, self.geometry
        eps, num_queries = self.config.rms_norm_eps, self.config.num_attention_heads
        num_keys = geometry.num_key_value_heads
        heads = linear(rms_norm_torch(x, None, eps), weights.query_key_value)
        heads = heads.view(*x.shape[:2], -1, geometry.head_dim)
        heads = rms_norm_torch(heads, None, eps)
        value = heads.narrow(2, heads.shape[2] - num_keys, num_keys)
        turning = heads.narrow(2, 0, num_queries + num_keys)
        turned = rotate_torch(turning * weights.head_norm, rotation.cosine, rotation.signed_sine)
        span.write(keys, turned.narrow(2, num_queries, num_keys))
        span.write(values, value)
        return turned.narrow(2, 0, num_queries)

    def feed_forward(self, x: Tensor, scalar: float) -> Tensor:
        """``x`` [R, T, H] with the feed-forward network added, times `scalar`."""
        weights, eps = self.weights.feed_forward, self.config.rms_norm_eps
        normed = rms_norm_torch(x, None, eps)
        wide = linear(normed, weights.input)
        gate, up, router_logits = wide.split_with_sizes(self._widths, -1)
        gated = gelu_gate_torch(gate, up)
        if weights.experts is None:
            output = linear(gated, weights.down)
        else:
            dense = linear(gated[..., : self.config.intermediate_size], weights.down)
            output = rms_norm_torch(dense, weights.experts.dense_norm, eps)
            mixed = self._mix(normed, router_logits, gated, weights.experts)
            output = add_rms_norm_torch(output, mixed, weights.experts.expert_norm, eps)
        x = add_rms_norm_torch(x, output, weights.post_norm, eps)
        return x.mul_(constant(scalar, x.device))

    def _mix(
        self, normed: Tensor, router_logits: Tensor, gated: Tensor, weights: ExpertWeights
    ) -> Tensor:
        """The experts' weighted sum [R, T, H]."""
        config = self.config
        if self._few:
            shares = route_dense_torch(router_logits, config.top_k_experts)
            hidden = gated[..., config.intermediate_size :]
            hidden = hidden.view(*shares.shape, -1) * shares[..., None]
            return linear(hidden.flatten(-2), weights.down)
        flat = normed.flatten(0, 1)
        experts, shares = choose_experts_torch(router_logits.flatten(0, 1), config.top_k_experts)
        mixed = mixture_torch(flat, experts, shares, weights.gate_up, weights.down)
        return mixed.view(normed.shape)
