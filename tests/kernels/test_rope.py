"""Rotary embedding: a rotation of the pairs (i, i + D/2) by position times frequency."""

import cmath

import pytest
import torch

from hybrid.kernels.rope import frequencies_torch, rotate_torch, rotation_torch


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25, 0.3])
def test_pairs_turn_as_complex_numbers(fraction: float) -> None:
    head_dim, theta = 16, 500.0
    x = torch.randn(head_dim, generator=torch.Generator().manual_seed(0)).double()
    for position in (0, 1, 77, 4095):
        rotation = rotation_torch(
            torch.tensor([position]), frequencies_torch(head_dim, theta, fraction)
        )
        turned = rotate_torch(x[None], *(part.double() for part in rotation))[0]
        for pair in range(head_dim // 2):
            turning = pair < int(fraction * head_dim // 2)
            angle = position * theta ** (-2 * pair / head_dim) if turning else 0.0
            z = complex(x[pair], x[pair + 8]) * cmath.exp(1j * angle)
            assert turned[pair].item() == pytest.approx(z.real, abs=1e-3)
            assert turned[pair + 8].item() == pytest.approx(z.imag, abs=1e-3)


def test_the_published_full_layers_turn_64_of_256_pairs() -> None:
    frequencies = frequencies_torch(512, 1_000_000.0, 0.25)
    assert frequencies.shape == (256,)
    assert (frequencies > 0).sum() == 64
    assert frequencies[63].item() == pytest.approx(1e6 ** (-126 / 512))


def test_scores_depend_on_distance_alone() -> None:
    query, key = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(1)).double()
    frequencies = frequencies_torch(32, 10_000.0, 1.0)
    scores = []
    for start in (0, 5, 100):
        cosine, sine = (
            part.double() for part in rotation_torch(torch.tensor([start, start + 7]), frequencies)
        )
        turned = rotate_torch(torch.cat((query, key)), cosine, sine)
        scores.append((turned[0] @ turned[1]).item())
    assert scores == pytest.approx(scores[:1] * 3, abs=1e-4)
