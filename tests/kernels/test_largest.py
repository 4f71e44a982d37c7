"""Where the largest number is."""

import pytest
import torch

from hybrid.kernels.largest import largest_torch


@pytest.mark.parametrize("shape", [(1,), (919,), (3, 1), (2, 32, 919)])
def test_the_largest_is_where_torch_finds_it(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(largest_torch(x * 1.0), x.argmax(-1))


def test_the_first_of_equals_is_chosen() -> None:
    x = torch.tensor([[0.0, 2.0, 2.0], [-1e4, -1e4, -1e4], [1.0, 0.0, 1.0]])
    assert largest_torch(x).tolist() == [1, 0, 0]
    assert largest_torch(x.t()).tolist() == [2, 0, 0]
