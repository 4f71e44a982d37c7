"""Routing: the published formula, a softmax over all experts with its largest renormalised."""

import pytest
import torch
from torch import Tensor

from hybrid.kernels.route import choose_experts_torch, route, route_dense_torch, route_torch


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (4, 2), (128, 8), (5, 5)])
def test_the_published_formula(num_experts: int, top_k: int) -> None:
    logits = torch.randn(9, num_experts, generator=torch.Generator().manual_seed(0)) * 4
    expected, chosen = logits.double().softmax(-1).topk(top_k, -1)
    expected /= expected.sum(-1, keepdim=True)
    experts, weights = choose_experts_torch(logits, top_k)
    assert torch.equal(experts, chosen)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)
    dense = route_dense_torch(logits, top_k)
    torch.testing.assert_close(dense.gather(-1, experts), weights)
    assert (dense.count_nonzero(-1) == top_k).all()


def test_ties_choose_no_more_than_asked() -> None:
    dense = route_dense_torch(torch.zeros(3, 6), 2)
    assert (dense.count_nonzero(-1) == 2).all()
    assert torch.equal(dense.sum(-1), torch.ones(3))


def test_weights_are_float32() -> None:
    logits = torch.randn(2, 4).bfloat16()
    assert choose_experts_torch(logits, 2)[1].dtype == torch.float32
    assert route_dense_torch(logits, 2).dtype == torch.bfloat16


Operands = tuple[Tensor, Tensor, Tensor, Tensor]


def operands(tokens: int, hidden_size: int, num_experts: int, device: str = "cpu") -> Operands:
    generator = torch.Generator().manual_seed(tokens + num_experts)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = (random(tokens, hidden_size) * 3).bfloat16()
    scale = (1 + 0.2 * random(hidden_size)).bfloat16()
    weight = random(num_experts, hidden_size).bfloat16()
    expert_scale = 1 + 0.3 * random(num_experts).abs()
    return x.to(device), scale.to(device), weight.to(device), expert_scale.to(device)


def exact(values: Operands, top_k: int) -> tuple[Tensor, Tensor]:
    x, scale, weight, expert_scale = (value.double() for value in values)
    return route_torch(x, scale, weight, expert_scale, top_k, 1e-6)


def same(actual: tuple[Tensor, Tensor], values: Operands, top_k: int) -> None:
    """The experts are those of float64, except where its logits are a rounding apart."""
    experts, weights = exact(values, top_k)
    differs = (actual[0] != experts).any(-1)
    assert differs.float().mean() < 0.01
    torch.testing.assert_close(actual[1][~differs], weights[~differs], rtol=2e-4, atol=1e-6)


def test_the_reference_is_the_published_router() -> None:
    x, scale, weight, expert_scale = operands(9, 48, 16)
    u = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale.double()
    shares = (u * 48**-0.5 @ weight.double().T).softmax(-1)
    expected, chosen = shares.topk(3, -1)
    expected = expected / expected.sum(-1, keepdim=True) * expert_scale.double()[chosen]
    experts, weights = route_torch(x, scale, weight, expert_scale, 3, 1e-6)
    assert torch.equal(experts.long(), chosen)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("tokens", "hidden_size", "num_experts", "top_k"),
    [(1, 32, 4, 2), (17, 200, 12, 3), (16, 256, 128, 8), (33, 48, 5, 5), (3, 128, 1, 1)],
)
def test_the_kernel(tokens: int, hidden_size: int, num_experts: int, top_k: int) -> None:
    values = operands(tokens, hidden_size, num_experts)
    same(route(*values, top_k, 1e-6), values, top_k)


@pytest.mark.usefixtures("interpreted")
def test_ties_choose_the_lowest_numbers() -> None:
    x, scale, weight, expert_scale = operands(5, 64, 8)
    experts, weights = route(x, scale, weight[:1].expand(8, -1).contiguous(), expert_scale, 3, 1e-6)
    assert experts.tolist() == [[0, 1, 2]] * 5
    torch.testing.assert_close(weights, (expert_scale[:3] / 3).expand(5, -1))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 256, 2048])
def test_the_kernel_at_real_size(tokens: int) -> None:
    values = operands(tokens, 2816, 128, "cuda")
    same(route(*values, 8, 1e-6), values, 8)
