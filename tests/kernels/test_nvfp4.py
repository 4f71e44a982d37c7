"""The NVFP4 format, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.kernels import nvfp4

CODES = torch.arange(16, dtype=torch.uint8)
E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
FINITE_SCALES = E4M3[torch.isfinite(E4M3.float())]


def test_codes_decode_to_the_published_values() -> None:
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert nvfp4.decode_e2m1_torch(CODES).tolist() == magnitudes + [-m for m in magnitudes]


def test_every_code_survives_a_round_trip() -> None:
    assert torch.equal(nvfp4.encode_e2m1_torch(nvfp4.decode_e2m1_torch(CODES)), CODES)


@pytest.mark.parametrize(
    ("value", "nearest"),
    [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0)],
)
def test_ties_go_to_the_even_code(value: float, nearest: float) -> None:
    values = torch.tensor([value, -value])
    assert nvfp4.decode_e2m1_torch(nvfp4.encode_e2m1_torch(values)).tolist() == [nearest, -nearest]


@given(st.floats(-10, 10, width=32))
@settings(deadline=None)
def test_a_code_is_a_nearest_value(value: float) -> None:
    decoded = nvfp4.decode_e2m1_torch(nvfp4.encode_e2m1_torch(torch.tensor([value]))).item()
    assert abs(decoded - value) == min(
        abs(sign * v - value) for v in nvfp4.E2M1_VALUES for sign in (1, -1)
    )


def test_the_even_column_is_in_the_low_nibble() -> None:
    packed = nvfp4.pack_torch(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8))
    assert packed.tolist() == [[0x21, 0x0F]]
    assert nvfp4.unpack_torch(packed).tolist() == [[1, 2, 15, 0]]


def test_all_codes_under_all_finite_scales_decode_exactly() -> None:
    rows = CODES.expand(len(FINITE_SCALES), 16).contiguous()
    scale_2 = torch.tensor(2.0**-9)
    decoded = nvfp4.dequantize_torch(nvfp4.pack_torch(rows), FINITE_SCALES[:, None], scale_2)
    exact = nvfp4.decode_e2m1_torch(CODES).double() * FINITE_SCALES.double()[:, None] * 2.0**-9
    assert torch.equal(decoded.double(), exact)


def test_code_times_scale_is_exact_in_bfloat16() -> None:
    products = nvfp4.decode_e2m1_torch(CODES) * FINITE_SCALES.float()[:, None]
    assert torch.equal(products.bfloat16().float(), products)


def test_quantizing_uses_the_whole_range() -> None:
    weight = torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(0))
    packed, scale, scale_2 = nvfp4.quantize_torch(weight)
    assert (packed.dtype, scale.dtype, scale_2.dtype) == (
        torch.uint8,
        torch.float8_e4m3fn,
        torch.float32,
    )
    assert (packed.shape, scale.shape, scale_2.shape) == ((3, 32, 32), (3, 32, 4), (3,))
    assert scale.float().amax((-2, -1)).tolist() == [448.0] * 3
    decoded = nvfp4.dequantize_torch(packed, scale, scale_2)
    # A block's step is a sixth of its maximum at most, so an error is at most half the widest gap.
    bound = weight.reshape(3, 32, 4, 16).abs().amax(-1, keepdim=True) / 6 * 1.07
    assert ((decoded - weight).reshape(3, 32, 4, 16).abs() <= bound).all()


def test_quantizing_what_was_decoded_changes_nothing() -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    decoded = nvfp4.dequantize_torch(*nvfp4.quantize_torch(weight))
    assert torch.equal(nvfp4.dequantize_torch(*nvfp4.quantize_torch(decoded)), decoded)


def test_zeros_stay_zero_without_nans() -> None:
    weight = torch.zeros(2, 4, 32)
    weight[1, 0, 0] = 1.0
    assert torch.equal(nvfp4.dequantize_torch(*nvfp4.quantize_torch(weight)), weight)


def test_columns_must_fill_their_blocks() -> None:
    with pytest.raises(ValueError, match="multiple of 16 columns, not 24"):
        nvfp4.quantize_torch(torch.zeros(4, 24))
