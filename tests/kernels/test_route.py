"""Routing: the published formula, a softmax over all experts with its largest renormalised."""

import pytest
import torch

from hybrid.kernels.route import route_dense_torch, route_torch


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (4, 2), (128, 8), (5, 5)])
def test_the_published_formula(num_experts: int, top_k: int) -> None:
    logits = torch.randn(9, num_experts, generator=torch.Generator().manual_seed(0)) * 4
    expected, chosen = logits.double().softmax(-1).topk(top_k, -1)
    expected /= expected.sum(-1, keepdim=True)
    experts, weights = route_torch(logits, top_k)
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
    assert route_torch(logits, 2)[1].dtype == torch.float32
    assert route_dense_torch(logits, 2).dtype == torch.bfloat16
