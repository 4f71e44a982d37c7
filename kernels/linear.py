"""Products with a weight matrix, bf16 or NVFP4, and what follows them done before they are stored.

`linear` is the plain product. `linear_gated` is the first half of a feed-forward network. In
`linear_heads`, the input of attention, a program computes whole heads, so that it can normalise and
rotate them and write keys and values where the cache wants them.
"""

import torch
from torch import Tensor

from hybrid.kernels.gated import gelu_gate_torch
from hybrid.kernels.nvfp4 import PackedMatrix, dense


def linear(x: Tensor, weight: Tensor | PackedMatrix) -> Tensor:
    """``x . weight^T`` [T, N] of ``x`` [T, K] and ``weight`` [N, K], packed or not."""
    return linear_torch(x, weight)


def linear_torch(x: Tensor, weight: Tensor | PackedMatrix) -> Tensor:
    """As `linear`; in float32, or float64 if `x` is, and then rounded."""
    return _product(x, weight).to(x.dtype)


def linear_gated(x: Tensor, weight: Tensor | PackedMatrix) -> Tensor:
    """``gelu(gate . x) * (up . x)`` [T, N/2]; rows of ``weight`` [N, K] are gate and up in turn."""
    return linear_gated_torch(x, weight)


def linear_gated_torch(x: Tensor, weight: Tensor | PackedMatrix) -> Tensor:
    """As `linear_gated`; in float32, or float64 if `x` is, rounded once at the end."""
    gate_and_up = _product(x, weight)
    return gelu_gate_torch(gate_and_up[:, 0::2], gate_and_up[:, 1::2]).to(x.dtype)


def linear_heads(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    query_norm: Tensor,
    key_norm: Tensor,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    num_heads: int,
    eps: float,
) -> Tensor:
    """Query heads [T, num_heads, D] of ``x`` [T, K]; keys and values go into the caches.

    ``weight`` [N, K] holds the rows of the query, key and value heads; without value heads a value
    is the key's product. Queries and keys are normalised with ``query_norm`` and ``key_norm`` [D]
    and rotated by ``cosine`` and ``sine`` (float32 [T, D/2]); values are normalised without weight.
    Token t is written to ``slots[t]`` (int64 [T]) of ``keys`` and ``values`` [S, Hkv, D].
    """
    return linear_heads_torch(
        x, weight, query_norm, key_norm, cosine, sine, keys, values, slots, num_heads, eps
    )


def linear_heads_torch(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    query_norm: Tensor,
    key_norm: Tensor,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    num_heads: int,
    eps: float,
) -> Tensor:
    """As `linear_heads`; in float32, or float64 if `x` is, rounded once at the end."""
    num_keys, head_dim = keys.shape[1:]
    heads = _product(x, weight).view(len(x), -1, head_dim)
    normed = heads * (heads.square().mean(-1, keepdim=True) + eps).rsqrt()
    query, key, value = normed.tensor_split((num_heads, num_heads + num_keys), 1)
    values[slots] = (value if value.shape[1] else key).to(values.dtype)
    keys[slots] = _rotated(key * key_norm, cosine, sine).to(keys.dtype)
    return _rotated(query * query_norm, cosine, sine).to(x.dtype)


def _product(x: Tensor, weight: Tensor | PackedMatrix) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    matrix = weight.to(dtype) if isinstance(weight, Tensor) else dense(weight, dtype)[0]
    return x.to(dtype) @ matrix.T


def _rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Heads [T, n, D] with dimensions i and i + D/2 turned by (cosine, sine) [T, D/2]."""
    low, high = heads.chunk(2, -1)
    cosine, sine = cosine[:, None], sine[:, None]
    return torch.cat((low * cosine - high * sine, high * cosine + low * sine), -1)
