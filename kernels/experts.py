"""Mixture of experts on a device: every token through its k experts, as two grouped products.

    gated[i] = gelu(gate_e x) * up_e x;   output[i] = weight_i * down_e gated[i]

One row an assignment comes out and nothing is summed here: the norm that follows adds the k rows of
a token, in their order, so that the sum does not depend on which expert finished first.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from hybrid.kernels.gated import gelu_gate_torch
from hybrid.kernels.nvfp4 import PackedMatrix, dense


def experts(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    gate_up: Tensor | PackedMatrix,
    down: Tensor | PackedMatrix,
) -> Tensor:
    """``weights[t, j] * down_e(gelu(gate_e x_t) * up_e x_t)`` [T, k, H], e = experts[t, j].

    ``x`` [T, H]; ``experts`` int32 [T, k]; ``weights`` float32 [T, k]; ``gate_up`` [E, 2 * I, H],
    gate and up rows alternating; ``down`` [E, H, I].
    """
    return experts_torch(x, experts, weights, gate_up, down)


def experts_torch(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    gate_up: Tensor | PackedMatrix,
    down: Tensor | PackedMatrix,
) -> Tensor:
    """As `experts`; each product in float32, or float64 if `x` is, and then rounded."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    output = x.new_empty(*experts.shape, x.shape[1])
    for expert in sorted(set(experts.flatten().tolist())):
        token, place = (experts == expert).nonzero(as_tuple=True)
        gate_and_up = linear(x[token].to(dtype), _matrix(gate_up, expert, dtype))
        gated = gelu_gate_torch(gate_and_up[:, 0::2], gate_and_up[:, 1::2]).to(x.dtype)
        mixed = linear(gated.to(dtype), _matrix(down, expert, dtype))
        output[token, place] = (mixed * weights[token, place, None]).to(x.dtype)
    return output


def _matrix(weight: Tensor | PackedMatrix, expert: int, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Tensor):
        return weight[expert].to(dtype)
    one = slice(expert, expert + 1)
    matrix = PackedMatrix(
        weight.words[one], weight.scales[one], weight.factors[one], weight.rows, weight.columns
    )
    return dense(matrix, dtype)[0]
