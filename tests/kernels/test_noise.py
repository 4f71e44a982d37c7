"""Counter-based random numbers: exactly repeatable, uniform, and independent of each other.

Statistics are chi-square tests of fixed seeds, so they pass or fail for good. A statistic of k
degrees of freedom is about normal with mean k and variance 2k; 4.5 deviations are the limit.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hybrid.kernels.noise import (
    draw_keys,
    draw_keys_torch,
    gumbel_torch,
    mix,
    mix_torch,
    position_keys_torch,
    random_tokens,
    random_tokens_torch,
    row_key,
)

WORDS = st.integers(0, 2**32 - 1)
EULER = 0.5772156649015329


def as_int32(values: list[int]) -> Tensor:
    return torch.tensor(values).to(torch.int32)


def keys_of(seeds: range, positions: int, canvas: int = 0, step: int = 0) -> Tensor:
    rows = as_int32([row_key(seed, canvas, step, purpose=0) for seed in seeds])
    return position_keys_torch(rows, positions)


def assert_uniform(counts: Tensor) -> None:
    """Chi-square of counts [...] that should all be equal; a far too even spread fails as well."""
    expected = counts.sum().double() / counts.numel()
    assert expected >= 20
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    freedom = counts.numel() - 1
    assert abs(statistic - freedom) < 4.5 * math.sqrt(2 * freedom)


def assert_independent(first: Tensor, second: Tensor, kinds: int) -> None:
    """Chi-square of the joint counts of two equally shaped, uniform draws below `kinds`."""
    joint = first.flatten() * kinds + second.flatten()
    assert_uniform(joint.bincount(minlength=kinds * kinds))


def test_the_numbers_are_pinned() -> None:
    """Any other implementation, such as a GPU kernel, must give these integers."""
    assert [mix(value) for value in (0, 1, 2, 12345, 2**32 - 1)] == [
        0,
        1753845952,
        3507691905,
        2435775735,
        1734902346,
    ]
    assert row_key(0, 0, 0, 0) == 246052113
    assert row_key(1, 0, 0, 0) == 1645747085
    assert row_key(2**32, 0, 0, 0) == 1575810527
    assert row_key(2**63 - 1, 3, 48, 1) == 3586199541
    keys = keys_of(range(7, 8), 6)
    assert keys.tolist() == [
        [-451757738, -1884636300, 802561940, 1505345348, 2053843155, 1231189714]
    ]
    assert random_tokens_torch(keys, 262_144).tolist() == [
        [234570, 147114, 48984, 91878, 125356, 75145]
    ]
    torch.testing.assert_close(
        gumbel_torch(keys, 4)[0, :2],
        torch.tensor([[-0.2865, -0.3043, 1.7458, 2.5614], [-1.6585, 0.2207, 0.9714, -1.5085]]),
        atol=1e-4,
        rtol=0,
    )


@given(st.lists(WORDS, min_size=1, max_size=50))
def test_tensors_are_mixed_as_integers_are(values: list[int]) -> None:
    mixed = mix_torch(as_int32(values)).long() & 0xFFFFFFFF
    assert mixed.tolist() == [mix(value) for value in values]


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**4), st.integers(0, 10**4), st.integers(0, 1))
def test_every_part_of_a_key_matters(seed: int, canvas: int, step: int, purpose: int) -> None:
    key = row_key(seed, canvas, step, purpose)
    assert 0 <= key < 2**32
    others = [
        row_key(seed ^ 1, canvas, step, purpose),
        row_key(seed ^ 1 << 40, canvas, step, purpose),
        row_key(seed, canvas + 1, step, purpose),
        row_key(seed, canvas, step + 1, purpose),
        row_key(seed, canvas, step, 1 - purpose),
    ]
    assert key not in others  # each step of the mixing is a bijection of the part that differs


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), WORDS, WORDS), min_size=1, max_size=9))
def test_drawn_keys_are_row_keys_at_positions(draws: list[tuple[int, int, int]]) -> None:
    seeds = as_int32([word for seed, _, _ in draws for word in (seed & 2**32 - 1, seed >> 32)])
    canvas, step = (as_int32([draw[part] for draw in draws]) for part in (1, 2))
    keys = draw_keys_torch(seeds.view(-1, 2), canvas, step, 1, 5)
    expected = as_int32([row_key(*draw, purpose=1) for draw in draws])
    assert torch.equal(keys, position_keys_torch(expected, 5))


def test_nearby_keys_do_not_collide() -> None:
    keys = {
        row_key(seed, canvas, step, purpose)
        for seed in range(20)
        for canvas in range(5)
        for step in range(50)
        for purpose in range(2)
    }
    assert len(keys) >= 10_000 - 2  # chance alone makes 0.01 collisions


def test_mixing_is_a_bijection_of_small_counters() -> None:
    counters = torch.arange(-(2**19), 2**19, dtype=torch.int32)
    assert len(set(mix_torch(counters.clone()).tolist())) == counters.numel()


def test_a_row_has_its_numbers_in_any_company() -> None:
    together = keys_of(range(9), 32)
    for seed in range(9):
        assert torch.equal(keys_of(range(seed, seed + 1), 32)[0], together[seed])
        assert torch.equal(keys_of(range(seed, seed + 1), 8)[0], together[seed, :8])
    noise = gumbel_torch(together, 100)
    assert torch.equal(gumbel_torch(together[4:5], 100)[0], noise[4])
    assert torch.equal(gumbel_torch(together[4], 60), noise[4, :, :60])


@pytest.mark.parametrize("vocabulary", [2, 61, 761, 262_144])
def test_tokens_are_uniform(vocabulary: int) -> None:
    tokens = random_tokens_torch(keys_of(range(2000), 256), vocabulary)
    assert tokens.dtype == torch.int32
    assert 0 <= tokens.min() <= tokens.max() < vocabulary
    bins = min(vocabulary, 761)
    assert_uniform((tokens * bins // vocabulary).flatten().bincount(minlength=bins))


def test_the_extreme_keys_give_the_extreme_tokens() -> None:
    assert random_tokens_torch(as_int32([0, 2**32 - 1]), 262_144).tolist() == [0, 262_143]


def test_low_bits_are_uniform_too() -> None:
    keys = keys_of(range(2000), 256)
    assert_uniform((keys & 0xFF).flatten().bincount(minlength=256))


@pytest.mark.parametrize("lag", [1, 2, 31])
def test_positions_are_independent(lag: int) -> None:
    tokens = random_tokens_torch(keys_of(range(4000), 64), 29)
    assert_independent(tokens[:, lag:], tokens[:, :-lag], 29)


def test_seeds_are_independent() -> None:
    tokens = random_tokens_torch(keys_of(range(4001), 64), 29)
    assert_independent(tokens[1:], tokens[:-1], 29)


@pytest.mark.parametrize(("canvas", "step"), [(0, 1), (1, 0), (1, 1)])
def test_steps_and_canvases_are_independent(canvas: int, step: int) -> None:
    first = random_tokens_torch(keys_of(range(4000), 64), 29)
    second = random_tokens_torch(keys_of(range(4000), 64, canvas, step), 29)
    assert_independent(first, second, 29)


def test_purposes_are_independent() -> None:
    rows = [as_int32([row_key(seed, 0, 1, purpose) for seed in range(4000)]) for purpose in (0, 1)]
    first, second = (random_tokens_torch(position_keys_torch(row, 64), 29) for row in rows)
    assert_independent(first, second, 29)


def test_vocabulary_ids_are_independent() -> None:
    noise = gumbel_torch(keys_of(range(100), 32), 257)
    bins = ((-(-noise).exp()).exp() * 16).long()
    assert_independent(bins[..., 1:], bins[..., :-1], 16)
    assert_independent(bins[:, 1:], bins[:, :-1], 16)


def test_gumbel_noise_has_its_distribution_and_range() -> None:
    noise = gumbel_torch(keys_of(range(64), 64), 768).double()
    assert noise.isfinite().all()
    assert -2.82 < noise.min() < noise.max() < 16.7
    deviation = math.pi / math.sqrt(6)
    assert noise.mean().item() == pytest.approx(EULER, abs=4.5 * deviation / noise.numel() ** 0.5)
    assert noise.std().item() == pytest.approx(deviation, rel=0.003)
    probabilities = (-(-noise).exp()).exp()
    assert_uniform((probabilities * 1000).long().flatten().bincount(minlength=1000))


def test_the_extreme_keys_give_finite_noise() -> None:
    keys = [0, 3589926852]
    assert [mix(key) for key in keys] == [0, 2**32 - 1]
    torch.testing.assert_close(
        gumbel_torch(as_int32(keys), 1)[:, 0],
        torch.tensor([-math.log(24 * math.log(2)), 24 * math.log(2)]),
    )


def test_the_arg_max_of_gumbel_noise_samples_the_distribution() -> None:
    p = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125])
    noise = gumbel_torch(keys_of(range(1000), 128), len(p))
    counts = (noise + p.log()).argmax(-1).flatten().bincount(minlength=len(p))
    expected = p * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    assert statistic < 25.7  # 99.99 % of chi-square with 5 degrees of freedom


def test_what_is_impossible_is_never_sampled() -> None:
    noise = gumbel_torch(keys_of(range(1000), 64), 3)
    samples = (noise + torch.tensor([0.5, 0.5, 0.0]).log()).argmax(-1)
    assert set(samples.flatten().tolist()) == {0, 1}


def check_kernels(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (3, 4), generator=generator).int().to(device)
    seeds, canvas, step = words[:, :2].contiguous(), words[:, 2].abs(), words[:, 3].abs()
    for positions in (1, 6, 256):
        keys = draw_keys(seeds, canvas, step, 1, positions)
        assert torch.equal(keys, draw_keys_torch(seeds, canvas, step, 1, positions))
        for vocabulary in (1, 61, 262_144):
            tokens = random_tokens(keys, vocabulary)
            assert tokens.dtype == torch.int32
            assert torch.equal(tokens, random_tokens_torch(keys, vocabulary))


@pytest.mark.usefixtures("interpreted")
def test_the_kernels() -> None:
    check_kernels("cpu")


@pytest.mark.gpu
def test_the_kernels_on_a_gpu() -> None:
    check_kernels("cuda")
