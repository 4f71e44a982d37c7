"""RMS norm: its formula in float64, whatever the dtype and shape."""

import pytest
import torch
from torch import Tensor

from hybrid.kernels.norms import (
    add_rms_norm_torch,
    attention_residual,
    feed_forward_residual,
    rms_norm,
    rms_norm_torch,
)


def exact(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 33), (5, 3, 128), (2, 0, 16)])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_the_formula(shape: tuple[int, ...], eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 5
    weight = torch.randn(shape[-1], generator=generator)
    torch.testing.assert_close(rms_norm_torch(x, weight, eps), exact(x, weight, eps).float())
    ones = torch.ones(shape[-1])
    torch.testing.assert_close(rms_norm_torch(x, None, eps), exact(x, ones, eps).float())
    residual = torch.randn(shape, generator=generator)
    expected = residual.double() + exact(x, weight, eps)
    torch.testing.assert_close(add_rms_norm_torch(residual, x, weight, eps), expected.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_normalised_in_float32(dtype: torch.dtype) -> None:
    x = (torch.randn(4, 256, generator=torch.Generator().manual_seed(1)) * 200).to(dtype)
    normalised = rms_norm_torch(x, None, 1e-6)
    assert normalised.dtype == dtype
    assert torch.equal(normalised, exact(x, torch.ones(256), 1e-6).float().to(dtype))
    assert add_rms_norm_torch(x, x, x[0], 1e-6).dtype == dtype


def test_the_inputs_are_left_alone() -> None:
    x, weight = torch.randn(3, 8), torch.randn(8)
    before = x.clone()
    rms_norm_torch(x, weight, 1e-6)
    add_rms_norm_torch(x, x, weight, 1e-6)
    assert torch.equal(x, before)


def test_zeros_stay_zero() -> None:
    assert rms_norm_torch(torch.zeros(2, 8), None, 1e-6).abs().max() == 0


def rows(*shape: int, seed: int = 0, device: str = "cpu") -> Tensor:
    return (
        (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3)
        .bfloat16()
        .to(device)
    )


def close(actual: Tensor, expected: Tensor) -> None:
    """Within one rounding to bfloat16, and a little for sums in float32."""
    error = (actual.double() - expected.double()).abs()
    assert (error <= expected.double().abs() * 2**-8 * 1.01 + 1e-6).all()


def check_all(tokens: int, width: int, top_k: int, device: str) -> None:
    x, attended, dense = (rows(tokens, width, seed=s, device=device) for s in range(3))
    mixed = rows(tokens, top_k, width, seed=3, device=device)
    a, b, c, d = (rows(width, seed=4 + s, device=device) for s in range(4))
    attended[0] = 0
    for weight in (a, None):
        ones = torch.ones(width, device=device)
        close(rms_norm(x, weight, 1e-6), exact(x, ones if weight is None else weight, 1e-6))
    total, first, second = attention_residual(x, attended, a, b, c, 1e-6)
    close(total, x.double() + exact(attended, a, 1e-6))
    close(first, exact(total, b, 1e-6))
    assert second is not None
    close(second, exact(total, c, 1e-6))
    assert attention_residual(x, attended, a, b, None, 1e-6)[2] is None
    h = exact(dense, a, 1e-6) + exact(mixed.double().sum(1), b, 1e-6)
    total, following = feed_forward_residual(x, dense, mixed, a, b, c, 0.75, d, 1e-6)
    close(total, (x.double() + exact(h, c, 1e-6)) * 0.75)
    close(following, exact(total, d, 1e-6))
    total, following = feed_forward_residual(x, dense, None, None, None, c, 0.75, d, 1e-6)
    close(total, (x.double() + exact(dense, c, 1e-6)) * 0.75)
    close(following, exact(total, d, 1e-6))


SHAPES = [(1, 16, 1), (5, 33, 3), (3, 176, 8), (2, 2816, 8)]


@pytest.mark.parametrize(("tokens", "width", "top_k"), SHAPES)
def test_the_residual_steps(tokens: int, width: int, top_k: int) -> None:
    check_all(tokens, width, top_k, "cpu")


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("tokens", "width", "top_k"), SHAPES)
def test_the_kernels(tokens: int, width: int, top_k: int) -> None:
    check_all(tokens, width, top_k, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 256, 2048])
def test_the_kernels_at_real_size(tokens: int) -> None:
    check_all(tokens, 2816, 8, "cuda")
