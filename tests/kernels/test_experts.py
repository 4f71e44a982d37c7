"""Experts on a device: grouped products against each token's experts one by one."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from hybrid.kernels import nvfp4
from hybrid.kernels.experts import experts, experts_torch
from tests.kernels.assignments import choices


def one_by_one(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The definition in float64, [T, k, H], with the gated values rounded to `x`'s dtype."""
    output = torch.zeros(*chosen.shape, x.shape[1], dtype=torch.float64)
    for token, place in torch.cartesian_prod(*(torch.arange(n) for n in chosen.shape)).tolist():
        expert = chosen[token, place]
        product = gate_up[expert].double() @ x[token].double()
        gated = gelu(product[0::2], approximate="tanh") * product[1::2]
        mixed = down[expert].double() @ gated.to(x.dtype).double()
        output[token, place] = weights[token, place].double() * mixed
    return output


def random_matrix(
    experts: int, rows: int, columns: int, packed: bool
) -> tuple[Tensor | nvfp4.PackedMatrix, Tensor]:
    """Random weights, and the same as float64."""
    generator = torch.Generator().manual_seed(rows * columns + packed)
    weight = torch.randn(experts, rows, columns, generator=generator) * columns**-0.5
    if not packed:
        return weight.bfloat16(), weight.bfloat16().double()
    codes, scale, scale_2 = nvfp4.quantize_torch(weight)
    factors = scale_2[:, None] * torch.tensor([1.0, 0.5]).repeat(experts, rows // 2)
    matrix = nvfp4.pack_matrix(codes, scale, factors)
    return matrix, nvfp4.dense(matrix, torch.float64)


def assert_near(actual: Tensor, exact: Tensor, most: float, rms: float) -> None:
    """Bounds on the largest error, relative to value and RMS, and on the RMS error."""
    assert not actual.isnan().any()
    size = exact.square().mean().sqrt()
    error = (actual.double() - exact).abs()
    largest, mean = (error / (exact.abs() + size)).max(), error.square().mean().sqrt() / size
    assert largest <= most and mean <= rms, (largest, mean)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("kind", "tokens", "num_experts", "top_k", "hidden", "intermediate"),
    [
        ("spread", 13, 4, 2, 128, 64),
        ("spread", 1, 5, 3, 64, 128),
        ("spread", 7, 3, 2, 80, 48),
        ("one", 17, 3, 1, 64, 64),
        ("few", 33, 4, 2, 32, 16),
        ("spread", 40, 2, 2, 64, 192),
    ],
)
def test_the_kernels_are_the_definition(
    interpreted: None,
    kind: str,
    tokens: int,
    num_experts: int,
    top_k: int,
    hidden: int,
    intermediate: int,
    packed: bool,
) -> None:
    gate_up, exact_gate_up = random_matrix(num_experts, 2 * intermediate, hidden, packed)
    down, exact_down = random_matrix(num_experts, hidden, intermediate, packed)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, hidden, generator=generator).bfloat16()
    weights = torch.rand(tokens, top_k, generator=generator)
    chosen = choices(kind, tokens, num_experts, top_k)
    actual = experts(x, chosen, weights, gate_up, down)
    assert (actual.shape, actual.dtype) == ((tokens, top_k, hidden), torch.bfloat16)
    exact = one_by_one(x, chosen, weights, exact_gate_up, exact_down)
    assert_near(actual, exact, most=0.01, rms=0.003)


@pytest.mark.parametrize("packed", [False, True])
def test_the_reference_is_the_definition(packed: bool) -> None:
    gate_up, exact_gate_up = random_matrix(5, 96, 32, packed)
    down, exact_down = random_matrix(5, 32, 48, packed)
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.rand(9, 3, generator=torch.Generator().manual_seed(1))
    chosen = choices("spread", 9, 5, 3)
    if not packed:
        gate_up, down = exact_gate_up, exact_down
    actual = experts_torch(x, chosen, weights, gate_up, down)
    exact = one_by_one(x, chosen, weights, exact_gate_up, exact_down)
    torch.testing.assert_close(actual, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokens", [1, 16, 256, 1024])
def test_on_a_gpu_at_the_real_size(tokens: int, packed: bool) -> None:
    num_experts, top_k, hidden, intermediate = 128, 8, 2816, 704
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    gate_up, down = (
        torch.randn(num_experts, rows, columns, generator=generator, device=device) * columns**-0.5
        for rows, columns in ((2 * intermediate, hidden), (hidden, intermediate))
    )
    gate_up_weight: Tensor | nvfp4.PackedMatrix = gate_up.bfloat16()
    down_weight: Tensor | nvfp4.PackedMatrix = down.bfloat16()
    if packed:
        gate_up_weight, down_weight = (
            nvfp4.pack_matrix(codes, scale, scale_2[:, None].repeat(1, codes.shape[1]))
            for codes, scale, scale_2 in map(nvfp4.quantize_torch, (gate_up, down))
        )
    x = torch.randn(tokens, hidden, generator=generator, device=device).bfloat16()
    weights = torch.rand(tokens, top_k, generator=generator, device=device)
    scores = torch.rand(tokens, num_experts, generator=generator, device=device)
    chosen = scores.topk(top_k).indices.int()
    actual = experts(x, chosen, weights, gate_up_weight, down_weight)
    expected = experts_torch(x.float(), chosen, weights, gate_up_weight, down_weight)
    assert_near(actual, expected.double(), most=0.02, rms=0.006)
    assert torch.equal(actual, experts(x, chosen, weights, gate_up_weight, down_weight))
