"""The head: capped logits in float32."""

import pytest
import torch
from torch import Tensor

from hybrid.kernels.head import (
    head,
    head_sample,
    head_sample_torch,
    head_scores,
    head_scores_torch,
    head_torch,
)
from hybrid.kernels.noise import draw_keys_torch, gumbel_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_capped_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(2, 3, 16, generator=generator) * 9).to(dtype)
    embedding = torch.randn(50, 16, generator=generator).to(dtype)
    raw = hidden.float() @ embedding.float().T
    logits = head_torch(hidden, embedding, 30.0)
    assert logits.dtype == torch.float32
    assert logits.abs().max() <= 30
    assert raw.abs().max() > 60
    torch.testing.assert_close(logits, (30 * (raw.double() / 30).tanh()).float())
    assert torch.equal(head_torch(hidden, embedding, None), raw)


def operands(
    tokens: int, vocabulary: int, hidden_size: int, loudness: float, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens + vocabulary)
    hidden = torch.randn(tokens, hidden_size, generator=generator) * loudness
    embedding = torch.randn(vocabulary, hidden_size, generator=generator) * hidden_size**-0.5
    return hidden.bfloat16().to(device), embedding.bfloat16().to(device)


def check_sample(
    tokens: int, vocabulary: int, hidden_size: int, loudness: float, device: str
) -> None:
    """Against float64: statistics closely, choices exactly but where the best two almost tie."""
    hidden, embedding = operands(tokens, vocabulary, hidden_size, loudness, device)
    generator = torch.Generator().manual_seed(7)
    temperature = (torch.rand(tokens, generator=generator) * 0.6 + 0.3).to(device)
    keys = torch.randint(-(2**31), 2**31, (tokens,), generator=generator).int().to(device)
    banned = torch.randint(-1, vocabulary, (tokens, 2), generator=generator).int().to(device)
    for some in (None, banned):
        actual = head_sample(hidden, embedding, 30.0, temperature, keys, some)
        exact = head_sample_torch(
            hidden.double(), embedding.double(), 30.0, temperature.double(), keys, some
        )
        for name in ("largest", "log_sum_exp", "entropy", "tile_largest"):
            one, other = getattr(actual, name).double(), getattr(exact, name)
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-4)
        error = (actual.logits.double() - exact.logits).abs()
        assert (error <= exact.logits.abs() * 2**-8 + 2e-4).all()
        at_best = exact.logits.gather(1, actual.best.long()[:, None])[:, 0]
        assert (exact.largest - at_best <= 2e-4).all()
        noisy = exact.logits + gumbel_torch(keys, vocabulary)
        drawn = noisy.gather(1, actual.sample.long()[:, None])[:, 0]
        assert (noisy.amax(-1) - drawn <= 1e-3).all()
        assert (actual.sample == exact.sample).float().mean() > 0.98


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("tokens", "vocabulary", "hidden_size", "loudness"),
    [(1, 61, 32, 1.0), (17, 300, 48, 4.0), (70, 256, 64, 200.0), (130, 129, 80, 0.0)],
)
def test_the_sampling_kernels(
    tokens: int, vocabulary: int, hidden_size: int, loudness: float
) -> None:
    check_sample(tokens, vocabulary, hidden_size, loudness, "cpu")


@pytest.mark.usefixtures("interpreted")
def test_the_first_of_equal_logits_is_best() -> None:
    hidden = torch.full((3, 32), 9.0).bfloat16()
    embedding = torch.ones(300, 32).bfloat16()
    embedding[:7] = 0
    ones, keys = torch.ones(3), torch.arange(3, dtype=torch.int32)
    assert head_sample(hidden, embedding, 30.0, ones, keys, None).best.tolist() == [7] * 3
    assert head_scores(hidden, embedding, 30.0, keys)[1].tolist() == [7] * 3


@pytest.mark.usefixtures("interpreted")
def test_a_certain_distribution_has_no_entropy() -> None:
    hidden, embedding = torch.ones(2, 32).bfloat16(), torch.zeros(300, 32).bfloat16()
    embedding[130] = 9
    cold, keys = torch.full((2,), 0.1), torch.zeros(2, dtype=torch.int32)
    sampled = head_sample(hidden, embedding, 30.0, cold, keys, None)
    assert sampled.best.tolist() == sampled.sample.tolist() == [130, 130]
    assert (sampled.entropy.abs() < 1e-12).all()


@pytest.mark.usefixtures("interpreted")
def test_samples_come_as_often_as_they_are_likely() -> None:
    hidden = torch.ones(512, 32).bfloat16()
    embedding = (torch.arange(6)[:, None] / 64).expand(6, 32).bfloat16()
    keys = draw_keys_torch(
        torch.tensor([[5, 0]]).int(), torch.zeros(1).int(), torch.ones(1).int(), 1, 512
    )[0]
    sampled = head_sample(hidden, embedding, None, torch.ones(512), keys, None)
    expected = (hidden[0].float() @ embedding.float().T).softmax(-1)
    shares = torch.bincount(sampled.sample.long(), minlength=6) / 512
    deviation = (expected * (1 - expected) / 512).sqrt()
    assert ((shares - expected).abs() < 4 * deviation).all()


def check_scores(tokens: int, vocabulary: int, hidden_size: int, device: str) -> None:
    hidden, embedding = operands(tokens, vocabulary, hidden_size, 5.0, device)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, vocabulary, (tokens,), generator=generator).int().to(device)
    scores, best = head_scores(hidden, embedding, 30.0, ids)
    exact, exact_best = head_scores_torch(hidden.double(), embedding.double(), 30.0, ids)
    torch.testing.assert_close(scores.double(), exact, rtol=2e-5, atol=2e-4)
    assert (best == exact_best).float().mean() > 0.98
    logits = head_torch(hidden.double(), embedding.double(), 30.0)
    torch.testing.assert_close(head(hidden, embedding, 30.0).double(), logits, rtol=1e-5, atol=2e-4)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("tokens", "vocabulary", "hidden_size"), [(1, 61, 32), (16, 300, 96), (65, 128, 64)]
)
def test_the_scoring_kernels(tokens: int, vocabulary: int, hidden_size: int) -> None:
    check_scores(tokens, vocabulary, hidden_size, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 256, 1024])
def test_the_kernels_at_real_size(tokens: int) -> None:
    check_scores(tokens, 262_144, 2816, "cuda")
    check_sample(min(tokens, 256), 262_144, 2816, 3.0, "cuda")
