"""Self-conditioning: a canvas embedding and the signal of the step before, normalised together.

The norm has no weight and applies at a canvas's first step too, where the signal is zero; a causal
pass embeds its tokens without it.
"""

import torch
from torch import Tensor

from hybrid.kernels.launch import launch, uses_triton


def condition(
    token_ids: Tensor, signal: Tensor, embedding: Tensor, scale: float, eps: float
) -> Tensor:
    """``rms_norm(embedding[token_ids] * scale + signal)`` [T, H]; dtype of ``signal``.

    ``token_ids`` int32 [T], ``signal`` [T, H], ``embedding`` [V, H].
    """
    if not uses_triton(signal):
        return condition_torch(token_ids, signal, embedding, scale, eps)
    from hybrid.kernels.device.selfcond import condition_rows

    tokens, hidden_size = signal.shape
    output = torch.empty_like(signal)
    launch(
        condition_rows,
        (tokens,),
        token_ids,
        signal,
        embedding,
        output,
        SCALE=scale,
        EPS=eps,
        H=hidden_size,
        BLOCK_H=1 << (hidden_size - 1).bit_length(),
    )
    return output


def condition_torch(
    token_ids: Tensor, signal: Tensor, embedding: Tensor, scale: float, eps: float
) -> Tensor:
    """As `condition`; in float32, or float64 if the signal is, rounded once at the end."""
    embedded = embedding[token_ids.long()].to(torch.promote_types(signal.dtype, torch.float32))
    summed = embedded * scale + signal
    inverse = (summed.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (summed * inverse).to(signal.dtype)
