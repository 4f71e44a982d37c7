"""What the weights of both stacks share; they differ in what a matrix is and what is folded in.

`A`, `F` and `S` are the classes of attention, feed-forward and self-conditioning weights. Without
slots: Python 3.11 cannot make an instance of a generic class that is frozen and has slots.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

A = TypeVar("A")
F = TypeVar("F")
S = TypeVar("S")


@dataclass(frozen=True)
class LayerWeights(Generic[A, F]):
    """One layer. The scalars multiply the residual stream at its end, by kind of pass."""

    attention: A
    feed_forward: F
    encode_scalar: float
    denoise_scalar: float


@dataclass(frozen=True)
class StackWeights(Generic[A, F, S]):
    """The whole stack: `embedding` [V, H], `norm` [H]; `self_conditioning` None without canvas.

    `skipped` names the tensors in the files that it has no use for.
    """

    embedding: Tensor
    layers: tuple[LayerWeights[A, F], ...]
    norm: Tensor
    self_conditioning: S | None
    skipped: tuple[str, ...]
