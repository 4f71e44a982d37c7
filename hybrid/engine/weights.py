"""The weights of a stack in the form in which the engine's kernels read them.

A matrix is in the engine's dtype, or in NVFP4 in the kernels' tiles. Gate and up rows alternate, so
that one kernel holds both numbers that it multiplies.
"""

from dataclasses import dataclass

from torch import Tensor

from hybrid.gemma import weights as stack
from hybrid.kernels.native import NativeMatrix
from hybrid.kernels.nvfp4 import PackedMatrix

# Heads are normalised and rotated in the kernel that multiplies: no native one does that.
HeadMatrix = Tensor | PackedMatrix
Matrix = HeadMatrix | NativeMatrix


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Norms [H], [D] and [D]; `query_key_value` [heads * D, H]; `output` [H, query heads * D]."""

    input_norm: Tensor
    query_key_value: HeadMatrix
    query_norm: Tensor
    key_norm: Tensor
    output: Matrix
    post_norm: Tensor


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """`gate_up` E x [2 * I, H], gate and up rows alternating; `down` E x [H, I].

    `router` [E, H] with `router_scale` [H]; `expert_scale` float32 [E]; norms [H].
    """

    input_norm: Tensor
    router: Tensor
    router_scale: Tensor
    expert_scale: Tensor
    gate_up: Matrix
    down: Matrix
    dense_norm: Tensor
    expert_norm: Tensor


@dataclass(frozen=True, slots=True)
class FeedForwardWeights:
    """`gate_up` [2 * I, H], gate and up rows alternating; `down` [H, I]; norms [H]."""

    input_norm: Tensor
    gate_up: Matrix
    down: Matrix
    post_norm: Tensor
    experts: ExpertWeights | None


@dataclass(frozen=True, slots=True)
class SelfConditioningWeights:
    """The gated MLP on the previous step's soft embedding; `gate_up` rows alternate."""

    pre_norm: Tensor
    gate_up: Matrix
    down: Matrix


LayerWeights = stack.LayerWeights[AttentionWeights, FeedForwardWeights]
EngineWeights = stack.StackWeights[AttentionWeights, FeedForwardWeights, SelfConditioningWeights]
