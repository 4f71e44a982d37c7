"""RMS normalisation: ``x / sqrt(mean(x^2) + eps)``, over the last dimension, in float32.

Gemma 4 multiplies by the weight as it is, not by one plus the weight. Norms that feed a linear
layer carry no weight here: it is folded into the layer's columns when the model is loaded.

The engine's norms come with the sums around them, so that a residual stream is read and written
once a layer half: 5 rows of H numbers in and out after attention, k + 4 after the experts.

The CPU stack's references spell the norm out in four small operations because that takes 6 us where
`torch.nn.functional.rms_norm` takes 11 us (32 x 128 float32, one CPU core), 31 times a pass.
"""

from typing import Any

import torch
from torch import Tensor

from hybrid.kernels.arithmetic import constant
from hybrid.kernels.launch import launch, uses_triton


def rms_norm_torch(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x`` [..., D] normalised over D and scaled by ``weight`` [D]; dtype of ``x``."""
    normalised = x * _inverse_rms(x, eps)
    if weight is not None:
        normalised.mul_(weight)
    return normalised if x.dtype == torch.float32 else normalised.to(x.dtype)


def add_rms_norm_torch(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``residual + rms_norm(x, weight)``, all [..., D]; dtype of ``x``."""
    return torch.addcmul(residual, rms_norm_torch(x, None, eps), weight)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.addcmul(constant(eps, x.device), norm, norm, value=1 / x.shape[-1]).rsqrt_()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """As `rms_norm_torch` for ``x`` [T, H], on a GPU one program a row."""
    if not uses_triton(x):
        return rms_norm_torch(x, weight, eps)
    from hybrid.kernels.device.norms import normalise

    output = torch.empty_like(x)
    _launch(normalise, x, output, weight, EPS=eps, HAS_WEIGHT=weight is not None)
    return output


def attention_residual(
    residual: Tensor,
    attended: Tensor,
    post_norm: Tensor,
    dense_norm: Tensor,
    expert_norm: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What attention makes of the residual stream, and the inputs of the branches that follow.

    ``x = residual + rms_norm(attended, post_norm)``, ``rms_norm(x, dense_norm)`` and, for a layer
    with experts, ``rms_norm(x, expert_norm)``; all [T, H] in the dtype of ``residual``.
    """
    if not uses_triton(residual):
        return attention_residual_torch(residual, attended, post_norm, dense_norm, expert_norm, eps)
    from hybrid.kernels.device.norms import add_attention

    x, dense_input = torch.empty_like(residual), torch.empty_like(residual)
    expert_input = None if expert_norm is None else torch.empty_like(residual)
    _launch(
        add_attention,
        residual,
        attended,
        x,
        dense_input,
        dense_input if expert_input is None else expert_input,
        post_norm,
        dense_norm,
        dense_norm if expert_norm is None else expert_norm,
        EPS=eps,
        HAS_EXPERTS=expert_norm is not None,
    )
    return x, dense_input, expert_input


def attention_residual_torch(
    residual: Tensor,
    attended: Tensor,
    post_norm: Tensor,
    dense_norm: Tensor,
    expert_norm: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `attention_residual`; sums and norms in float32 at least, each result rounded once."""
    x = (_wide(residual) + _normalised(attended, post_norm, eps)).to(residual.dtype)
    dense_input = _normalised(x, dense_norm, eps).to(x.dtype)
    if expert_norm is None:
        return x, dense_input, None
    return x, dense_input, _normalised(x, expert_norm, eps).to(x.dtype)


def feed_forward_residual(
    residual: Tensor,
    dense: Tensor,
    mixed: Tensor | None,
    dense_norm: Tensor | None,
    expert_norm: Tensor | None,
    post_norm: Tensor,
    scalar: float,
    next_norm: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The residual stream after a layer, and the next layer's normalised input, both [T, H].

    ``x = (residual + rms_norm(h, post_norm)) * scalar`` and ``rms_norm(x, next_norm)``, where h is
    ``dense`` [T, H], or with experts ``rms_norm(dense, dense_norm) + rms_norm(sum of mixed,
    expert_norm)`` with their weighted outputs ``mixed`` [T, k, H].
    """
    if not uses_triton(residual):
        return feed_forward_residual_torch(
            residual, dense, mixed, dense_norm, expert_norm, post_norm, scalar, next_norm, eps
        )
    from hybrid.kernels.device.norms import add_feed_forward

    x, next_input = torch.empty_like(residual), torch.empty_like(residual)
    has_experts = mixed is not None
    _launch(
        add_feed_forward,
        residual,
        dense,
        dense if mixed is None else mixed,
        x,
        next_input,
        post_norm if dense_norm is None else dense_norm,
        post_norm if expert_norm is None else expert_norm,
        post_norm,
        next_norm,
        scalar=scalar,
        EPS=eps,
        TOP_K=0 if mixed is None else mixed.shape[1],
        HAS_EXPERTS=has_experts,
    )
    return x, next_input


def feed_forward_residual_torch(
    residual: Tensor,
    dense: Tensor,
    mixed: Tensor | None,
    dense_norm: Tensor | None,
    expert_norm: Tensor | None,
    post_norm: Tensor,
    scalar: float,
    next_norm: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """As `feed_forward_residual`; sums and norms in float32 at least, each result rounded once."""
    h = _wide(dense)
    if mixed is not None and dense_norm is not None and expert_norm is not None:
        h = _normalised(dense, dense_norm, eps)
        h = h + _normalised(_wide(mixed).sum(1), expert_norm, eps)
    x = ((_wide(residual) + _normalised(h, post_norm, eps)) * scalar).to(residual.dtype)
    return x, _normalised(x, next_norm, eps).to(x.dtype)


def _launch(kernel: Any, first: Tensor, *tensors: Tensor | None, **constants: Any) -> None:
    """One program a row of ``first`` [T, H]; a row is held whole, 16 numbers a thread."""
    rows, width = first.shape
    block = 1 << (width - 1).bit_length()
    num_warps = max(1, min(8, block // 512))
    launch(
        kernel, (rows,), first, *tensors, **constants, H=width, BLOCK_H=block, num_warps=num_warps
    )


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = _wide(x)
    return wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
