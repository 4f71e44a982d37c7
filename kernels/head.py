"""The output head: logits over the vocabulary, tied to the embedding and softly capped."""

from torch import Tensor
from torch.nn.functional import linear


def head_torch(hidden: Tensor, embedding: Tensor, softcap: float | None) -> Tensor:
    """``cap * tanh(hidden . embedding^T / cap)`` in float32, [..., V]; None caps nothing.

    ``hidden`` [..., H] after the final norm; ``embedding`` [V, H] in its stored, unscaled form.
    """
    logits = linear(hidden, embedding).float()
    if softcap is None:
        return logits
    return logits.mul_(1 / softcap).tanh_().mul_(softcap)
