"""Entropy-bound acceptance: which positions of a canvas a denoising step keeps.

Positions are taken in order of entropy as long as the entropies *before* them sum to at most the
bound: the sum is exclusive, so the surest position is always kept, and so is the one that crosses
the bound. The sum bounds the dependence that parallel sampling ignores (arXiv 2505.24857).
"""

import torch
from torch import Tensor


def accept_torch(entropy: Tensor, bound: Tensor) -> Tensor:
    """The kept positions, bool [R, C], of ``entropy`` [R, C] (nats) under ``bound`` [R, 1]."""
    ordered, order = entropy.sort(dim=-1)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, before <= bound)
