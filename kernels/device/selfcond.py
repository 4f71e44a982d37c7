"""A canvas embedding and its self-conditioning signal, summed and normalised on a GPU."""

import triton
import triton.language as tl


@triton.jit
def condition_rows(
    token_ids,
    signal,
    embedding,
    output,
    SCALE: tl.constexpr,
    EPS: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One token a program: its row of `output` [T, H]."""
    token = tl.program_id(0)
    offs_h = tl.arange(0, BLOCK_H)
    inside = offs_h < H
    start = token.to(tl.int64) * H
    token_id = tl.load(token_ids + token).to(tl.int64)
    embedded = tl.load(embedding + token_id * H + offs_h, mask=inside, other=0.0).to(tl.float32)
    summed = tl.load(signal + start + offs_h, mask=inside, other=0.0).to(tl.float32)
    summed += embedded * SCALE
    inverse = tl.rsqrt(tl.sum(summed * summed, 0) / H + EPS)
    tl.store(output + start + offs_h, (summed * inverse).to(output.dtype.element_ty), mask=inside)
