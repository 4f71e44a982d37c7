"""The expected embedding: ``scale * sum_v p_v embedding_v``, the signal for self-conditioning.

Probabilities are those of the logits as rounded, normalised by their own sum: the published models
take their softmax of rounded logits too, and a bf16 logit of 30 is off by up to 6 %.

Most of a vocabulary has no weight worth reading. A tile of `VOCABULARY_TILE` ids none of which has
a probability of `skip_below` counts as zero, for each row by its own probabilities. A program that
has such a tile for all its rows does not read it.

On a GPU the vocabulary is shared among programs, whose sums are added in their order: 256 places
make 22 tiles of the output, and there are 132 multiprocessors to keep busy.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.kernels.head import VOCABULARY_TILE
from hybrid.kernels.launch import architecture, launch, multiprocessors, uses_triton

_MOST_SPLITS = 8


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
    int32 [T] is a token where the row is certain of it and -1 elsewhere. ValueError for a
    `skip_below` above half of 1 / V: a row that is sure of nothing would keep no tile.
    """
    _check_skipping(skip_below, logits.shape[1])
    if not uses_triton(logits):
        return soft_embed_torch(
            logits, log_sum_exp, embedding, fixed_ids, scale, tile_largest, skip_below
        )
    from hybrid.kernels.device.soft_embed import expect, merge_shares

    (tokens, vocabulary), hidden_size = logits.shape, embedding.shape[1]
    tile = _tile(architecture(logits.device), tokens, tile_largest is not None and skip_below > 0)
    blocks = -(-tokens // tile.block_m) * -(-hidden_size // tile.block_h)
    splits = _splits(blocks, -(-vocabulary // VOCABULARY_TILE), multiprocessors(logits.device))
    parts = torch.empty(splits, tokens, hidden_size, device=logits.device)
    totals = torch.empty(splits, tokens, device=logits.device)
    output = torch.empty(tokens, hidden_size, device=logits.device, dtype=logits.dtype)
    launch(
        expect,
        (blocks * splits,),
        logits,
        log_sum_exp,
        embedding,
        log_sum_exp if tile_largest is None else tile_largest,
        parts,
        totals,
        tokens=tokens,
        V=vocabulary,
        H=hidden_size,
        SPLITS=splits,
        TILE=VOCABULARY_TILE,
        SKIP_BELOW=0.0 if tile_largest is None else skip_below,
        IS_FULL=tokens % tile.block_m == 0,
        BLOCK_M=tile.block_m,
        BLOCK_H=tile.block_h,
        BLOCK_V=tile.block_v,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    launch(
        merge_shares,
        (tokens,),
        parts,
        totals,
        embedding,
        fixed_ids,
        output,
        tokens=tokens,
        H=hidden_size,
        SPLITS=splits,
        SCALE=scale,
        BLOCK_H=1 << (hidden_size - 1).bit_length(),
        num_warps=8,
    )
    return output


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
    _check_skipping(skip_below, logits.shape[1])
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


def _check_skipping(skip_below: float, vocabulary: int) -> None:
    """A row's largest probability is at least 1 / V, which the factor two keeps apart from."""
    if not 0 <= skip_below <= 0.5 / vocabulary:
        allowed = f"0 to {0.5 / vocabulary:g}, half of 1 / {vocabulary}"
        raise ValueError(f"skip_below {skip_below:g} may leave a row without any tile: {allowed}")


@dataclass(frozen=True, slots=True)
class _Tile:
    """`block_m` places by `block_h` columns of the output, `block_v` ids a turn of the loop."""

    block_m: int
    block_h: int
    block_v: int
    num_warps: int
    num_stages: int


def _tile(architecture: int, tokens: int, skips: bool) -> _Tile:
    """The largest tile without spilled registers, by ptxas under Triton 3.6.0 and 3.7.1.

    On Hopper these ptxas overwrite the probabilities of a product in flight, unless a turn has as
    few ids as one product or looks at a tile's largest logits first: see gate/hazards.py. Sixteen
    ids take 15 % more instructions than 64.
    """
    block_m = 16 if tokens <= 16 else 64 if tokens <= 64 else 128
    if architecture in (90, 100, 103):
        block_h, num_warps = (256, 8) if block_m == 128 else (128, 4)
        if architecture == 90 and block_m > 16 and not skips:
            return _Tile(block_m, block_h, 16, num_warps, 4)
        return _Tile(block_m, block_h, 64, num_warps, 3)
    return _Tile(min(block_m, 64), 128, 32, 4, 3)


def _splits(blocks: int, tiles: int, multiprocessors: int) -> int:
    """Shares of the vocabulary, none of them empty, so that every multiprocessor has a program."""
    wanted = max(1, min(_MOST_SPLITS, multiprocessors // blocks, tiles))
    share = -(-tiles // wanted)
    return -(-tiles // share)
