"""Self-conditioning: its formula in float64."""

import pytest
import torch

from hybrid.kernels.selfcond import condition_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_formula(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(11, 48, generator=generator).to(dtype)
    signal = torch.randn(5, 48, generator=generator).to(dtype)
    signal[2] = 0
    token_ids = torch.tensor([3, 0, 10, 3, 7], dtype=torch.int32)
    summed = embedding.double()[token_ids.long()] * 6.9375 + signal.double()
    expected = summed / (summed.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    actual = condition_torch(token_ids, signal, embedding, 6.9375, 1e-6)
    torch.testing.assert_close(actual, expected.to(dtype))
