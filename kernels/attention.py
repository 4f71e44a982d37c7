"""Grouped-query attention without scaling: ``softmax(q . k + mask) . v``.

Gemma 4 normalises queries and keys, so scores carry no 1/sqrt(D). The query heads of one key head
are laid beside the queries, which turns grouped attention into plain attention.

`cached_attention` reads keys where the cache holds them: position p of a row in slot ``p % slots``,
so a ring of the last positions needs no unrolling. What a query sees is a range of positions.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


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
    output = scaled_dot_product_attention(
        query.reshape(rows, num_key_value_heads, -1, head_dim),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        scale=1.0,
    )
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
    return cached_attention_torch(
        query, keys, values, rows, starts, lengths, window, causal, most_context
    )


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
