"""Grouped-query attention without scaling: ``softmax(q . k + mask) . v``.

Gemma 4 normalises queries and keys, so scores carry no 1/sqrt(D). The query heads of one key head
are laid beside the queries, which turns grouped attention into plain attention.

`cached_attention` reads keys where the cache holds them: position p of a row in slot ``p % slots``,
so a ring of the last positions needs no unrolling. What a query sees is a range of positions.

On a GPU the queries of one key head and a share of its positions make one program. With few queries
there are several shares, whose sums are merged by a second kernel; how many depends on nothing but
shapes, so that what a row gets does not depend on how long its neighbours are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hybrid.kernels.launch import architecture, launch, multiprocessors, uses_triton

_FEW_KEYS = 128  # few enough for scores to be laid out


def attention_torch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention output [R, T, num_heads * D] of ``query`` [R, T, num_heads, D].

    ``key`` and ``value`` are [R, S, num_key_value_heads, D]; query heads are ordered by key head.
    ``mask`` is additive, [R or 1, 1, T * group, S] with the group innermost; None sees everything.
    """
    rows, tokens, num_heads, head_dim = query.shape
    num_key_value_heads = key.shape[2]
    in_order = tokens == 1 or num_key_value_heads == 1  # tokens and key heads need no exchange
    if not in_order:
        query = query.view(rows, tokens, num_key_value_heads, -1, head_dim).transpose(1, 2)
    queries = query.reshape(rows, num_key_value_heads, -1, head_dim)
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    if tokens > 1 and key.shape[2] <= _FEW_KEYS:
        # 29 us where the fused operation takes 38 us (32 tokens, 62 keys, 4 heads, one CPU core).
        scores = queries @ key.transpose(2, 3)
        output = (scores if mask is None else scores.add_(mask)).softmax(-1) @ value
    else:
        output = scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=1.0)
    if not in_order:
        output = output.view(rows, num_key_value_heads, tokens, -1).transpose(1, 2)
    return output.reshape(rows, tokens, num_heads * head_dim)


def cached_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    starts: Tensor,
    lengths: Tensor,
    window: int,
    causal: bool,
    most_context: int,
) -> Tensor:
    """Attention output [R, T, Hq * D] of ``query`` [R, T, Hq, D] over what its rows have read.

    ``keys`` and ``values`` are caches [S, slots + 1, Hkv, D]; query row r belongs to cache row
    ``rows[r]`` (int32 [R]), which held ``starts[r]`` tokens before this pass and now holds the
    ``lengths[r]`` of the pass too, position p in slot ``p % slots``. The last slot is never read.

    A causal query at position q sees the `window` positions up to q; a query of a canvas sees all
    positions of the pass and the `window` - 1 before it. A `window` of 0 hides nothing. Output of
    queries at or beyond ``lengths[r]`` is finite and means nothing. `most_context` is at least the
    largest ``starts[r] + lengths[r]``.
    """
    if not uses_triton(query):
        return cached_attention_torch(
            query, keys, values, rows, starts, lengths, window, causal, most_context
        )
    from hybrid.kernels.device.attention import attend, merge

    num_rows, tokens, num_heads, head_dim = query.shape
    num_key_heads = keys.shape[2]
    block_g = _power_of_two(num_heads // num_key_heads)
    pairs, per_pair = num_rows * num_key_heads, tokens * block_g
    device = query.device
    tile = _tile(architecture(device), head_dim, per_pair)
    tiles, pieces = -(-per_pair // tile.block_m), tile.block_d // tile.block_v
    reach = min(most_context, window + tokens - 1) if window else most_context
    blocks = -(-reach // tile.block_n)
    splits = _splits(pairs * tiles * pieces, blocks, multiprocessors(device))
    shape = {
        "HEADS": num_heads,
        "KEY_HEADS": num_key_heads,
        "D": head_dim,
        "BLOCK_G": block_g,
    }
    output = torch.empty(num_rows, tokens, num_heads * head_dim, dtype=query.dtype, device=device)
    parts, largests, totals = output, output, output  # a single share needs no others
    if splits > 1:
        sums = (pairs, splits, tiles * tile.block_m)
        parts = torch.empty(*sums, tile.block_d, dtype=torch.float32, device=device)
        largests = torch.empty(sums, dtype=torch.float32, device=device)
        totals = torch.empty(sums, dtype=torch.float32, device=device)
    launch(
        attend,
        (tiles * pieces, splits, pairs),
        query,
        keys,
        values,
        rows,
        starts,
        lengths,
        parts,
        largests,
        totals,
        **shape,
        TOKENS=tokens,
        SLOTS=keys.shape[1] - 1,
        WINDOW=window,
        CAUSAL=causal,
        IS_SHARED=splits > 1,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=tile.block_d,
        BLOCK_V=tile.block_v,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    if splits > 1:
        block_s = _power_of_two(splits)
        block_d = min(tile.block_d, max(64, _MERGED // block_s))
        block_m = min(tile.block_m, max(1, _MERGED // (block_s * block_d)))
        launch(
            merge,
            (tiles * tile.block_m // block_m, tile.block_d // block_d, pairs),
            parts,
            largests,
            totals,
            output,
            tokens=tokens,
            splits=splits,
            queries=tiles * tile.block_m,
            **shape,
            WIDTH=tile.block_d,
            BLOCK_S=block_s,
            BLOCK_M=block_m,
            BLOCK_D=block_d,
        )
    return output


def cached_attention_torch(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    starts: Tensor,
    lengths: Tensor,
    window: int,
    causal: bool,
    most_context: int,
) -> Tensor:
    """As `cached_attention`; in float32, or float64 if the query is, rounded once at the end."""
    tokens, num_heads = query.shape[1:3]
    slots = keys.shape[1] - 1
    seen = min(slots, most_context)
    first, last = starts.long()[:, None], (starts + lengths).long()[:, None] - 1
    held = last - (last - torch.arange(seen, device=keys.device)) % slots  # below 0: none yet
    newest, oldest = last, first - window + 1
    if causal:
        newest = (first + torch.arange(tokens, device=keys.device)).minimum(last)
        oldest = newest - window + 1
    if not window:
        oldest = torch.zeros_like(oldest)
    position = held[:, None]
    visible = (position >= 0) & (position <= newest[..., None]) & (position >= oldest[..., None])
    dtype = torch.promote_types(query.dtype, torch.float32)
    # Finite instead of minus infinity, and values cleared: a row that sees nothing answers zero.
    mask = torch.zeros(visible.shape, device=keys.device, dtype=dtype)
    mask.masked_fill_(~visible, torch.finfo(dtype).min)
    unread = ~visible.any(1)[..., None, None]
    key, value = (
        cache[rows.long(), :seen].to(dtype).masked_fill(unread, 0.0) for cache in (keys, values)
    )
    mask = mask.repeat_interleave(num_heads // keys.shape[2] if causal else 1, 1)[:, None]
    return attention_torch(query.to(dtype), key, value, mask).to(query.dtype)


_MERGED = 4096  # elements that a merging program holds: 32 registers a thread
_MOST_SPLITS = 64


@dataclass(frozen=True, slots=True)
class _Tile:
    """What one program works on: `block_m` queries, `block_n` keys at a time, of `block_d` columns.

    `block_v` is how many columns of the output a program gives.
    """

    block_m: int
    block_n: int
    block_d: int
    block_v: int
    num_warps: int
    num_stages: int


def _tile(architecture: int, head_dim: int, queries: int) -> _Tile:
    """The largest tile without spilled registers, by ptxas under Triton 3.6.0 and 3.7.1."""
    block_d = max(16, _power_of_two(head_dim))
    block_m = max(16, _power_of_two(queries))
    has_large_memory = architecture in (90, 100, 103)
    if block_d > 512:
        raise ValueError(f"attention has no tile for heads of {head_dim} columns, at most 512")
    if block_m <= 32:  # decoding is bound by memory: several programs side by side
        return _Tile(block_m, 16 if block_d == 512 else 32, block_d, block_d, 4, 3)
    if block_d == 512 and has_large_memory:
        # The accumulator of 512 columns fits in registers for 64 queries only, and scores then come
        # 16 keys at a time, which keeps Hopper's matrix unit waiting for shared memory: 28 % of its
        # peak by counting cycles. Two programs for the two halves of the columns compute the scores
        # twice and still come to 39 %. Neither has been timed.
        return _Tile(min(block_m, 128), 32, 512, 256, 8, 2)
    if block_d == 512:
        return _Tile(32, 16, 512, 512, 4, 2)
    if has_large_memory:
        return _Tile(min(block_m, 128), 64, block_d, block_d, 8 if block_m > 64 else 4, 2)
    return _Tile(64, 32, block_d, block_d, 8, 2)


def _splits(programs: int, blocks: int, multiprocessors: int) -> int:
    """Into how many shares to split at most `blocks` blocks of keys.

    The fewest that come near the least time, because the sums of every share take memory.
    """
    choices = range(1, max(1, min(blocks, _MOST_SPLITS)) + 1)

    def cost(splits: int) -> int:
        """Time in blocks: by estimate two to start a program, and five to write and merge sums."""
        waves = -(-programs * splits // multiprocessors)
        return waves * (-(-blocks // splits) + (7 if splits > 1 else 2))

    enough = 1.1 * min(map(cost, choices))
    return next(splits for splits in choices if cost(splits) <= enough)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
