"""The operations that a model computes with: kernels, or references where a kernel is wrong.

A reference runs on any device. That is right for operations on few numbers: norms, routing, noise
and acceptance. Products and attention would be too slow, so they have no replacement.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace

from torch import Tensor

from hybrid.kernels.accept import Acceptance, accept, accept_torch
from hybrid.kernels.noise import draw_keys, draw_keys_torch, random_tokens, random_tokens_torch
from hybrid.kernels.norms import (
    attention_residual,
    attention_residual_torch,
    feed_forward_residual,
    feed_forward_residual_torch,
    rms_norm,
    rms_norm_torch,
)
from hybrid.kernels.route import route, route_torch
from hybrid.kernels.selfcond import condition, condition_torch


@dataclass(frozen=True, slots=True)
class Operations:
    """Functions by the names of their kernels."""

    rms_norm: Callable[..., Tensor] = rms_norm
    attention_residual: Callable[..., tuple[Tensor, Tensor, Tensor | None]] = attention_residual
    feed_forward_residual: Callable[..., tuple[Tensor, Tensor]] = feed_forward_residual
    route: Callable[..., tuple[Tensor, Tensor]] = route
    condition: Callable[..., Tensor] = condition
    draw_keys: Callable[..., Tensor] = draw_keys
    random_tokens: Callable[..., Tensor] = random_tokens
    accept: Callable[..., Acceptance] = accept

    def with_references(self, names: Collection[str]) -> "Operations":
        """The same with the references of those names."""
        return replace(self, **{name: getattr(REFERENCES, name) for name in names})


KERNELS = Operations()
REFERENCES = Operations(
    rms_norm_torch,
    attention_residual_torch,
    feed_forward_residual_torch,
    route_torch,
    condition_torch,
    draw_keys_torch,
    random_tokens_torch,
    accept_torch,
)
REPLACEABLE = frozenset(field.name for field in fields(Operations))
