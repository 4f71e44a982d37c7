"""Rounding weights and activations to four bits, and back."""

from functools import partial

import torch

from hybrid.kernels.gate.cases.case import CANVAS, EXPERT_SIZE, EXPERTS, HIDDEN, Case, meta
from hybrid.kernels.quantize import dequantize, quantize, quantize_rows


def quantizing_cases() -> list[Case]:
    """The size of an expert's matrices, and a canvas's activations."""
    weights, x = meta(EXPERTS, 2 * EXPERT_SIZE, HIDDEN), meta(CANVAS, HIDDEN)
    packed = meta(EXPERTS, 2 * EXPERT_SIZE, HIDDEN // 2, dtype=torch.uint8)
    scales = meta(EXPERTS, 2 * EXPERT_SIZE, HIDDEN // 16, dtype=torch.float8_e4m3fn)
    scale_2 = meta(EXPERTS, dtype=torch.float32)
    return [
        Case("quantize", partial(quantize, weights)),
        Case("dequantize", partial(dequantize, packed, scales, scale_2)),
        Case("quantize rows", partial(quantize_rows, x)),
    ]
