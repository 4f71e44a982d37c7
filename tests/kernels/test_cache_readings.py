"""Attention over caches against the CPU stack's own way of reading them: spans and masks."""

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.gemma.config import GemmaConfig, LayerConfig
from hybrid.gemma.model.cache import AttentionMetadata, Cache
from hybrid.kernels.attention import attention_torch, cached_attention_torch

WINDOW, CANVAS, CAPACITY, SPARE, ROWS, HEADS = 5, 4, 40, 6, 3, 4
CONFIG = GemmaConfig(
    architecture="diffusion_gemma",
    tensor_prefix="",
    hidden_size=16,
    layers=(
        LayerConfig("sliding", 8, 2, True, 1e4, 1.0),
        LayerConfig("full", 16, 1, True, 1e6, 0.25),
    ),
    num_attention_heads=HEADS,
    intermediate_size=16,
    num_experts=0,
    top_k_experts=0,
    moe_intermediate_size=0,
    vocab_size=8,
    sliding_window=WINDOW,
    max_position_embeddings=CAPACITY,
    rms_norm_eps=1e-6,
    final_logit_softcapping=None,
    canvas_length=CANVAS,
    end_token_ids=frozenset(),
    pad_token_id=0,
)


@dataclass(frozen=True)
class Step:
    """One pass of some rows, or, if `keep` is given, cutting them to that share of their tokens."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    causal: bool
    keep: float | None


@st.composite
def steps(draw: st.DrawFn) -> Step:
    rows = draw(st.permutations(range(ROWS)))[: draw(st.integers(1, ROWS))]
    causal = draw(st.booleans())
    least, most = (0, 9) if causal else (1, CANVAS)
    length = draw(st.integers(1, most))
    ragged = draw(st.booleans())
    lengths = [draw(st.integers(least, length)) if ragged else length for _ in rows]
    keep = draw(st.none() | st.floats(0, 1))
    return Step(tuple(rows), tuple(lengths), causal, keep)


@given(st.lists(steps(), min_size=1, max_size=12), st.integers(0, 2**32))
@settings(deadline=None, max_examples=150)
def test_both_ways_of_reading_agree(story: list[Step], seed: int) -> None:
    cache = Cache(CONFIG, ROWS, CAPACITY, SPARE, torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for step in story:
        if step.keep is not None:
            kept = [int(cache.count(row) * step.keep) for row in step.rows]
            allowed = zip(step.rows, kept, strict=True)
            if all(cache.can_rollback(row, count) for row, count in allowed):
                cache.rollback(step.rows, kept)
            continue
        tokens = max(1, *step.lengths)
        room = max(map(cache.count, step.rows)) + tokens <= CAPACITY
        if room or not step.causal:
            reading = cache.metadata(step.rows, step.lengths, tokens, step.causal)
            if not step.causal or tokens <= cache.max_pass_tokens(reading):
                check(cache, reading, generator)


def check(cache: Cache, reading: AttentionMetadata, generator: torch.Generator) -> None:
    """Write random keys and values as a layer does, and read them both ways."""
    spans = cache.spans(reading)
    places = (reading.rows, reading.starts, reading.lengths)
    rows, starts, lengths = (torch.tensor(numbers, dtype=torch.int32) for numbers in places)
    for layer, keys, values in zip(CONFIG.layers, cache.keys, cache.values, strict=True):
        span = spans[layer.kind, HEADS // layer.num_key_value_heads]
        shape = (len(reading.rows), reading.tokens, layer.num_key_value_heads, layer.head_dim)
        span.write(keys, torch.randn(shape, generator=generator, dtype=torch.float64))
        span.write(values, torch.randn(shape, generator=generator, dtype=torch.float64))
        query = torch.randn(
            *shape[:2], HEADS, layer.head_dim, generator=generator, dtype=torch.float64
        )
        expected = attention_torch(query, span.read(keys), span.read(values), span.mask)
        actual = cached_attention_torch(
            query,
            poisoned_bin(keys),
            poisoned_bin(values),
            rows,
            starts,
            lengths,
            WINDOW if layer.kind == "sliding" else 0,
            reading.causal,
            int((starts + lengths).max()),
        )
        for row, length in enumerate(reading.lengths):
            torch.testing.assert_close(actual[row, :length], expected[row, :length])
    if reading.causal:
        cache.advance(reading)


def poisoned_bin(cache: Tensor) -> Tensor:
    """The cache with NaN where padding was written to."""
    copy = cache.clone()
    copy[:, -1] = torch.nan
    return copy
