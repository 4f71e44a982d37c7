"""RMS normalisation: ``x / sqrt(mean(x^2) + eps)``, over the last dimension.

Gemma 4 multiplies by the weight as it is, not by one plus the weight. Norms that feed a linear
layer carry no weight here: it is folded into the layer's columns when the model is loaded.
"""

from torch import Tensor
from torch.nn.functional import rms_norm


def rms_norm_torch(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x`` [..., D] normalised over D in float32 and scaled by ``weight`` [D]; dtype of ``x``."""
    return rms_norm(x, x.shape[-1:], weight, eps)
