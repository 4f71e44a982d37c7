"""Gumbel-max sampling: exact, repeatable, and the same with and without pruning."""

import pytest
import torch
from torch import Tensor

from hybrid.kernels.gumbel_max_sample import gumbel_max_sample_torch
from hybrid.kernels.noise import exponential_torch, gumbel_torch, position_keys_torch


def keys_of(count: int) -> Tensor:
    return position_keys_torch(torch.arange(1, dtype=torch.int32), count)[0]


def sample(keys: Tensor, probabilities: Tensor) -> Tensor:
    """A sample of every distribution."""
    return gumbel_max_sample_torch(keys, probabilities, torch.ones(len(keys), dtype=torch.bool))


def distributions(count: int, vocabulary: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(count, vocabulary, generator=generator) * scale).softmax(-1)


@pytest.mark.parametrize("vocabulary", [1, 2, 61, 919])
@pytest.mark.parametrize("scale", [0.0, 1.0, 9.0, 50.0])
def test_pruning_changes_nothing(vocabulary: int, scale: float) -> None:
    keys, p = keys_of(2000), distributions(2000, vocabulary, scale)
    unpruned = (p / exponential_torch(keys, vocabulary)).argmax(-1)
    assert torch.equal(sample(keys, p), unpruned)


def test_the_sample_is_the_argmax_with_gumbel_noise() -> None:
    keys, p = keys_of(2000), distributions(2000, 919, 3.0)
    gumbel = (p.log() + gumbel_torch(keys, 919)).argmax(-1)
    assert torch.equal(sample(keys, p), gumbel)


def test_samples_follow_the_distribution() -> None:
    p = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125])
    count = 100_000
    counts = sample(keys_of(count), p.expand(count, -1)).bincount(minlength=len(p))
    statistic = ((counts - p * count) ** 2 / (p * count)).sum().item()
    assert statistic < 25.7  # 99.99 % of chi-square with 5 degrees of freedom


def test_only_the_wanted_are_sampled() -> None:
    keys, p = keys_of(64), distributions(64, 61, 3.0)
    wanted = torch.arange(64) % 3 == 1
    assert torch.equal(gumbel_max_sample_torch(keys, p, wanted), sample(keys, p)[wanted])
    assert gumbel_max_sample_torch(keys, p, torch.zeros_like(wanted)).tolist() == []


def test_the_impossible_is_never_sampled() -> None:
    p = torch.tensor([0.0, 1.0, 0.0]).expand(1000, -1)
    assert sample(keys_of(1000), p).tolist() == [1] * 1000
