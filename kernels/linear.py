"""Products with a weight matrix, bf16 or NVFP4, and what follows them done before they are stored.

`linear` is the plain product. `linear_gated` is the first half of a feed-forward network. In
`linear_heads`, the input of attention, a program computes whole heads, so that it can normalise and
rotate them and write keys and values where the cache wants them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.kernels.arithmetic import gelu_gate_torch
from hybrid.kernels.launch import architecture, launch, shared_memory, uses_triton
from hybrid.kernels.native import NativeMatrix, dense_native, linear_native
from hybrid.kernels.nvfp4 import TILE_COLUMNS, PackedMatrix, dense, operand
from hybrid.kernels.quantize import round_rows_torch


def linear(x: Tensor, weight: Tensor | PackedMatrix | NativeMatrix) -> Tensor:
    """``x . weight^T`` [T, N] of ``x`` [T, K] and ``weight`` [N, K], packed or not.

    With a native matrix ``x`` is rounded to NVFP4 first, see native.py.
    """
    if not uses_triton(x):
        return linear_torch(x, weight)
    return _launch_rows(x, weight, gated=False)


def linear_torch(x: Tensor, weight: Tensor | PackedMatrix | NativeMatrix) -> Tensor:
    """As `linear`; in float32, or float64 if `x` is, and then rounded."""
    return _product(x, weight).to(x.dtype)


def linear_gated(x: Tensor, weight: Tensor | PackedMatrix | NativeMatrix) -> Tensor:
    """``gelu(gate . x) * (up . x)`` [T, N/2]; rows of ``weight`` [N, K] are gate and up in turn.

    A native matrix rounds ``x`` as in `linear`.
    """
    if not uses_triton(x):
        return linear_gated_torch(x, weight)
    return _launch_rows(x, weight, gated=True)


def linear_gated_torch(x: Tensor, weight: Tensor | PackedMatrix | NativeMatrix) -> Tensor:
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
    if not uses_triton(x):
        return linear_heads_torch(
            x, weight, query_norm, key_norm, cosine, sine, keys, values, slots, num_heads, eps
        )
    from hybrid.kernels.device.linear import linear_head

    parts = operand(weight)
    num_keys, head_dim = keys.shape[1:]
    if parts.packed and head_dim % 32:
        raise ValueError(f"packed heads need a multiple of 32 dimensions, not {head_dim}")
    settings = _head_settings(x, head_dim, parts.packed)
    query = torch.empty(len(x), num_heads, head_dim, dtype=x.dtype, device=x.device)
    launch(
        linear_head,
        (-(-len(x) // settings.block_m) * (parts.rows // head_dim),),
        x,
        parts.values,
        parts.scales,
        parts.factors,
        query_norm,
        key_norm,
        cosine,
        sine,
        keys,
        values,
        slots,
        query,
        tokens=len(x),
        eps=eps,
        N=parts.rows,
        K=parts.columns,
        QUERIES=num_heads,
        KEYS=num_keys,
        HEAD=head_dim,
        ROWS=settings.rows,
        BLOCK_M=settings.block_m,
        BLOCK_K=settings.block_k,
        PACKED=parts.packed,
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
    )
    return query


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


def _product(x: Tensor, weight: Tensor | PackedMatrix | NativeMatrix) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    if isinstance(weight, NativeMatrix):
        return round_rows_torch(x.to(dtype)) @ dense_native(weight, dtype)[0].T
    matrix = weight.to(dtype) if isinstance(weight, Tensor) else dense(weight, dtype)[0]
    return x.to(dtype) @ matrix.T


def _rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Heads [T, n, D] with dimensions i and i + D/2 turned by (cosine, sine) [T, D/2]."""
    low, high = heads.chunk(2, -1)
    cosine, sine = cosine[:, None], sine[:, None]
    return torch.cat((low * cosine - high * sine, high * cosine + low * sine), -1)


@dataclass(frozen=True, slots=True)
class _Settings:
    """A program computes `rows` weight rows times `block_m` tokens, `block_k` columns at a time."""

    rows: int
    block_m: int
    block_k: int
    num_warps: int
    num_stages: int


def _launch_rows(x: Tensor, weight: Tensor | PackedMatrix | NativeMatrix, gated: bool) -> Tensor:
    if isinstance(weight, NativeMatrix):
        return linear_native(x, weight, gated)
    from hybrid.kernels.device.linear import linear_rows

    parts = operand(weight)
    settings = _row_settings(x, parts.packed)
    width = parts.rows // 2 if gated else parts.rows
    output = torch.empty(len(x), width, dtype=x.dtype, device=x.device)
    launch(
        linear_rows,
        (-(-len(x) // settings.block_m) * -(-parts.rows // settings.rows),),
        x,
        parts.values,
        parts.scales,
        parts.factors,
        output,
        tokens=len(x),
        N=parts.rows,
        K=parts.columns,
        GATED=gated,
        ROWS=settings.rows,
        BLOCK_M=settings.block_m,
        BLOCK_K=settings.block_k,
        PACKED=parts.packed,
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
    )
    return output


def _row_settings(x: Tensor, packed: bool) -> _Settings:
    """For a canvas 64 tokens x 128 rows: 88 to 132 programs for the model's narrow matrices.

    What limits is how fast a multiprocessor reads from the L2 cache, 64 bytes a cycle: more and
    smaller tiles read more in all, fewer and larger ones leave multiprocessors idle.
    """
    tokens, is_large = len(x), shared_memory(x.device) > 128 * 1024
    block_m = next((size for size in (16, 32, 64) if tokens <= size), 64)
    rows = 64 if block_m < 64 else 128
    if tokens > 512:
        block_m = 128
    if packed:
        return _Settings(128, block_m, TILE_COLUMNS, _packed_warps(x.device, block_m), 4)
    if block_m < 64:
        return _Settings(rows, block_m, 128 if is_large else 64, 4, 4)
    return _Settings(rows, block_m, 64 if is_large else 32, 8 if block_m == 128 else 4, 4)


def _packed_warps(device: torch.device, block_m: int) -> int:
    """For 128 rows of packed weights and `block_m` tokens, by the reasons in experts.py."""
    major = architecture(device) // 10
    if major != 10 and block_m <= 32:
        return 2
    return 4 if major == 9 and block_m == 64 else 8


def _head_settings(x: Tensor, head_dim: int, packed: bool) -> _Settings:
    """Half a head in each of two products; wider heads take fewer tokens at a time."""
    rows = max(16, 1 << (head_dim // 2 - 1).bit_length())
    is_large = shared_memory(x.device) > 128 * 1024
    most = 32 if rows > 128 else 64  # 128 tokens spill registers
    block_m = next((size for size in (16, 32, 64) if len(x) <= size), most)
    block_m = min(block_m, most)
    warps = 8 if rows * block_m >= 128 * 32 else 4
    if packed:
        if architecture(x.device) // 10 == 10:
            # Fewer fail in Triton 3.6 and 3.7 over the shared layout of decoded weights.
            warps = 16 if rows > 128 else 8
        if rows == 128 and block_m == 16:
            warps = 2
        return _Settings(rows, block_m, TILE_COLUMNS, warps, 3)
    return _Settings(rows, block_m, 64 if is_large else 32, warps, 3 if is_large else 2)
