"""Attention over caches: what each query sees, in float64, position by position."""

import pytest
import torch
from torch import Tensor

from hybrid.kernels.attention import cached_attention_torch

WINDOW = 6


def visible(query: int, start: int, length: int, window: int, causal: bool) -> range:
    """The positions that a query of the pass sees."""
    newest = start + query if causal else start + length - 1
    oldest = (newest if causal else start) - window + 1 if window else 0
    return range(max(0, oldest), newest + 1)


def exact(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: list[int],
    starts: list[int],
    lengths: list[int],
    window: int,
    causal: bool,
) -> list[Tensor]:
    """For each row the output [length, Hq * D] of its valid queries, head by head."""
    slots, group = keys.shape[1] - 1, query.shape[2] // keys.shape[2]
    outputs = []
    for r, (row, start, length) in enumerate(zip(rows, starts, lengths, strict=True)):
        output = torch.zeros(length, *query.shape[2:], dtype=torch.float64)
        for t in range(length):
            held = [p % slots for p in visible(t, start, length, window, causal)]
            for head in range(query.shape[2]):
                key, value = (c[row, held, head // group].double() for c in (keys, values))
                output[t, head] = (key @ query[r, t, head].double()).softmax(0) @ value
        outputs.append(output.flatten(1))
    return outputs


def ring(
    starts: list[int], lengths: list[int], slots: int, heads: int, head_dim: int, reach: int
) -> tuple[Tensor, Tensor]:
    """Caches of random numbers where something may be read, and NaN everywhere else."""
    generator = torch.Generator().manual_seed(sum(starts) + slots)
    caches = []
    for _ in range(2):
        cache = torch.full((len(starts) + 1, slots + 1, heads, head_dim), torch.nan)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            for position in range(max(0, start - reach + 1) if reach else 0, start + length):
                cache[row, position % slots] = torch.randn(heads, head_dim, generator=generator)
        caches.append(cache)
    return caches[0], caches[1]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, WINDOW])
@pytest.mark.parametrize("tokens", [1, 4])
def test_every_query_sees_its_positions(causal: bool, window: int, tokens: int) -> None:
    starts = [0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 9, 17, 3]
    lengths = [tokens] * 6 + [max(1, tokens - 2), 1]
    slots = WINDOW + 5 if window else 32
    keys, values = ring(starts, lengths, slots, heads=2, head_dim=8, reach=window)
    rows = torch.tensor(range(len(starts)), dtype=torch.int32).flip(0)
    order = rows.tolist()
    query = torch.randn(len(starts), tokens, 6, 8, generator=torch.Generator().manual_seed(1))
    actual = cached_attention_torch(
        query.double(),
        keys.double(),
        values.double(),
        rows,
        torch.tensor(starts, dtype=torch.int32)[order],
        torch.tensor(lengths, dtype=torch.int32)[order],
        window,
        causal,
        most_context=max(starts) + tokens,
    )
    assert actual.isfinite().all()
    passes = ([starts[r] for r in order], [lengths[r] for r in order])
    expected = exact(query, keys, values, order, *passes, window, causal)
    for r, output in enumerate(expected):
        torch.testing.assert_close(actual[r, : len(output)], output, rtol=1e-12, atol=1e-12)
