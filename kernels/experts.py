"""Mixture of experts on a device: every token through its k experts, as two grouped products.

    gated[i] = gelu(gate_e x) * up_e x;   output[i] = weight_i * down_e gated[i]

One row an assignment comes out and nothing is summed here: the norm that follows adds the k rows of
a token, in their order, so that the sum does not depend on which expert finished first.

Three launches: a plan that cuts each expert's assignments into tiles of BLOCK_M rows, and one
kernel twice. Its programs stay on their multiprocessor and walk over tiles of weights; where a
canvas meets all experts, that is one pass over all weights, 12.8 GB in 30 layers of 4 bits.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from hybrid.kernels.arithmetic import gelu_gate_torch
from hybrid.kernels.launch import (
    architecture,
    launch,
    multiprocessors,
    uses_triton,
)
from hybrid.kernels.native import NativeMatrix, dense_native, grouped_native
from hybrid.kernels.nvfp4 import TILE_COLUMNS, TILE_ROWS, PackedMatrix, dense, operand
from hybrid.kernels.quantize import round_rows_torch


def experts(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    gate_up: Tensor | PackedMatrix | NativeMatrix,
    down: Tensor | PackedMatrix | NativeMatrix,
) -> Tensor:
    """``weights[t, j] * down_e(gelu(gate_e x_t) * up_e x_t)`` [T, k, H], e = experts[t, j].

    ``x`` [T, H]; ``experts`` int32 [T, k]; ``weights`` float32 [T, k]; ``gate_up`` [E, 2 * I, H],
    gate and up rows alternating; ``down`` [E, H, I]. On a GPU `x` and plain weights are bfloat16.
    What is multiplied by a native matrix is rounded to NVFP4 first, see native.py.
    """
    if not uses_triton(x):
        return experts_torch(x, experts, weights, gate_up, down)
    plan = _plan(experts, len(_values(gate_up)))
    gated = _grouped(x, gate_up, plan, None, experts.shape)
    output = _grouped(gated, down, plan, weights, experts.shape)
    return output.view(*experts.shape, -1)


def experts_torch(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    gate_up: Tensor | PackedMatrix | NativeMatrix,
    down: Tensor | PackedMatrix | NativeMatrix,
) -> Tensor:
    """As `experts`; each product in float32, or float64 if `x` is, and then rounded."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    output = x.new_empty(*experts.shape, x.shape[1])
    for expert in sorted(set(experts.flatten().tolist())):
        token, place = (experts == expert).nonzero(as_tuple=True)
        gate_and_up = _product(x[token].to(dtype), gate_up, expert)
        gated = gelu_gate_torch(gate_and_up[:, 0::2], gate_and_up[:, 1::2]).to(x.dtype)
        mixed = _product(gated.to(dtype), down, expert)
        output[token, place] = (mixed * weights[token, place, None]).to(x.dtype)
    return output


def _product(x: Tensor, weight: Tensor | PackedMatrix | NativeMatrix, expert: int) -> Tensor:
    """``x`` [T, K] times one expert's matrix, in the dtype of `x`."""
    if isinstance(weight, Tensor):
        return linear(x, weight[expert].to(x.dtype))
    one = slice(expert, expert + 1)
    scales, factors = weight.scales[one], weight.factors[one]
    if isinstance(weight, NativeMatrix):
        native = replace(weight, codes=weight.codes[one], scales=scales, factors=factors)
        return linear(round_rows_torch(x), dense_native(native, x.dtype)[0])
    packed = replace(weight, words=weight.words[one], scales=scales, factors=factors)
    return linear(x, dense(packed, x.dtype)[0])


def _values(weight: Tensor | PackedMatrix | NativeMatrix) -> Tensor:
    return weight.codes if isinstance(weight, NativeMatrix) else operand(weight).values


@dataclass(frozen=True, slots=True)
class _Settings:
    """`resident` is how many programs a multiprocessor holds at a time."""

    num_warps: int
    num_stages: int
    resident: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """Tiles of assignments: the expert of each (int32 [tiles]) and its rows (int32 [tiles, M]).

    A row is an assignment, ``token * k + place``, or -1. `count` int32 [1] tiles are in use.
    """

    tiles: Tensor
    rows: Tensor
    count: Tensor
    block_m: int


def _settings(x: Tensor, packed: bool, block_m: int) -> _Settings:
    if architecture(x.device) // 10 == 10:
        # Eight warps: with four, Triton 3.6 and 3.7 fail over the shared layout of decoded weights.
        return _Settings(8, 4, 4 if block_m < 64 else 2)
    if block_m <= 32 and packed:
        # Two warps: 3.9 instructions a weight where four take 4.6 (sm_90, Triton 3.7.1). Programs
        # take 160 and 224 registers a thread.
        return _Settings(2, 4, {16: 6, 32: 4}[block_m])
    if block_m <= 64 and (architecture(x.device) // 10 == 9 or not packed):
        return _Settings(4, 4, {16: 5, 32: 4, 64: 2}[block_m])
    # Eight warps: 6.3 instructions a weight for 64 rows where four take 8.3 (sm_120, Triton 3.7.1),
    # and 7.8 for 128 rows on sm_90, where four spill under Triton 3.6.0.
    return _Settings(8, 3, 1)


def _plan(experts: Tensor, num_experts: int) -> _Plan:
    """Tiles with room for half as many rows again as an expert gets on average, up to 64.

    A canvas then has one tile an expert, and no weight is decoded twice. From 64 rows on it is the
    tensor core that limits and a larger tile wastes more of it, until rows are many.
    """
    from hybrid.kernels.device.experts import plan_rows

    assignments = experts.numel()
    mean = assignments / num_experts
    block_m = next((size for size, most in ((16, 10), (32, 20), (64, 96)) if mean <= most), 128)
    most = -(-assignments // block_m) + min(num_experts, assignments)
    tiles, rows, count = (
        torch.empty(size, dtype=torch.int32, device=experts.device)
        for size in (most, most * block_m, 1)
    )
    launch(
        plan_rows,
        (num_experts,),
        experts,
        tiles,
        rows,
        count,
        assignments=assignments,
        EXPERTS=num_experts,
        BINS=_power_of_two(num_experts + 1),
        BLOCK_M=block_m,
        CHUNK=min(1024, max(128, _power_of_two(assignments))),
    )
    return _Plan(tiles, rows, count, block_m)


def _grouped(
    x: Tensor,
    weight: Tensor | PackedMatrix | NativeMatrix,
    plan: _Plan,
    shares: Tensor | None,
    chosen: torch.Size,
) -> Tensor:
    """The gated product [T * k, N / 2] if there are no shares, else the weighted one [T * k, N]."""
    if isinstance(weight, NativeMatrix):
        tiles = plan.tiles, plan.rows, plan.count
        return grouped_native(x, weight, tiles, shares, chosen, plan.block_m)
    from hybrid.kernels.device.experts import grouped_product

    parts = operand(weight)
    settings = _settings(x, parts.packed, plan.block_m)
    width = parts.rows if shares is not None else parts.rows // 2
    output = torch.empty(chosen.numel(), width, dtype=x.dtype, device=x.device)
    units = len(plan.tiles) * -(-parts.rows // TILE_ROWS)
    programs = min(units, multiprocessors(x.device) * settings.resident)
    launch(
        grouped_product,
        (programs,),
        x,
        parts.values,
        parts.scales,
        parts.factors,
        parts.factors if shares is None else shares,
        plan.tiles,
        plan.rows,
        plan.count,
        output,
        turns=-(-parts.columns // TILE_COLUMNS),
        N=parts.rows,
        K=parts.columns,
        TOP_K=chosen[1],
        GATED=shares is None,
        BLOCK_M=plan.block_m,
        PACKED=parts.packed,
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
    )
    return output


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
