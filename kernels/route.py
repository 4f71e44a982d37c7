"""Routing of tokens to experts.

The published router takes a softmax over all experts and renormalises the k largest. That is the
softmax over the k largest logits alone, which is what is computed here.
"""

import torch
from torch import Tensor


def route_torch(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Expert indices (int64) and weights (float32, sum one), both [N, k], of ``logits`` [N, E]."""
    largest, experts = logits.topk(top_k, -1)
    return experts, largest.softmax(-1, dtype=torch.float32)


def route_dense_torch(logits: Tensor, top_k: int) -> Tensor:
    """The weight of every expert [N, E], zero for those not chosen; dtype of ``logits``."""
    experts, weights = route_torch(logits, top_k)
    return torch.zeros_like(logits).scatter_(-1, experts, weights.to(logits.dtype))
