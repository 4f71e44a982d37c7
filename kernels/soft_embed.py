"""The expected embedding: ``scale * sum_v p_v embedding_v``, the signal for self-conditioning.

Probabilities are those of the logits as rounded, normalised by their own sum: the published models
take their softmax of rounded logits too, and a bf16 logit of 30 is off by up to 6 %.

Most of a vocabulary has no weight worth reading. A tile of `VOCABULARY_TILE` ids none of which has
a probability of `skip_below` counts as zero, for each row by its own probabilities.
"""

import torch
from torch import Tensor

from hybrid.kernels.head import VOCABULARY_TILE


def soft_embed(
    logits: Tensor,
    log_sum_exp: Tensor,
    embedding: Tensor,
    fixed_ids: Tensor,
    scale: float,
    tile_largest: Tensor | None,
    skip_below: float,
) -> Tensor:
    """Expected embeddings [T, H] under ``logits`` [T, V], in their dtype; a row of a token is its.

    ``log_sum_exp`` float32 [T] and ``tile_largest`` float32 [T, V / VOCABULARY_TILE] come from
    `head_sample`; without `tile_largest` nothing is skipped. ``embedding`` [V, H]; ``fixed_ids``
    int32 [T] is a token where the row is certain of it and -1 elsewhere.
    """
    return soft_embed_torch(
        logits, log_sum_exp, embedding, fixed_ids, scale, tile_largest, skip_below
    )


def soft_embed_torch(
    logits: Tensor,
    log_sum_exp: Tensor,
    embedding: Tensor,
    fixed_ids: Tensor,
    scale: float,
    tile_largest: Tensor | None,
    skip_below: float,
) -> Tensor:
    """As `soft_embed`; sums in float32, or float64 if the logits are, rounded once at the end."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    p = (logits.to(dtype) - log_sum_exp[:, None]).exp_()
    if tile_largest is not None:
        is_zero = (tile_largest - log_sum_exp[:, None]).exp() < skip_below
        p.masked_fill_(is_zero.repeat_interleave(VOCABULARY_TILE, 1)[:, : p.shape[1]], 0.0)
    total = p.sum(-1, keepdim=True)
    table = embedding.to(dtype)
    expected = p.to(logits.dtype).to(dtype) @ table / total
    fixed = table[fixed_ids.clamp(min=0).long()]
    return (torch.where(fixed_ids[:, None] < 0, expected, fixed) * scale).to(logits.dtype)
