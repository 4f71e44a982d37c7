"""Arithmetic that the references share, in the form that is fastest on a CPU.

The gate of Gemma 4's feed-forward networks is ``gelu(gate) * up``, gelu in its tanh form. As
``(1 + tanh(z)) / 2 = sigmoid(2 z)``, the gelu is ``gate * sigmoid(2 z)`` with
``2 z = gate * (a + b * gate^2)``. Computed in place that takes 16 us where torch's own gelu and a
product take 32 us (32 x 512 float32, one CPU core).
"""

import math
from functools import cache

import torch
from torch import Tensor

_A = 2 * math.sqrt(2 / math.pi)
_B = 0.044715 * _A


def gelu_gate_torch(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu(gate) * up`` of the inputs' shape and dtype."""
    slope = torch.addcmul(constant(_A, gate.device), gate, gate, value=_B)
    return slope.mul_(gate).sigmoid_().mul_(gate).mul_(up)


@cache
def constant(value: float, device: torch.device) -> Tensor:
    """`value` as a float32 tensor without dimensions, made once.

    Torch wraps a Python number in a new tensor at every operation: `x.mul_(0.9)` takes 2.4 us and
    `x.mul_(constant)` 0.8 us (1 x 128 float32, one CPU core), and a pass has hundreds of them.
    """
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float32, device=device)
