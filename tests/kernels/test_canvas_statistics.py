"""What a step makes of its logits, against float64; and the same as compilers are given it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid.drafters.noise import CounterNoise, Draw
from hybrid.kernels.accept import FREE
from hybrid.kernels.canvas_statistics import (
    CanvasStatistics,
    _argmax,
    canvas_statistics_torch,
    renoise_torch,
)
from hybrid.kernels.noise import signed

ROWS, PLACES, VOCABULARY = 3, 7, 29
TEMPERATURE, BOUND = torch.tensor([0.4, 0.8, 1.0]), torch.tensor([1e-3, 1.5, 100.0])


def make_logits(kind: str) -> Tensor:
    logits = torch.randn(ROWS, PLACES, VOCABULARY, generator=torch.Generator().manual_seed(0))
    if kind == "sure":
        return logits * 30
    if kind == "equal":
        return torch.zeros_like(logits)
    return logits


def fixed_ids() -> Tensor:
    """A row of none, a row of some, and one of nothing else."""
    ids = torch.full((ROWS, PLACES), FREE)
    ids[1, [0, 4]] = torch.tensor([28, 0])
    ids[2] = torch.arange(PLACES)
    return ids


def in_float64(logits: Tensor, fixed: Tensor | None) -> CanvasStatistics:
    p = (logits.double() / TEMPERATURE.double()[:, None, None]).softmax(-1)
    best = logits.argmax(-1)
    if fixed is not None:
        certain = nn.functional.one_hot(fixed.clamp(min=0), VOCABULARY).double()
        p = torch.where((fixed >= 0)[..., None], certain, p)
        best = torch.where(fixed >= 0, fixed, best)
    entropy = torch.special.entr(p).sum(-1)
    is_free = torch.ones_like(best, dtype=torch.bool) if fixed is None else fixed < 0
    accepted = torch.zeros_like(is_free)
    for row in range(ROWS):
        spent = 0.0
        for place in sorted(range(PLACES), key=lambda place: (entropy[row, place].item(), place)):
            accepted[row, place] = spent <= BOUND[row].item() + 1e-9
            spent += entropy[row, place].item()
    mean = (entropy * is_free).sum(-1) / is_free.sum(-1).clamp(min=1)
    return CanvasStatistics(p, best, entropy, accepted, mean)


def assert_alike(found: CanvasStatistics, expected: CanvasStatistics) -> None:
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference.to(ours.dtype), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", ["unsure", "sure", "equal"])
@pytest.mark.parametrize("fixed", [None, fixed_ids()])
def test_judged_as_in_float64(kind: str, fixed: Tensor | None) -> None:
    logits = make_logits(kind)
    expected = in_float64(logits, fixed)
    assert_alike(canvas_statistics_torch(logits.clone(), TEMPERATURE, BOUND, fixed), expected)


class Traced(nn.Module):
    """`canvas_statistics_torch` and `renoise_torch`, for `torch.export`."""

    def forward(
        self, logits: Tensor, fixed: Tensor, seeds: Tensor, canvas: Tensor, step: Tensor
    ) -> tuple[Tensor, ...]:
        found = canvas_statistics_torch(logits.clone(), TEMPERATURE, BOUND, fixed)
        return *found, renoise_torch(found.p, found.accepted, seeds, canvas, step)


@pytest.mark.parametrize("kind", ["unsure", "sure", "equal"])
def test_compilers_are_given_the_same(kind: str) -> None:
    logits, fixed = make_logits(kind), fixed_ids()
    draws = [Draw(5, 0, 1), Draw(2**64 - 1, 2, 3), Draw(2**40 + 7, 1, 48)]
    seeds = torch.tensor([[signed(draw.seed), signed(draw.seed >> 32)] for draw in draws])
    counts: Any = ([draw.canvas for draw in draws], [draw.step for draw in draws])
    numbers = [seeds, *map(torch.tensor, counts)]
    inputs = (logits, fixed, *(number.int() for number in numbers))
    Traced()(*inputs)  # so that numbers kept as tensors are there before they are traced
    program = torch.export.export(Traced(), inputs, strict=False).module()
    *found, next_ids = program(*inputs)
    assert_alike(
        CanvasStatistics(*found), canvas_statistics_torch(logits.clone(), TEMPERATURE, BOUND, fixed)
    )
    noise = CounterNoise(torch.device("cpu"))
    assert torch.equal(next_ids, noise.renoise(draws, found[0], found[3]))


@pytest.mark.parametrize("shape", [(1,), (919,), (3, 1), (2, 32, 919)])
def test_argmax_finds_what_torch_finds(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(_argmax(x * 1.0), x.argmax(-1))


def test_argmax_takes_the_first_of_equals() -> None:
    x = torch.tensor([[0.0, 2.0, 2.0], [-1e4, -1e4, -1e4], [1.0, 0.0, 1.0]])
    assert _argmax(x).tolist() == [1, 0, 0]
    assert _argmax(x.t()).tolist() == [2, 0, 0]
