"""Four bits by four bits: matrices in the tensor core's form, and products with rounded rows."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from hybrid.kernels import native, nvfp4
from hybrid.kernels.experts import experts, experts_torch
from hybrid.kernels.linear import linear, linear_gated, linear_gated_torch, linear_torch
from hybrid.kernels.native import NativeMatrix, dense_native, native_matrix, unpack_native
from hybrid.kernels.quantize import quantize_rows_torch, round_rows_torch
from tests.kernels.assignments import choices


def random_matrix(matrices: int, rows: int, columns: int) -> NativeMatrix:
    """Random weights with a factor of its own for every row."""
    generator = torch.Generator().manual_seed(rows * columns)
    weight = torch.randn(matrices, rows, columns, generator=generator) * columns**-0.5
    codes, scale, scale_2 = nvfp4.quantize_torch(weight)
    factors = scale_2[:, None] * (0.5 + torch.rand(matrices, rows, generator=generator))
    return native_matrix(nvfp4.pack_matrix(codes, scale, factors))


def random_rows(tokens: int, columns: int) -> Tensor:
    """Rows of very different sizes, one of them zero."""
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, columns, generator=generator)
    x *= 10 ** (4 * torch.rand(tokens, 1, generator=generator) - 2)
    x[tokens // 2] = 0
    return x.bfloat16()


def assert_near(actual: Tensor, exact: Tensor) -> None:
    """Within one rounding to bfloat16 of a row's largest number, and 0.3 % on average.

    Four-bit products are exact in float32, so nothing but sums and the output are rounded.
    """
    assert actual.dtype == torch.bfloat16 and not actual.isnan().any()
    error = (actual.double() - exact).abs()
    size = exact.abs().amax(-1, keepdim=True)
    assert (error <= 2**-8 * exact.abs() + 1e-6 * size).all()
    assert error.square().sum().sqrt() <= 0.003 * exact.square().sum().sqrt()


@pytest.mark.parametrize(
    ("matrices", "rows", "columns"), [(1, 128, 64), (3, 200, 176), (2, 1, 16), (1, 257, 704)]
)
def test_conversion_keeps_every_bit(matrices: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(256, (matrices, rows, columns // 2), generator=generator).byte()
    scales = torch.randint(127, (matrices, rows, columns // 16), generator=generator).byte()
    factors = torch.rand(matrices, rows, generator=generator)
    packed = nvfp4.pack_matrix(codes, scales.view(torch.float8_e4m3fn), factors)
    matrix = native_matrix(packed)
    assert (matrix.rows, matrix.columns) == (rows, columns)
    assert matrix.codes.shape == (*packed.words.shape[:-1], 32)
    assert matrix.scales.shape == packed.scales.shape
    assert matrix.nbytes == packed.nbytes
    for found, expected in zip(unpack_native(matrix), nvfp4.unpack_matrix(packed), strict=True):
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(dense_native(matrix, torch.float64), nvfp4.dense(packed, torch.float64))
    again = nvfp4.pack_matrix(*unpack_native(matrix))
    assert torch.equal(again.words, packed.words)


def test_a_byte_holds_neighbours_the_even_column_low() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(1, 1, 4)
    scales = torch.ones(1, 1, 4).to(torch.float8_e4m3fn)
    matrix = nvfp4.pack_matrix(nvfp4.pack_torch(codes), scales, torch.ones(1, 1))
    row = native_matrix(matrix).codes[0, 0, 0, 0]
    assert row[:3].tolist() == [0x10, 0x32, 0x54]


def test_rounded_rows_are_off_by_nine_percent() -> None:
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = (round_rows_torch(x) - x).norm() / x.norm()
    assert 0.08 < error < 0.1


def test_the_reference_is_rounded_rows_times_decoded_weights() -> None:
    matrix, x = random_matrix(1, 40, 48), random_rows(5, 48).double()
    codes, scales, factors = quantize_rows_torch(x)
    rows = nvfp4.decode_e2m1_torch(nvfp4.unpack_torch(codes)).double()
    rows *= scales.double().repeat_interleave(16, 1) * factors[:, None].double()
    exact = rows[:, :48] @ dense_native(matrix, torch.float64)[0].T
    torch.testing.assert_close(linear_torch(x, matrix), exact, rtol=1e-12, atol=1e-12)
    gated = gelu(exact[:, 0::2], approximate="tanh") * exact[:, 1::2]
    torch.testing.assert_close(linear_gated_torch(x, matrix), gated, rtol=1e-6, atol=1e-6)


@pytest.fixture(params=[100, 120])
def kernels(
    interpreted: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels with the settings of a B200 and of an RTX 5090."""
    monkeypatch.setattr(native, "architecture", lambda device: request.param)


SHAPES = [(1, 64, 64), (16, 200, 80), (20, 130, 192), (40, 128, 320), (70, 32, 48)]


@pytest.mark.parametrize(("tokens", "rows", "columns"), SHAPES)
def test_linear(kernels: None, tokens: int, rows: int, columns: int) -> None:
    matrix, x = random_matrix(1, rows, columns), random_rows(tokens, columns)
    assert_near(linear(x, matrix), linear_torch(x.double(), matrix))


@pytest.mark.parametrize(("tokens", "rows", "columns"), SHAPES)
def test_gated(kernels: None, tokens: int, rows: int, columns: int) -> None:
    matrix, x = random_matrix(1, rows, columns), random_rows(tokens, columns)
    assert_near(linear_gated(x, matrix), linear_gated_torch(x.double(), matrix))


def test_every_code_under_every_scale(interpreted: None) -> None:
    """Each on both sides, from the smallest scale, 2^-9, to the largest, 448."""
    scale_bytes = torch.arange(128, dtype=torch.uint8).clamp(max=126)  # 127 is NaN
    codes = torch.arange(16, dtype=torch.uint8).repeat(128, 4)
    scales = scale_bytes[:, None].repeat(1, 4).view(torch.float8_e4m3fn)
    matrix = native_matrix(
        nvfp4.pack_matrix(nvfp4.pack_torch(codes)[None], scales[None], torch.ones(1, 128))
    )
    exact = nvfp4.decode_e2m1_torch(codes).double()
    exact *= scales.double().repeat_interleave(16, 1)
    assert torch.equal(linear(torch.eye(64).bfloat16(), matrix).T.double(), exact)
    # A row's first number, 2688, is the largest there can be; every other block has a scale of
    # its own, of which it holds every code.
    blocks = exact.view(32, 4, 4, 16)[:, :, 0].clone()
    x = torch.cat((torch.full((32, 1, 16), 2688.0), blocks), 1).flatten(1)[:, :80].bfloat16()
    assert torch.equal(round_rows_torch(x), x)
    one = torch.eye(80)[None] * 2
    identity = native_matrix(nvfp4.pack_matrix(*_exactly(one)))
    assert torch.equal(linear(x, identity), 2 * x)


def _exactly(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of e2m1 numbers with scales and factors of one."""
    scales = torch.ones(*weight.shape[:-1], weight.shape[-1] // 16).to(torch.float8_e4m3fn)
    codes = nvfp4.pack_torch(nvfp4.encode_e2m1_torch(weight))
    return codes, scales, torch.ones(weight.shape[:-1])


@pytest.mark.parametrize(
    ("kind", "tokens", "num_experts", "top_k", "hidden", "intermediate"),
    [
        ("spread", 13, 4, 2, 128, 64),
        ("spread", 1, 5, 3, 64, 128),
        ("spread", 7, 3, 2, 80, 48),
        ("one", 17, 3, 1, 64, 64),
        ("few", 33, 4, 2, 48, 16),
        ("spread", 40, 2, 2, 64, 192),
    ],
)
def test_experts(
    kernels: None,
    kind: str,
    tokens: int,
    num_experts: int,
    top_k: int,
    hidden: int,
    intermediate: int,
) -> None:
    """Experts of all tokens, of one, of none; the reference's gated rows are rounded as its own."""
    gate_up = random_matrix(num_experts, 2 * intermediate, hidden)
    down = random_matrix(num_experts, hidden, intermediate)
    x = random_rows(tokens, hidden)
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(tokens, top_k, generator=generator)
    chosen = choices(kind, tokens, num_experts, top_k)
    actual = experts(x, chosen, weights, gate_up, down)
    expected = experts_torch(x, chosen, weights, gate_up, down).double()
    assert (actual.shape, actual.dtype) == ((tokens, top_k, hidden), torch.bfloat16)
    assert not actual.isnan().any()
    # A gated number between two codes may fall to the other one if it is a rounding off.
    rows, exact = actual.double().flatten(0, 1), expected.flatten(0, 1)
    error = (rows - exact).norm(dim=-1)
    assert (error <= 0.02 * exact.norm(dim=-1)).all()
    assert (error <= 0.004 * exact.norm(dim=-1)).double().mean() >= 0.7


def test_forms_may_be_mixed(interpreted: None) -> None:
    """A checkpoint may quantize one of an expert's two matrices."""
    gate_up = random_matrix(3, 64, 64)
    down = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    x, weights = random_rows(6, 64), torch.ones(6, 2)
    chosen = torch.tensor([[0, 1], [1, 2], [2, 0]] * 2, dtype=torch.int32)
    actual = experts(x, chosen, weights, gate_up, down).double()
    expected = experts_torch(x, chosen, weights, gate_up, down).double()
    assert ((actual - expected).norm(dim=-1) <= 0.005 * expected.norm(dim=-1)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16, 256, 1024])
def test_on_a_gpu_at_the_real_size(tokens: int) -> None:
    if torch.cuda.get_device_capability()[0] not in (10, 12):
        pytest.skip("only a Blackwell GPU has four-bit products; elsewhere the interpreter tests")
    packed = (
        torch.randint(256, (1, 2816, 1056), dtype=torch.uint8, device="cuda"),
        (torch.randint(16, (1, 2816, 132), dtype=torch.uint8, device="cuda") + 0x30).view(
            torch.float8_e4m3fn
        ),
        torch.full((1, 2816), 0.01, device="cuda"),
    )
    matrix = native_matrix(nvfp4.pack_matrix(*packed))
    x = random_rows(tokens, 2112).cuda()
    assert_near(linear(x, matrix), linear_torch(x.double(), matrix))
    assert_near(linear_gated(x, matrix), linear_gated_torch(x.double(), matrix))
