"""RMS norm: its formula in float64, whatever the dtype and shape."""

import pytest
import torch
from torch import Tensor

from hybrid.kernels.norms import add_rms_norm_torch, rms_norm_torch


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
