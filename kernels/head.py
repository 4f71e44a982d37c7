"""The output head: logits over the vocabulary, tied to the embedding and softly capped.

A denoising step does not need the logits themselves but, for each place, their arg-max, an exact
sample, the entropy, and what turns them into probabilities. `head_sample` gives those and keeps the
logits only as rounded for the expected embedding that follows.

The vocabulary is worked on in tiles of `VOCABULARY_TILE` ids. The largest logit of each tile comes
out too, since it tells which tiles matter.

The reference writes ``tanh(x)`` as ``2 sigmoid(2 x) - 1``, which is as good for logits (off by 7e-6
at most) and takes 19 us where torch's own tanh takes 81 us (32 x 919 float32, one CPU core).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from hybrid.kernels.arithmetic import constant
from hybrid.kernels.launch import architecture, launch, uses_triton
from hybrid.kernels.noise import gumbel_torch

VOCABULARY_TILE = 128
_LARGE = (90, 100, 103)  # architectures with 227 KB of shared memory
BANNED_LOGIT = -1e4  # as a logit: finite, so that an entropy of it is


@dataclass(frozen=True, slots=True)
class HeadSample:
    """What T distributions over V tokens came to.

    ``logits`` [T, V] are divided by the temperature and rounded to the activations' dtype; all else
    is of the unrounded ones: ``largest``, ``log_sum_exp`` and ``entropy`` (nats) float32 [T],
    ``best`` and ``sample`` int32 [T], ``tile_largest`` float32 [T, V / VOCABULARY_TILE]. Of
    logits with NaN or infinity ``entropy`` and ``log_sum_exp`` are NaN; ids are below V all the
    same.
    """

    logits: Tensor
    largest: Tensor
    log_sum_exp: Tensor
    entropy: Tensor
    best: Tensor
    sample: Tensor
    tile_largest: Tensor


def head(hidden: Tensor, embedding: Tensor, softcap: float | None) -> Tensor:
    """``cap * tanh(hidden . embedding^T / cap)`` in float32, [..., V]; None caps nothing.

    ``hidden`` [..., H] after the final norm; ``embedding`` [V, H] in its stored, unscaled form.
    """
    if not uses_triton(hidden):
        return head_torch(hidden, embedding, softcap)
    from hybrid.kernels.device.head import plain_tile

    logits = torch.empty(len(hidden), len(embedding), device=hidden.device)
    _launch(plain_tile, hidden, embedding, logits, SOFTCAP=softcap or 0.0)
    return logits


def head_torch(hidden: Tensor, embedding: Tensor, softcap: float | None) -> Tensor:
    """As `head`; in float32, or float64 if ``hidden`` is."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = linear(hidden.to(dtype), embedding.to(dtype))
    if softcap is None:
        return logits
    shrink, width = constant(2 / softcap, logits.device), constant(2 * softcap, logits.device)
    return logits.mul_(shrink).sigmoid_().mul_(width).sub_(constant(softcap, logits.device))


def head_scores(
    hidden: Tensor, embedding: Tensor, softcap: float | None, token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities, float32 [T], of ``token_ids`` (int32 [T]), and the best tokens, int32 [T].

    ``hidden`` [T, H] and ``embedding`` [V, H] as for `head`. Of equal logits the first is best.
    """
    if not uses_triton(hidden):
        return head_scores_torch(hidden, embedding, softcap, token_ids)
    from hybrid.kernels.device.head import merge_scores, score_tile

    tokens, tiles = len(hidden), -(-len(embedding) // VOCABULARY_TILE)
    largest, sums = (hidden.new_empty(tokens, tiles, dtype=torch.float32) for _ in range(2))
    best = hidden.new_empty(tokens, tiles, dtype=torch.int32)
    given, scores = (hidden.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    chosen = torch.empty_like(token_ids)
    _launch(
        score_tile,
        hidden,
        embedding,
        token_ids,
        largest,
        sums,
        best,
        given,
        SOFTCAP=softcap or 0.0,
    )
    _merge(merge_scores, largest, sums, best, given, scores, chosen, V=len(embedding))
    return scores, chosen


def head_scores_torch(
    hidden: Tensor, embedding: Tensor, softcap: float | None, token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """As `head_scores`; in float64 if ``hidden`` is."""
    logits = head_torch(hidden, embedding, softcap)
    scores = logits.gather(1, token_ids.long()[:, None])[:, 0] - logits.logsumexp(-1)
    return scores, logits.argmax(-1).int()


def head_sample(
    hidden: Tensor,
    embedding: Tensor,
    softcap: float | None,
    temperature: Tensor,
    keys: Tensor,
    banned_tokens: Tensor | None,
) -> HeadSample:
    """Distributions of ``hidden`` [T, H] at their ``temperature`` (float32 [T]), and a sample each.

    The sample is the arg-max of logits and `gumbel_torch` noise under ``keys`` (int32 [T]). Of
    equals the first is taken. ``banned_tokens`` int32 [T, J] are never best or sampled; -1 is none.
    """
    if not uses_triton(hidden):
        return head_sample_torch(hidden, embedding, softcap, temperature, keys, banned_tokens)
    from hybrid.kernels.device.head import merge_samples, sample_tile

    (tokens, _), vocabulary = hidden.shape, len(embedding)
    tiles = -(-vocabulary // VOCABULARY_TILE)
    tile_largest, sums, moments, noisy = (
        hidden.new_empty(tokens, tiles, dtype=torch.float32) for _ in range(4)
    )
    tile_best, drawn = (hidden.new_empty(tokens, tiles, dtype=torch.int32) for _ in range(2))
    sampled = HeadSample(
        logits=hidden.new_empty(tokens, vocabulary),
        largest=torch.empty_like(temperature),
        log_sum_exp=torch.empty_like(temperature),
        entropy=torch.empty_like(temperature),
        best=torch.empty_like(keys),
        sample=torch.empty_like(keys),
        tile_largest=tile_largest,
    )
    _launch(
        sample_tile,
        hidden,
        embedding,
        temperature,
        keys,
        keys if banned_tokens is None else banned_tokens,
        sampled.logits,
        tile_largest,
        sums,
        moments,
        tile_best,
        noisy,
        drawn,
        SOFTCAP=softcap or 0.0,
        BANNED_LOGIT=BANNED_LOGIT,
        J=0 if banned_tokens is None else banned_tokens.shape[1],
    )
    _merge(
        merge_samples,
        tile_largest,
        sums,
        moments,
        tile_best,
        noisy,
        drawn,
        sampled.largest,
        sampled.log_sum_exp,
        sampled.entropy,
        sampled.best,
        sampled.sample,
        V=vocabulary,
    )
    return sampled


def head_sample_torch(
    hidden: Tensor,
    embedding: Tensor,
    softcap: float | None,
    temperature: Tensor,
    keys: Tensor,
    banned_tokens: Tensor | None,
) -> HeadSample:
    """As `head_sample`; in float64 if ``hidden`` is."""
    logits = head_torch(hidden, embedding, softcap)
    vocabulary = logits.shape[1]
    if banned_tokens is not None:
        named = torch.where(banned_tokens < 0, vocabulary, banned_tokens).long()
        logits = pad(logits, (0, 1)).scatter_(1, named, BANNED_LOGIT)[:, :vocabulary]
    logits = logits / temperature[:, None]
    log_sum_exp = logits.logsumexp(-1)
    log_p = logits - log_sum_exp[:, None]
    tiles = -(-vocabulary // VOCABULARY_TILE)
    room = tiles * VOCABULARY_TILE - vocabulary
    tiled = pad(logits, (0, room), value=-torch.inf).view(-1, tiles, VOCABULARY_TILE)
    return HeadSample(
        logits=logits.to(hidden.dtype),
        largest=logits.amax(-1),
        log_sum_exp=log_sum_exp,
        entropy=-(log_p.exp() * log_p).sum(-1),
        best=logits.argmax(-1).int(),
        sample=(logits + gumbel_torch(keys, vocabulary)).argmax(-1).int(),
        tile_largest=tiled.amax(-1),
    )


def _launch(
    kernel: Any, hidden: Tensor, embedding: Tensor, *tensors: Tensor, **numbers: Any
) -> None:
    """A program a tile: neighbours share their tile of the vocabulary, so it is read once."""
    (tokens, hidden_size), vocabulary = hidden.shape, len(embedding)
    device = architecture(hidden.device)
    block_m, num_warps = _tile(device, tokens, samples="J" in numbers)
    launch(
        kernel,
        (-(-tokens // block_m) * -(-vocabulary // VOCABULARY_TILE),),
        hidden,
        embedding,
        *tensors,
        **numbers,
        tokens=tokens,
        V=vocabulary,
        H=hidden_size,
        IS_FULL=tokens % block_m == 0,
        BLOCK_M=block_m,
        BLOCK_V=VOCABULARY_TILE,
        BLOCK_H=64,
        num_warps=num_warps,
        num_stages=4 if device in _LARGE else 3,
    )


def _tile(architecture: int, tokens: int, samples: bool) -> tuple[int, int]:
    """Rows of a tile and warps, without spilled registers by ptxas under Triton 3.6.0 and 3.7.1.

    Sampling needs more registers after the product than the product itself: on Hopper twice the
    warps share them, and the B200, whose wide instructions end at 8 warps, takes half the rows.
    """
    if tokens <= 16:
        return 16, 4
    if tokens <= 64 or architecture not in _LARGE:
        return 64, 8 if samples and architecture in _LARGE else 4
    if samples:
        return (128, 16) if architecture == 90 else (64, 8)
    return 128, 8


def _merge(kernel: Any, first: Tensor, *tensors: Tensor, V: int) -> None:
    """One program a row, over what its tiles came to."""
    rows, tiles = first.shape
    block = 1 << (tiles - 1).bit_length()
    launch(kernel, (rows,), first, *tensors, V=V, TILES=tiles, BLOCK_TILES=block, num_warps=8)
