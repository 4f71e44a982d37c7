"""The gate of Gemma 4's feed-forward networks."""

from torch import Tensor
from torch.nn.functional import gelu


def gelu_gate_torch(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu(gate) * up`` with the tanh approximation of gelu; same shape and dtype."""
    return gelu(gate, approximate="tanh") * up
