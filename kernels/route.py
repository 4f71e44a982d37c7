"""Routing of tokens to experts.

The published router takes a softmax over all experts and renormalises the k largest. That is the
softmax over the k largest logits alone, which is what is computed here.

`route` starts from the raw residual: ``logits = (rms_norm(x) * scale / sqrt(H)) . weight^T``. On a
GPU the input times its scale is split into two bfloat16 numbers that together keep 16 bits, so that
the tensor cores' products are as good as float32's: a choice between experts hangs on them. A
program routes 16 tokens and reads the whole weight, 0.7 MB of it from the second-level cache.
"""

import torch
from torch import Tensor

from hybrid.kernels.launch import launch, uses_triton

_BLOCK_T, _BLOCK_H = 16, 128


def route(
    x: Tensor, scale: Tensor, weight: Tensor, expert_scale: Tensor, top_k: int, eps: float
) -> tuple[Tensor, Tensor]:
    """The experts of every token, int32 [T, k], best first, and their weights, float32 [T, k].

    ``x`` [T, H] is the residual stream, ``scale`` [H], ``weight`` [E, H]; a weight is the softmax
    over the k chosen times ``expert_scale`` float32 [E]. Equal logits choose the lower number.
    A token with NaN has NaN for weights, and experts that exist.
    """
    if not uses_triton(x):
        return route_torch(x, scale, weight, expert_scale, top_k, eps)
    from hybrid.kernels.device.route import choose

    (tokens, hidden_size), num_experts = x.shape, len(weight)
    experts = torch.empty(tokens, top_k, device=x.device, dtype=torch.int32)
    weights = torch.empty(tokens, top_k, device=x.device, dtype=torch.float32)
    launch(
        choose,
        (-(-tokens // _BLOCK_T),),
        x,
        scale,
        weight,
        expert_scale,
        experts,
        weights,
        tokens=tokens,
        H=hidden_size,
        E=num_experts,
        TOP_K=top_k,
        EPS=eps,
        BLOCK_T=_BLOCK_T,
        BLOCK_H=_BLOCK_H,
        BLOCK_E=max(16, 1 << (num_experts - 1).bit_length()),
        num_warps=4,
        num_stages=3,
    )
    return experts, weights


def route_torch(
    x: Tensor, scale: Tensor, weight: Tensor, expert_scale: Tensor, top_k: int, eps: float
) -> tuple[Tensor, Tensor]:
    """As `route`; in float32, or float64 if ``x`` is."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    logits = (wide * scale) @ weight.to(wide.dtype).T * (inverse * x.shape[-1] ** -0.5)
    # A stable sort keeps the order of equal logits, which topk does not promise.
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    experts = order[:, :top_k]
    weights = ordered[:, :top_k].softmax(-1) * expert_scale[experts]
    return experts.to(torch.int32), weights.float()


def choose_experts_torch(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Expert indices (int64) and weights (float32, sum one), both [N, k], of ``logits`` [N, E]."""
    largest, experts = logits.topk(top_k, -1)
    return experts, largest.softmax(-1, dtype=torch.float32)


def route_dense_torch(logits: Tensor, top_k: int) -> Tensor:
    """The weight of every expert [N, E], zero for those not chosen; dtype of ``logits``."""
    experts, weights = choose_experts_torch(logits, top_k)
    return torch.zeros_like(logits).scatter_(-1, experts, weights.to(logits.dtype))
