"""Entropy-bound acceptance: which positions of a canvas a denoising step keeps.

Positions are taken in order of entropy, equal ones by place, as long as the entropies *before* them
sum to at most the bound: the sum is exclusive, so the surest position is always kept, and so is the
one that crosses the bound. It bounds the dependence that parallel sampling ignores (arXiv
2505.24857).

`accept` is all that happens to a canvas between sampling and the next step. On a GPU one program
has one canvas and finds the sum before each place by comparing it with all others: 256 places are
65,536 comparisons, and no sort.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.kernels.launch import launch, uses_triton

FREE = -1  # in fixed ids: the drafter's to write


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a step makes of canvases.

    ``next_ids`` int32 [R, C] is what the next step reads; ``kept`` bool [R, C]; ``best`` int32 and
    ``entropy`` float32 [R, C] with fixed places imposed; ``mean_entropy`` float32 [R] of the free
    places, zero if there are none and NaN if a distribution among them is not finite; ``is_same``
    bool [R] where nothing in ``best`` has changed.
    """

    next_ids: Tensor
    kept: Tensor
    best: Tensor
    entropy: Tensor
    mean_entropy: Tensor
    is_same: Tensor


def accept(
    entropy: Tensor,
    best: Tensor,
    sample: Tensor,
    random_ids: Tensor,
    previous_best: Tensor,
    fixed_ids: Tensor,
    bound: Tensor,
) -> Acceptance:
    """Keep the sample where ``entropy`` [R, C] (nats) is within ``bound`` [R], else start over.

    ``best``, ``sample``, ``random_ids`` and ``previous_best`` are int32 [R, C]; `previous_best` is
    -1 before a canvas's first step. ``fixed_ids`` int32 [R, C] is a token where the place holds it
    for certain, at no entropy, and -1 elsewhere.
    """
    if not uses_triton(entropy):
        return accept_torch(entropy, best, sample, random_ids, previous_best, fixed_ids, bound)
    from hybrid.kernels.device.accept import accept_row

    rows, places = entropy.shape
    accepted = Acceptance(
        next_ids=torch.empty_like(sample),
        kept=torch.empty_like(sample, dtype=torch.bool),
        best=torch.empty_like(best),
        entropy=torch.empty_like(entropy),
        mean_entropy=torch.empty_like(bound),
        is_same=torch.empty_like(bound, dtype=torch.bool),
    )
    launch(
        accept_row,
        (rows,),
        entropy,
        best,
        sample,
        random_ids,
        previous_best,
        fixed_ids,
        bound,
        accepted.next_ids,
        accepted.kept,
        accepted.best,
        accepted.entropy,
        accepted.mean_entropy,
        accepted.is_same,
        C=places,
        BLOCK_C=1 << (places - 1).bit_length(),
        BLOCK_J=16,
        num_warps=8,
    )
    return accepted


def accept_torch(
    entropy: Tensor,
    best: Tensor,
    sample: Tensor,
    random_ids: Tensor,
    previous_best: Tensor,
    fixed_ids: Tensor,
    bound: Tensor,
) -> Acceptance:
    """As `accept`."""
    is_free = fixed_ids < 0
    entropy = torch.where(is_free, entropy, 0.0)
    best = torch.where(is_free, best, fixed_ids)
    kept = within_bound_torch(entropy, bound[:, None])
    next_ids = torch.where(is_free, torch.where(kept, sample, random_ids), fixed_ids)
    mean_entropy = entropy.sum(-1) / is_free.sum(-1).clamp_(min=1)
    return Acceptance(next_ids, kept, best, entropy, mean_entropy, (best == previous_best).all(-1))


def within_bound_torch(entropy: Tensor, bound: Tensor) -> Tensor:
    """The kept positions, bool [R, C], of ``entropy`` [R, C] (nats) under ``bound`` [R, 1]."""
    if torch.compiler.is_exporting():  # compilers make loops of comparisons, and only call a sort
        places = torch.arange(entropy.shape[-1])
        mine, other = entropy[..., :, None], entropy[..., None, :]
        is_before = (other < mine) | ((other == mine) & (places < places[:, None]))
        return torch.where(is_before, other, 0.0).sum(-1) <= bound
    ordered, order = entropy.sort(dim=-1, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, before <= bound)
