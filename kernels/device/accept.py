"""Entropy-bound acceptance on a GPU: ranks by comparison, a row a program, without sorting."""

import triton
import triton.language as tl


@triton.jit
def accept_row(
    entropy, best, sample, random_ids, previous_best, fixed_ids, bound, next_ids, kept, best_out,
    entropy_out, mean_entropy, is_same, C: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_J: tl.constexpr,
):  # fmt: skip
    """The entropies before each place are summed in the places' order, `BLOCK_J` at a time."""
    row, offs_c = tl.program_id(0), tl.arange(0, BLOCK_C)
    start, inside = row * C, offs_c < C
    fixed = tl.load(fixed_ids + start + offs_c, mask=inside, other=0)
    is_free = fixed < 0
    raw = tl.load(entropy + start + offs_c, mask=inside, other=0.0)
    own = tl.where(is_free, raw, 0.0)
    before = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, C, BLOCK_J):
        offs_j = first + tl.arange(0, BLOCK_J)
        is_place = offs_j < C
        others_fixed = tl.load(fixed_ids + start + offs_j, mask=is_place, other=0)
        others = tl.load(entropy + start + offs_j, mask=is_place, other=0.0)
        others = tl.where(others_fixed < 0, others, 0.0)[None, :]
        is_surer = others < own[:, None]
        is_surer |= (others == own[:, None]) & (offs_j[None, :] < offs_c[:, None])
        before += tl.sum(tl.where(is_surer & is_place[None, :], others, 0.0), 1)
    keeps = before <= tl.load(bound + row)
    likeliest = tl.load(best + start + offs_c, mask=inside, other=0)
    likeliest = tl.where(is_free, likeliest, fixed)
    drawn = tl.load(sample + start + offs_c, mask=inside, other=0)
    fresh = tl.load(random_ids + start + offs_c, mask=inside, other=0)
    following = tl.where(is_free, tl.where(keeps, drawn, fresh), fixed)
    old = tl.load(previous_best + start + offs_c, mask=inside, other=0)
    places = start + offs_c
    tl.store(next_ids + places, following, mask=inside)
    tl.store(kept + places, keeps, mask=inside)
    tl.store(best_out + places, likeliest, mask=inside)
    tl.store(entropy_out + places, own, mask=inside)
    count = tl.sum((is_free & inside).to(tl.int32), 0)
    tl.store(mean_entropy + row, tl.sum(own, 0) / tl.maximum(count, 1).to(tl.float32))
    differs = tl.sum((inside & (likeliest != old)).to(tl.int32), 0)
    tl.store(is_same + row, differs == 0)
