"""Self-conditioning: its formula in float64."""

import pytest
import torch

from hybrid.kernels.selfcond import condition, condition_torch


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


def case(tokens: int, hidden_size: int, device: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(23, hidden_size, generator=generator).bfloat16()
    signal = torch.randn(tokens, hidden_size, generator=generator).bfloat16()
    signal[0] = 0  # a canvas's first step
    token_ids = torch.randint(23, (tokens,), generator=generator, dtype=torch.int32)
    return token_ids.to(device), signal.to(device), embedding.to(device)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("tokens", "hidden_size"), [(1, 16), (5, 176), (3, 2816)])
def test_the_kernel(tokens: int, hidden_size: int) -> None:
    token_ids, signal, embedding = case(tokens, hidden_size, "cpu")
    actual = condition(token_ids, signal, embedding, 53.0, 1e-6)
    exact = condition_torch(token_ids, signal.double(), embedding.double(), 53.0, 1e-6)
    assert ((actual.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001).all()


@pytest.mark.gpu
def test_the_kernel_at_real_size() -> None:
    token_ids, signal, embedding = case(2048, 2816, "cuda")
    actual = condition(token_ids, signal, embedding, 53.0, 1e-6)
    exact = condition_torch(token_ids, signal.double(), embedding.double(), 53.0, 1e-6)
    assert ((actual.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001).all()
