"""NVFP4 activations: scales and codes, bit for bit."""

import pytest
import torch

from hybrid.kernels.nvfp4 import dequantize_torch
from hybrid.kernels.quantize import quantize_rows_torch


def test_an_activation_is_quantised_as_a_weight_of_the_same_scale_is() -> None:
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    input_scale = x.abs().amax() / (6 * 448)
    packed, scales = quantize_rows_torch(x, input_scale)
    assert scales.float().amax() == 448
    decoded = dequantize_torch(packed, scales, input_scale)
    bound = x.reshape(7, 4, 16).abs().amax(-1, keepdim=True) / 6 * 1.07
    assert ((decoded - x).reshape(7, 4, 16).abs() <= bound).all()


def test_blocks_beyond_the_scale_saturate() -> None:
    x = torch.full((1, 16), -1e9)
    packed, scales = quantize_rows_torch(x, torch.tensor(0.5))
    assert dequantize_torch(packed, scales, torch.tensor(0.5)).tolist() == [[-1344.0] * 16]


def test_columns_must_fill_their_blocks() -> None:
    with pytest.raises(ValueError, match="multiple of 16 columns, not 24"):
        quantize_rows_torch(torch.zeros(4, 24), torch.ones(()))
