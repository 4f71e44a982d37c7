"""Mixture of experts over many experts: each runs once, on the tokens that chose it.

Tokens are sorted by expert, so an expert's inputs are one slice. For few experts and tokens running
all of them on all tokens is faster, and the layer does that instead.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from hybrid.kernels.arithmetic import gelu_gate_torch


def mixture_torch(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """``sum_k weights[n, k] * down_e(gelu(gate_e x_n) * up_e x_n)``, e = experts[n, k]; [N, H].

    ``x`` [N, H]; ``experts`` and ``weights`` [N, k]; ``gate_up`` [E, 2 * I, H], gate rows first;
    ``down`` [E, H, I].
    """
    top_k = experts.shape[-1]
    order = experts.flatten().argsort()
    token = order // top_k
    counts = experts.flatten().bincount(minlength=len(gate_up)).tolist()
    rows = x.index_select(0, token).split_with_sizes(counts)
    wide = [linear(part, matrix) for part, matrix in zip(rows, gate_up, strict=True) if len(part)]
    gate, up = torch.cat(wide).chunk(2, -1)
    shares = weights.flatten().index_select(0, order)[:, None].to(x.dtype)
    rows = gelu_gate_torch(gate, up).mul_(shares).split_with_sizes(counts)
    outputs = [linear(part, matrix) for part, matrix in zip(rows, down, strict=True) if len(part)]
    return torch.zeros_like(x).index_add_(0, token, torch.cat(outputs))
