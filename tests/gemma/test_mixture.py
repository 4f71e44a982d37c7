"""Mixture of experts: every token through its experts one by one, weighted."""

import pytest
import torch
from torch.nn.functional import gelu

from hybrid.gemma.model.mixture import mixture_torch
from hybrid.kernels.arithmetic import gelu_gate_torch


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"), [(1, 16, 3), (13, 4, 4), (9, 40, 2)]
)
def test_each_token_meets_its_experts(num_tokens: int, num_experts: int, top_k: int) -> None:
    hidden, intermediate = 12, 7
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_tokens, hidden, generator=generator)
    gate_up = torch.randn(num_experts, 2 * intermediate, hidden, generator=generator)
    down = torch.randn(num_experts, hidden, intermediate, generator=generator)
    weights = torch.rand(num_tokens, top_k, generator=generator)
    experts = torch.rand(num_tokens, num_experts, generator=generator).topk(top_k).indices
    expected = torch.zeros_like(x)
    for token in range(num_tokens):
        for choice in range(top_k):
            expert = experts[token, choice]
            gate, up = (gate_up[expert] @ x[token]).chunk(2)
            output = down[expert] @ (gelu(gate, approximate="tanh") * up)
            expected[token] += weights[token, choice] * output
    actual = mixture_torch(x, experts, weights, gate_up, down)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1,), (3, 65), (2, 3, 8)])
def test_the_gate_is_the_tanh_gelu(shape: tuple[int, ...]) -> None:
    gate = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 4
    up = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = gelu(gate.double(), approximate="tanh") * up.double()
    torch.testing.assert_close(gelu_gate_torch(gate, up).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_gate_of_far_values() -> None:
    gate = torch.tensor([-1e4, -30.0, -0.0, 30.0, 1e4])
    assert gelu_gate_torch(gate, torch.ones(5)).tolist() == [0.0, 0.0, 0.0, 30.0, 1e4]
