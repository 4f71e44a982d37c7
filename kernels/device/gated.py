"""Device code of the gate: ``gelu(gate) * up`` by a sigmoid, as gated.py has it."""

import triton
import triton.language as tl


@triton.jit
def gelu_gate(gate, up):
    """float32 of the inputs' shape."""
    slope = 1.5957691216057308 + 0.07135481627260025 * gate * gate
    return gate * tl.sigmoid(gate * slope) * up
