"""Expected embeddings: probabilities of rounded logits, fixed tokens, tiles without weight."""

import pytest
import torch
from torch import Tensor

from hybrid.kernels.head import VOCABULARY_TILE, head_sample_torch
from hybrid.kernels.soft_embed import soft_embed, soft_embed_torch

VOCABULARY = 2 * VOCABULARY_TILE + 5
FREE = torch.full((3,), -1, dtype=torch.int32)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_expectation(dtype: torch.dtype) -> None:
    logits, embedding = drawn(3, VOCABULARY) * 3, drawn(VOCABULARY, 7, seed=1)
    arguments = (logits.to(dtype), logits.logsumexp(-1).float(), embedding.to(dtype), FREE)
    actual = soft_embed_torch(*arguments, 2.0, None, 0.0)
    assert actual.dtype == dtype
    expected = 2 * logits.softmax(-1) @ embedding
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_rounded_logits_are_normalised_by_their_own_sum() -> None:
    logits = (drawn(3, VOCABULARY) * 9).bfloat16()
    embedding = torch.ones(VOCABULARY, 4, dtype=torch.bfloat16)
    wrong = logits.float().logsumexp(-1) + 0.1
    actual = soft_embed_torch(logits, wrong, embedding, FREE, 1.0, None, 0.0)
    torch.testing.assert_close(actual.float(), torch.ones(3, 4), rtol=2**-7, atol=0)


def test_a_fixed_row_is_its_token_whatever_the_logits() -> None:
    logits, embedding = drawn(3, VOCABULARY), drawn(VOCABULARY, 7, seed=1)
    fixed = torch.tensor([-1, 0, VOCABULARY - 1], dtype=torch.int32)
    actual = soft_embed_torch(logits, logits.logsumexp(-1), embedding, fixed, 3.0, None, 0.0)
    torch.testing.assert_close(actual[1:], 3 * embedding[[0, -1]])
    free = soft_embed_torch(logits, logits.logsumexp(-1), embedding, FREE, 3.0, None, 0.0)
    assert torch.equal(actual[0], free[0])


def test_a_tile_without_weight_counts_as_zero_for_its_row_alone() -> None:
    hidden, embedding = torch.eye(3, dtype=torch.float64), drawn(VOCABULARY, 3)
    embedding[:VOCABULARY_TILE, 0] -= 20
    embedding[-5:, 1] -= 20
    keys = torch.zeros(3, dtype=torch.int32)
    sampled = head_sample_torch(hidden, embedding, None, torch.ones(3), keys, None)
    arguments = (sampled.logits, sampled.log_sum_exp, embedding, FREE, 1.0, sampled.tile_largest)
    logits = sampled.logits.clone()
    logits[0, :VOCABULARY_TILE] = -torch.inf
    logits[1, -5:] = -torch.inf
    torch.testing.assert_close(
        soft_embed_torch(*arguments, 1e-5), logits.softmax(-1) @ embedding, rtol=1e-6, atol=1e-6
    )
    full = sampled.logits.softmax(-1) @ embedding
    torch.testing.assert_close(soft_embed_torch(*arguments, 0.0), full, rtol=1e-6, atol=1e-6)


def test_a_row_that_is_sure_of_nothing_keeps_all_tiles() -> None:
    logits, embedding = torch.zeros(3, VOCABULARY).double(), drawn(VOCABULARY, 7)
    tiles = torch.zeros(3, -(-VOCABULARY // VOCABULARY_TILE))
    arguments = (logits, logits.logsumexp(-1), embedding, FREE, 1.0, tiles)
    expected = embedding.mean(0).expand(3, -1)
    torch.testing.assert_close(soft_embed_torch(*arguments, 0.5 / VOCABULARY), expected)
    for operation in (soft_embed, soft_embed_torch):
        with pytest.raises(ValueError, match="may leave a row without any tile"):
            operation(*arguments, 1 / VOCABULARY)


def check_kernel(tokens: int, vocabulary: int, hidden_size: int, device: str) -> None:
    """Against float64 sums of the same rounded logits."""
    hidden = drawn(tokens, 24).bfloat16() * 3
    table = drawn(vocabulary, 24, seed=1).bfloat16()
    keys = torch.zeros(tokens, dtype=torch.int32)
    sampled = head_sample_torch(hidden, table, 30.0, torch.full((tokens,), 0.6), keys, None)
    embedding = drawn(vocabulary, hidden_size, seed=2).bfloat16().to(device)
    fixed = torch.full((tokens,), -1, dtype=torch.int32)
    fixed[1::3] = torch.arange(len(fixed[1::3]), dtype=torch.int32) % vocabulary
    logits, normaliser = sampled.logits.to(device), sampled.log_sum_exp.to(device)
    tiles, fixed = sampled.tile_largest.to(device), fixed.to(device)
    for largest, skip_below in ((None, 0.0), (tiles, 0.0), (tiles, 0.5 / vocabulary)):
        arguments = fixed, 5.0, largest, skip_below
        actual = soft_embed(logits, normaliser, embedding, *arguments)
        exact = soft_embed_torch(logits.double(), normaliser, embedding.double(), *arguments)
        error = (actual.double() - exact).abs()
        # Probabilities are rounded to bf16 before the product, and the result once more.
        assert (error <= exact.abs() * 2**-7 + exact.abs().amax() * 2**-9).all()
        assert error.square().mean().sqrt() <= 3e-3 * exact.square().mean().sqrt()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("tokens", "vocabulary", "hidden_size"), [(1, 61, 32), (18, 700, 48), (66, 256, 272)]
)
def test_the_kernels(tokens: int, vocabulary: int, hidden_size: int) -> None:
    check_kernel(tokens, vocabulary, hidden_size, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [16, 256])
def test_the_kernels_at_real_size(tokens: int) -> None:
    check_kernel(tokens, 262_144, 2816, "cuda")
