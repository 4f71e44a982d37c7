"""The output head: logits over the vocabulary, tied to the embedding and softly capped.

The reference writes ``tanh(x)`` as ``2 sigmoid(2 x) - 1``, which is as good for logits (off by 7e-6
at most) and takes 19 us where torch's own tanh takes 81 us (32 x 919 float32, one CPU core).
"""

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
    shrink, width = constant(2 / softcap, logits.device), constant(2 * softcap, logits.device)
    return logits.mul_(shrink).sigmoid_().mul_(width).sub_(constant(softcap, logits.device))
