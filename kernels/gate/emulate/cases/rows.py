"""Norms, residuals, the router, self-conditioning and quantising."""

from functools import partial

import torch
from torch import Tensor

from hybrid.kernels.gate.emulate.cases.case import (
    EXACT,
    ONE_ROUNDING,
    Case,
    Tolerance,
    Trial,
    compare,
    normal,
    plain,
    whole,
)
from hybrid.kernels.norms import (
    attention_residual,
    attention_residual_torch,
    feed_forward_residual,
    feed_forward_residual_torch,
    rms_norm,
)
from hybrid.kernels.nvfp4 import dequantize_torch, quantize_torch
from hybrid.kernels.quantize import dequantize, quantize, quantize_rows, quantize_rows_torch
from hybrid.kernels.route import route, route_torch
from hybrid.kernels.selfcond import condition, condition_torch

_HIDDEN, _EPS = 2816, 1e-6


def row_cases() -> list[Case]:
    """Rows of the model's own width."""
    return [
        Case("norm", _norm),
        Case("attention residual", _attention_residual),
        Case("feed-forward residual", _feed_forward_residual),
        Case("condition", _condition),
        *(Case(f"route, {tokens}", partial(_route, tokens)) for tokens in (1, 20)),
        Case("quantize", _quantize),
        Case("dequantize", _dequantize),
        Case("quantize rows", _quantize_rows),
    ]


def _norm() -> Trial:
    arguments = [normal(3, _HIDDEN), normal(_HIDDEN), _EPS]
    return compare(rms_norm, _exact_norm, arguments, ONE_ROUNDING)


def _exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The formula itself: `rms_norm_torch` sums in float32 whatever it is given."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def _attention_residual() -> Trial:
    x, norms = [normal(3, _HIDDEN) for _ in range(2)], [normal(_HIDDEN) for _ in range(3)]
    return compare(
        attention_residual,
        attention_residual_torch,
        [*x, *norms, _EPS],
        *3 * (Tolerance(relative=2**-7, of_largest=2**-9),),
        widened=(0, 1),
    )


def _feed_forward_residual() -> Trial:
    x, norms = [normal(3, _HIDDEN) for _ in range(2)], [normal(_HIDDEN) for _ in range(4)]
    arguments = [*x, normal(3, 8, _HIDDEN), *norms[:3], 0.5, norms[3], _EPS]
    return compare(
        feed_forward_residual,
        feed_forward_residual_torch,
        arguments,
        *2 * (Tolerance(relative=2**-7, of_largest=2**-9),),
        widened=(0, 1, 2),
    )


def _condition() -> Trial:
    arguments = [whole(300, 5), normal(5, _HIDDEN), normal(300, _HIDDEN), 53.0, _EPS]
    return compare(condition, condition_torch, arguments, ONE_ROUNDING, widened=(1,))


def _route(tokens: int) -> Trial:
    weights = [normal(_HIDDEN), plain(128, _HIDDEN), torch.rand(128)]
    arguments = [normal(tokens, _HIDDEN), *weights, 8, _EPS]
    return compare(route, route_torch, arguments, EXACT, Tolerance(relative=2e-4, absolute=1e-6))


def _quantize() -> Trial:
    return compare(quantize, quantize_torch, [normal(2, 64, 256)], *3 * (EXACT,), widened=())


def _dequantize() -> Trial:
    quantized = quantize_torch(normal(2, 64, 256))
    return compare(dequantize, dequantize_torch, quantized, EXACT, widened=())


def _quantize_rows() -> Trial:
    arguments = [normal(3, _HIDDEN)]
    return compare(quantize_rows, quantize_rows_torch, arguments, *3 * (EXACT,), widened=())
