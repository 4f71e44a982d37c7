"""Entropy-bound acceptance, held to its definition in exact arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybrid.kernels.accept import accept as accept_canvases
from hybrid.kernels.accept import accept_torch, within_bound_torch

# Multiples of 1/64 nat add up without rounding in float32, so that every comparison is exact.
EXACT_ENTROPY = st.integers(0, 64 * 12).map(lambda count: count / 64)
EXACT_ROWS = st.integers(1, 40).flatmap(
    lambda width: st.lists(
        st.lists(EXACT_ENTROPY, min_size=width, max_size=width), min_size=1, max_size=4
    )
)


def accept(entropy: list[float], bound: float) -> list[bool]:
    accepted: list[bool] = within_bound_torch(torch.tensor([entropy]), torch.tensor([[bound]]))[
        0
    ].tolist()
    return accepted


def accept_exactly(entropy: list[float], bound: float) -> list[bool]:
    """One position after the other, surest first, in rational numbers."""
    accepted = [False] * len(entropy)
    before = Fraction(0)
    for position in sorted(range(len(entropy)), key=lambda index: entropy[index]):
        accepted[position] = before <= Fraction(bound)
        before += Fraction(entropy[position])
    return accepted


@given(EXACT_ROWS, st.data())
def test_every_row_keeps_what_the_definition_keeps(
    rows: list[list[float]], data: st.DataObject
) -> None:
    bounds = data.draw(st.lists(EXACT_ENTROPY, min_size=len(rows), max_size=len(rows)))
    accepted = within_bound_torch(torch.tensor(rows), torch.tensor(bounds)[:, None])
    assert accepted.dtype == torch.bool
    for row, bound, kept in zip(rows, bounds, accepted.tolist(), strict=True):
        expected = accept_exactly(row, bound)
        # Among equal entropies any position may be the one that crosses the bound.
        assert sorted(row[i] for i, keep in enumerate(kept) if keep) == sorted(
            row[i] for i, keep in enumerate(expected) if keep
        )
        if len(set(row)) == len(row):
            assert kept == expected


@pytest.mark.parametrize("seed", range(5))
def test_float32_keeps_what_float64_keeps_except_at_the_bound(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(64, 256, generator=generator).pow(8) * 4
    bound = torch.rand(64, 1, generator=generator) * 6
    accepted = within_bound_torch(entropy, bound)
    wide, order = entropy.double().sort(dim=-1)
    before = torch.zeros_like(wide).scatter(-1, order, wide.cumsum(-1) - wide)
    is_clear = (before - bound).abs() > 1e-4
    assert torch.equal(accepted[is_clear], (before <= bound)[is_clear])
    assert 0.1 < accepted.float().mean() < 0.9
    assert is_clear.float().mean() > 0.99


def test_the_sum_leaves_the_position_itself_out() -> None:
    assert accept([0.75, 0.25, 0.5, 1.0], 0.25) == [False, True, True, False]
    assert accept([0.75, 0.25, 0.5, 1.0], 0.75) == [True, True, True, False]
    assert accept([0.75, 0.25, 0.5, 1.0], 1.5) == [True] * 4


def test_the_surest_position_is_kept_however_unsure() -> None:
    assert accept([9.0, 8.0, 10.0], 0.0) == [False, True, False]
    assert accept([5.0], 0.0) == [True]


def test_a_bound_of_zero_keeps_what_is_certain_and_one_more() -> None:
    assert accept([0.0, 0.5, 0.0, 0.25, 0.0], 0.0) == [True, False, True, True, True]


def test_an_infinite_bound_keeps_all() -> None:
    assert accept([3.0, 0.0, 12.0], math.inf) == [True] * 3


@given(st.lists(EXACT_ENTROPY, min_size=1, max_size=40), EXACT_ENTROPY, EXACT_ENTROPY)
def test_a_higher_bound_keeps_no_less(entropy: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    for kept_low, kept_high in zip(accept(entropy, low), accept(entropy, high), strict=True):
        assert kept_high or not kept_low


def canvases(rows: int, places: int, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """Entropies that are multiples of 1/64, with ties; some places fixed, a row of them wholly."""
    generator = torch.Generator().manual_seed(rows * places)
    entropy = torch.randint(0, 40, (rows, places), generator=generator).float() / 64
    ids = torch.randint(0, 61, (5, rows, places), generator=generator, dtype=torch.int32)
    best, sample, random_ids, previous, fixed = ids
    fixed = torch.where(torch.rand(rows, places, generator=generator) < 0.7, -1, fixed)
    fixed[-1] = 3
    previous = torch.where(torch.arange(rows)[:, None] % 2 == 0, best, previous)
    previous = torch.where(fixed < 0, previous, fixed)
    bound = torch.randint(0, 5 * places, (rows,), generator=generator).float() / 64
    bound[0] = 0.0
    parts = entropy, best, sample, random_ids, previous, fixed, bound
    return tuple(part.to(device) for part in parts)


def check_kernel(rows: int, places: int, device: str) -> None:
    values = canvases(rows, places, device)
    actual, expected = accept_canvases(*values), accept_torch(*values)
    for name in ("next_ids", "kept", "best", "entropy", "is_same"):
        one, other = getattr(actual, name), getattr(expected, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other), name
    torch.testing.assert_close(actual.mean_entropy, expected.mean_entropy)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("rows", "places"), [(1, 1), (3, 6), (2, 33), (4, 256)])
def test_the_kernel(rows: int, places: int) -> None:
    check_kernel(rows, places, "cpu")


@pytest.mark.gpu
def test_the_kernel_at_real_size() -> None:
    check_kernel(8, 256, "cuda")


def test_fixed_places_are_certain() -> None:
    entropy, best, sample, random_ids, previous, fixed, bound = canvases(3, 12)
    accepted = accept_torch(entropy, best, sample, random_ids, previous, fixed, bound)
    held = fixed >= 0
    assert torch.equal(accepted.next_ids[held], fixed[held])
    assert torch.equal(accepted.best[held], fixed[held])
    assert accepted.entropy[held].max() == 0
    assert accepted.kept[held].all()
    free = torch.where(held, torch.nan, entropy)
    assert torch.equal(accepted.mean_entropy, free.nanmean(-1).nan_to_num(0.0))
    assert accepted.is_same.tolist() == [True, False, True]
