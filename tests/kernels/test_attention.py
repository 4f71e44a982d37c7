"""Attention: its definition head by head, without scaling."""

import pytest
import torch

from hybrid.kernels.attention import attention_torch


@pytest.mark.parametrize("heads", [(1, 1), (4, 1), (4, 2), (6, 3), (5, 5)])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("keys", [11, 200])
@pytest.mark.parametrize("masked", [False, True])
def test_the_definition(heads: tuple[int, int], tokens: int, keys: int, masked: bool) -> None:
    num_heads, num_key_value_heads = heads
    rows, head_dim, group = 2, 8, num_heads // num_key_value_heads
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(rows, tokens, num_heads, head_dim, generator=generator)
    key = torch.randn(rows, keys, num_key_value_heads, head_dim, generator=generator)
    value = torch.randn(rows, keys, num_key_value_heads, head_dim, generator=generator)
    hidden = torch.rand(rows, tokens, keys, generator=generator) < 0.4
    hidden[..., 0] = False
    bias = torch.zeros(hidden.shape).masked_fill(hidden & torch.tensor(masked), -1e30)
    mask = bias.repeat_interleave(group, 1)[:, None] if masked else None
    output = attention_torch(query, key, value, mask)
    assert output.shape == (rows, tokens, num_heads * head_dim)
    for head in range(num_heads):
        shared = head // group
        scores = query[:, :, head] @ key[:, :, shared].transpose(1, 2) + bias
        expected = scores.softmax(-1) @ value[:, :, shared]
        actual = output[..., head * head_dim : (head + 1) * head_dim]
        torch.testing.assert_close(actual, expected)


def test_one_mask_for_all_rows_and_tokens() -> None:
    query, key = torch.randn(2, 3, 4, 8), torch.randn(2, 5, 2, 8)
    mask = torch.tensor([0.0, 0.0, -1e30, 0.0, -1e30])[None, None, None]
    seen = key[:, [0, 1, 3]]
    torch.testing.assert_close(
        attention_torch(query, key, key, mask), attention_torch(query, seen, seen, None)
    )
