"""Grouped-query attention without scaling: ``softmax(q . k + mask) . v``.

Gemma 4 normalises queries and keys, so scores carry no 1/sqrt(D). The query heads of one key head
are laid beside the queries, which turns grouped attention into plain attention.
"""

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
