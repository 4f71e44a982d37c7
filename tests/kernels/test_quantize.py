"""NVFP4 on the device: scales and codes, bit for bit."""

import pytest
import torch
from torch import Tensor

from hybrid.kernels.nvfp4 import dequantize_torch, pack_torch, quantize_torch
from hybrid.kernels.quantize import dequantize, quantize, quantize_rows, quantize_rows_torch

SCALES = torch.arange(256, dtype=torch.uint8)
CODES = torch.arange(16, dtype=torch.uint8)


def bits(tensor: Tensor) -> Tensor:
    return tensor.cpu().flatten().view(torch.uint8)


def matrices() -> dict[str, Tensor]:
    """Weights whose blocks have every size there is, from nothing to the largest."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(3, 40, 48, generator=generator)
    sizes = torch.rand(3, 40, 48, generator=generator)
    halves = torch.randint(-48, 49, (2, 64, 32), generator=generator) / 4
    return {
        "normal": normal,
        "one matrix": normal[0],
        "bfloat16": normal.bfloat16(),
        "blocks of all sizes": normal * 10 ** (8 * sizes[..., :1] - 8),
        "elements of all sizes": normal * 10 ** (8 * sizes - 8),
        "ties": halves,
        "zeros": torch.zeros(2, 4, 16),
        "negative zeros": torch.where(normal > 0.5, normal, -0.0),
        "transposed": normal.transpose(0, 1),
    }


def rows_one_by_one(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every row [T, K] as a matrix of its own, K a multiple of 64."""
    packed, scales, factors = quantize_torch(x[:, None])
    return packed[:, 0], scales[:, 0], factors


def test_a_row_of_activations_is_quantized_as_a_matrix_of_one_row() -> None:
    x = torch.randn(7, 128, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    for actual, expected in zip(quantize_rows_torch(x), rows_one_by_one(x), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(bits(actual), bits(expected))


def test_rows_are_filled_up_to_whole_tiles() -> None:
    packed, scales, factors = quantize_rows_torch(torch.full((3, 80), 2.0))
    assert (packed.shape, scales.shape, factors.shape) == ((3, 64), (3, 8), (3,))
    assert (packed[:, :40] == 0x77).all() and not packed[:, 40:].any()
    assert scales[0].tolist() == [448.0] * 5 + [0.0] * 3


def test_rows_of_next_to_nothing_count_as_zero() -> None:
    packed, scales, factors = quantize_rows_torch(torch.full((1, 64), 1e-40))
    assert not packed.any() and not scales.float().any()
    assert factors.tolist() == [1.0]


def test_columns_must_fill_their_blocks() -> None:
    with pytest.raises(ValueError, match="multiple of 16 columns, not 24"):
        quantize_rows_torch(torch.zeros(4, 24))


@pytest.mark.usefixtures("interpreted")
def test_kernels_refuse_the_same() -> None:
    for operation in (quantize_rows, quantize):
        with pytest.raises(ValueError, match="multiple of 16 columns, not 24"):
            operation(torch.zeros(4, 24))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("factor", [1.0, 0.37, 2.0**-20])
def test_kernels_decode_all_codes_under_all_scales(factor: float) -> None:
    packed = pack_torch(CODES.expand(256, 16))
    scales = SCALES.view(torch.float8_e4m3fn)[:, None]
    scale_2 = torch.tensor(factor)
    actual, expected = (op(packed, scales, scale_2) for op in (dequantize, dequantize_torch))
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(bits(actual.nan_to_num()), bits(expected.nan_to_num()))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", matrices())
def test_kernels_quantize_bit_for_bit(name: str) -> None:
    weight = matrices()[name]
    for actual, expected in zip(quantize(weight), quantize_torch(weight), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(bits(actual), bits(expected))
    decoded = dequantize(*quantize(weight))
    assert torch.equal(bits(decoded), bits(dequantize_torch(*quantize_torch(weight))))


@pytest.mark.usefixtures("interpreted")
def test_kernels_quantize_activations_bit_for_bit() -> None:
    for weight in matrices().values():
        x = weight.flatten(0, -2)
        for actual, expected in zip(quantize_rows(x), quantize_rows_torch(x), strict=True):
            assert actual.dtype == expected.dtype and actual.shape == expected.shape
            assert torch.equal(bits(actual), bits(expected))


@pytest.mark.usefixtures("interpreted")
def test_kernels_round_every_scale_as_torch_does() -> None:
    """Largest values on, just below and just above every scale and every midpoint of two."""
    scales = SCALES[:0x7F].view(torch.float8_e4m3fn).float()
    exact = torch.cat((scales, (scales[1:] + scales[:-1]) / 2))
    wanted = torch.cat([exact, *(exact.nextafter(torch.tensor(end)) for end in (0.0, 1e9))])
    x = torch.zeros(len(wanted), 2, 16)
    x[:, 0] = 6 * 448  # a factor of one
    x[:, 1, 3] = wanted.clamp(max=448) * 6
    pairs = zip(quantize_rows(x.flatten(1)), quantize_rows_torch(x.flatten(1)), strict=True)
    for actual, expected in pairs:
        assert torch.equal(bits(actual), bits(expected))


@pytest.mark.usefixtures("interpreted")
def test_kernels_quantize_no_rows() -> None:
    assert [part.shape for part in quantize_rows(torch.zeros(0, 64))] == [(0, 32), (0, 4), (0,)]


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu() -> None:
    """Against references on the CPU: on CUDA, torch itself divides by numbers inexactly."""
    weight = torch.randn(4, 1408, 2816, generator=torch.Generator().manual_seed(0)) * 0.02
    for dtype in (torch.float32, torch.bfloat16):
        quantized, expected = quantize(weight.to("cuda", dtype)), quantize_torch(weight.to(dtype))
        for actual, reference in zip(quantized, expected, strict=True):
            assert torch.equal(bits(actual), bits(reference))
        assert torch.equal(dequantize(*quantized).cpu(), dequantize_torch(*expected))
    x = weight[0, :512].bfloat16()
    for actual, reference in zip(quantize_rows(x.cuda()), quantize_rows_torch(x), strict=True):
        assert torch.equal(bits(actual), bits(reference))
