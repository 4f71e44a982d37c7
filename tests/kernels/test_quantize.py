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


def test_an_activation_is_quantised_as_a_weight_of_the_same_scale_is() -> None:
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    packed, scales, input_scale = quantize_torch(x)
    rows, row_scales = quantize_rows_torch(x, input_scale)
    assert torch.equal(rows, packed)
    assert torch.equal(bits(row_scales), bits(scales))


def test_blocks_beyond_the_scale_saturate() -> None:
    x = torch.full((1, 16), -1e9)
    packed, scales = quantize_rows_torch(x, torch.tensor(0.5))
    assert dequantize_torch(packed, scales, torch.tensor(0.5)).tolist() == [[-1344.0] * 16]


def test_columns_must_fill_their_blocks() -> None:
    with pytest.raises(ValueError, match="multiple of 16 columns, not 24"):
        quantize_rows_torch(torch.zeros(4, 24), torch.ones(()))


@pytest.mark.usefixtures("interpreted")
def test_kernels_refuse_the_same() -> None:
    for operation in (lambda x: quantize_rows(x, torch.ones(())), quantize):
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
def test_kernels_quantise_bit_for_bit(name: str) -> None:
    weight = matrices()[name]
    for actual, expected in zip(quantize(weight), quantize_torch(weight), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(bits(actual), bits(expected))
    decoded = dequantize(*quantize(weight))
    assert torch.equal(bits(decoded), bits(dequantize_torch(*quantize_torch(weight))))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("input_scale", [2.0**-20, 3e-4, 0.01, 0.5, 100.0])
def test_kernels_quantise_activations_bit_for_bit(input_scale: float) -> None:
    """Whether most blocks saturate or most scales vanish."""
    for weight in matrices().values():
        x = weight.flatten(0, -2)
        both = (op(x, torch.tensor(input_scale)) for op in (quantize_rows, quantize_rows_torch))
        for actual, expected in zip(*both, strict=True):
            assert torch.equal(bits(actual), bits(expected))


@pytest.mark.usefixtures("interpreted")
def test_kernels_round_every_scale_as_torch_does() -> None:
    """Largest values on, just below and just above every scale and every midpoint of two."""
    scales = SCALES[:0x7F].view(torch.float8_e4m3fn).float()
    exact = torch.cat((scales, (scales[1:] + scales[:-1]) / 2))
    wanted = torch.cat([exact, *(exact.nextafter(torch.tensor(end)) for end in (0.0, 1e9))])
    x = torch.zeros(len(wanted), 16)
    x[:, 3] = wanted * 6
    for actual, expected in zip(
        quantize_rows(x, torch.ones(())), quantize_rows_torch(x, torch.ones(())), strict=True
    ):
        assert torch.equal(bits(actual), bits(expected))


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu() -> None:
    """Against references on the CPU: on CUDA, torch itself divides by numbers inexactly."""
    weight = torch.randn(4, 1408, 2816, generator=torch.Generator().manual_seed(0)) * 0.02
    for dtype in (torch.float32, torch.bfloat16):
        quantized, expected = quantize(weight.to("cuda", dtype)), quantize_torch(weight.to(dtype))
        for actual, reference in zip(quantized, expected, strict=True):
            assert torch.equal(bits(actual), bits(reference))
        assert torch.equal(dequantize(*quantized).cpu(), dequantize_torch(*expected))
    x, input_scale = weight[0, :512].bfloat16(), torch.tensor(3e-5)
    both = quantize_rows(x.cuda(), input_scale.cuda()), quantize_rows_torch(x, input_scale)
    for actual, reference in zip(*both, strict=True):
        assert torch.equal(bits(actual), bits(reference))
