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
    grouped = query.view(rows, tokens, num_key_value_heads, -1, head_dim).transpose(1, 2)
    grouped = grouped.reshape(rows, num_key_value_heads, -1, head_dim)
    output = scaled_dot_product_attention(
        grouped, key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask, scale=1.0
    )
    output = output.view(rows, num_key_value_heads, tokens, -1).transpose(1, 2)
    return output.reshape(rows, tokens, num_heads * head_dim)
