"""The output head: logits over the vocabulary, tied to the embedding and softly capped."""

from torch import Tensor
from torch.nn.functional import linear

from hybrid.kernels.constants import constant


def head_torch(hidden: Tensor, embedding: Tensor, softcap: float | None) -> Tensor:
    """``cap * tanh(hidden . embedding^T / cap)`` in float32, [..., V]; None caps nothing.

    ``hidden`` [..., H] after the final norm; ``embedding`` [V, H] in its stored, unscaled form.
    """
    logits = linear(hidden, embedding).float()
    if softcap is None:
        return logits
    shrink, cap = constant(1 / softcap, logits.device), constant(softcap, logits.device)
    return logits.mul_(shrink).tanh_().mul_(cap)
