"""Linear layers on a device: float64 products, gates, and heads normalised and turned."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from hybrid.kernels import nvfp4
from hybrid.kernels.linear import (
    linear,
    linear_gated,
    linear_gated_torch,
    linear_heads,
    linear_heads_torch,
    linear_torch,
)

Weight = Tensor | nvfp4.PackedMatrix
SHAPES = [(1, 64, 64), (16, 200, 80), (40, 130, 192), (70, 32, 48)]  # tokens, rows, columns


def random_weight(rows: int, columns: int, packed: bool) -> tuple[Weight, Tensor]:
    """A random weight, and the same as float64."""
    generator = torch.Generator().manual_seed(rows * columns + packed)
    weight = torch.randn(rows, columns, generator=generator) * columns**-0.5
    if not packed:
        return weight.bfloat16(), weight.bfloat16().double()
    codes, scale, scale_2 = nvfp4.quantize_torch(weight[None])
    factors = scale_2[:, None] * (0.5 + torch.rand(1, rows, generator=generator))
    matrix = nvfp4.pack_matrix(codes, scale, factors)
    return matrix, nvfp4.dense(matrix, torch.float64)[0]


def random_rows(tokens: int, columns: int) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(7)).bfloat16()


def assert_near(actual: Tensor, exact: Tensor, most: float = 0.005, rms: float = 0.003) -> None:
    """Bounds on the largest error, relative to value and RMS, and on the RMS error."""
    assert actual.dtype == torch.bfloat16 and not actual.isnan().any()
    size = exact.square().mean().sqrt()
    error = (actual.double() - exact).abs()
    largest, mean = (error / (exact.abs() + size)).max(), error.square().mean().sqrt() / size
    assert largest <= most and mean <= rms, (largest, mean)


def test_every_code_under_every_scale_is_decoded_exactly(interpreted: None) -> None:
    scale_bytes = torch.arange(128, dtype=torch.uint8).clamp(max=126)  # 127 is NaN
    codes = torch.arange(16, dtype=torch.uint8).repeat(128, 4)
    scale = scale_bytes[:, None].repeat(1, 4).view(torch.float8_e4m3fn)
    matrix = nvfp4.pack_matrix(nvfp4.pack_torch(codes)[None], scale[None], torch.ones(1, 128))
    exact = nvfp4.decode_e2m1_torch(codes) * scale.float().repeat_interleave(16, 1)
    actual = linear(torch.eye(64).bfloat16(), matrix)
    assert torch.equal(actual.T.float(), exact)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("tokens", "rows", "columns"), SHAPES)
def test_linear(interpreted: None, tokens: int, rows: int, columns: int, packed: bool) -> None:
    weight, exact = random_weight(rows, columns, packed)
    x = random_rows(tokens, columns)
    assert_near(linear(x, weight), x.double() @ exact.T)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("tokens", "rows", "columns"), SHAPES)
def test_gated(interpreted: None, tokens: int, rows: int, columns: int, packed: bool) -> None:
    weight, exact = random_weight(rows, columns, packed)
    x = random_rows(tokens, columns)
    both = x.double() @ exact.T
    assert_near(linear_gated(x, weight), gelu(both[:, 0::2], approximate="tanh") * both[:, 1::2])


def rotated(head: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    low, high = head.chunk(2)
    return torch.cat((low * cosine - high * sine, high * cosine + low * sine))


@pytest.mark.parametrize(
    ("tokens", "heads", "num_keys", "head_dim", "has_values", "packed"),
    [
        (5, 4, 2, 16, True, False),
        (1, 2, 1, 32, False, False),
        (33, 2, 2, 64, True, False),
        (17, 2, 1, 96, False, False),
        (20, 2, 1, 64, True, True),
        (3, 1, 1, 256, False, True),
    ],
)
def test_heads(
    interpreted: None,
    tokens: int,
    heads: int,
    num_keys: int,
    head_dim: int,
    has_values: bool,
    packed: bool,
) -> None:
    rows = (heads + num_keys * (2 if has_values else 1)) * head_dim
    weight, exact = random_weight(rows, 48, packed)
    x = random_rows(tokens, 48)
    generator = torch.Generator().manual_seed(3)
    norms = (1 + 0.2 * torch.randn(2, head_dim, generator=generator)).bfloat16()
    angles = 6 * torch.rand(tokens, head_dim // 2, generator=generator)
    slots = torch.randperm(tokens + 4, generator=generator)[:tokens]
    keys, values = torch.full((2, tokens + 4, num_keys, head_dim), 9.0).bfloat16().unbind()
    query = linear_heads(
        x,
        weight,
        norms[0],
        norms[1],
        angles.cos(),
        angles.sin(),
        keys,
        values,
        slots,
        heads,
        1e-6,
    )
    product = (x.double() @ exact.T).view(tokens, -1, head_dim)
    product *= (product.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    expected = torch.zeros(tokens, heads + 2 * num_keys, head_dim, dtype=torch.float64)
    for token in range(tokens):
        turn = angles[token].cos().double(), angles[token].sin().double()
        for head in range(heads + num_keys):
            norm = norms[0 if head < heads else 1].double()
            expected[token, head] = rotated(product[token, head] * norm, *turn)
        expected[token, heads + num_keys :] = product[token, -num_keys:]
    actual = torch.cat((query, keys[slots], values[slots]), 1)
    assert_near(actual, expected, rms=0.004)
    for cache in (keys, values):
        cache[slots] = 9.0
        assert (cache == 9.0).all()


def test_packed_heads_must_fill_fragments(interpreted: None) -> None:
    weight, _ = random_weight(48, 64, packed=True)
    keys, values = torch.zeros(2, 1, 1, 16).bfloat16().unbind()
    norm, turn = torch.ones(16).bfloat16(), torch.ones(1, 8)
    with pytest.raises(ValueError, match="multiple of 32 dimensions, not 16"):
        slots = torch.zeros(1, dtype=torch.int64)
        x = random_rows(1, 64)
        linear_heads(x, weight, norm, norm, turn, turn, keys, values, slots, 1, 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokens", [1, 16, 256, 1024])
def test_on_a_gpu_at_the_real_size(tokens: int, packed: bool) -> None:
    cpu_weight, _ = random_weight(4224, 2816, packed)
    weight: Weight
    if isinstance(cpu_weight, Tensor):
        weight = cpu_weight.cuda()
    else:
        parts = (part.cuda() for part in nvfp4.unpack_matrix(cpu_weight))
        weight = nvfp4.pack_matrix(*parts)
    x = random_rows(tokens, 2816).cuda()
    for operation, reference in ((linear, linear_torch), (linear_gated, linear_gated_torch)):
        assert_near(operation(x, weight), reference(x.double(), weight))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 256, 1024])
@pytest.mark.parametrize(("num_keys", "head_dim", "has_values"), [(8, 256, True), (2, 512, False)])
def test_heads_on_a_gpu(tokens: int, num_keys: int, head_dim: int, has_values: bool) -> None:
    weight, _ = random_weight((16 + num_keys * (1 + has_values)) * head_dim, 2816, packed=False)
    assert isinstance(weight, Tensor)
    x, weight = random_rows(tokens, 2816).cuda(), weight.cuda()
    norm = torch.ones(head_dim, device="cuda").bfloat16()
    angles = torch.rand(tokens, head_dim // 2, device="cuda")
    cosine, sine, slots = angles.cos(), angles.sin(), torch.arange(tokens, device="cuda").flip(0)
    keys, values = torch.zeros(2, tokens, num_keys, head_dim, device="cuda").bfloat16().unbind()
    exact = torch.zeros(2, tokens, num_keys, head_dim, device="cuda", dtype=torch.float64)
    query = linear_heads(
        x, weight, norm, norm, cosine, sine, keys, values, slots, num_heads=16, eps=1e-6
    )
    expected = linear_heads_torch(
        x.double(), weight, norm, norm, cosine, sine, exact[0], exact[1], slots, 16, 1e-6
    )
    assert_near(query, expected, rms=0.004)
    assert_near(torch.stack((keys, values)), exact, rms=0.004)
