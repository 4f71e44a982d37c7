"""One pass through the stack as the kernels see it: where tokens stand and where their keys go.

Everything is computed on the device from three short vectors (rows, starts, lengths), so a captured
graph works at any place of any row: only the vectors' contents change.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.gemma.config import GemmaConfig, LayerKind, Rope
from hybrid.gemma.model.cache import flat_slots
from hybrid.kernels.rope import frequencies_torch


@dataclass(frozen=True, slots=True)
class Pass:
    """R rows of T tokens each, of which the first `lengths` count.

    `rows`, `starts` and `lengths` are int32 [R]: the cache row, the tokens that it has read before,
    and those of this pass. `slots` int64 [R * T] are places in a cache seen as [rows * slots, ...],
    by kind of layer; padding goes to a row's last slot. `rotations` are cosine and sine, float32
    [R * T, D / 2]. `most_context` bounds starts + lengths; kernels choose their splits by it.
    """

    rows: Tensor
    starts: Tensor
    lengths: Tensor
    tokens: int
    causal: bool
    most_context: int
    slots: Mapping[LayerKind, Tensor]
    rotations: Mapping[Rope, tuple[Tensor, Tensor]]


class Places:
    """Makes passes for one geometry."""

    def __init__(self, config: GemmaConfig, device: torch.device) -> None:
        ropes = {layer.rope for layer in config.layers}
        self._frequencies = {rope: frequencies_torch(*rope).to(device) for rope in ropes}

    def at(
        self,
        rows: Tensor,
        starts: Tensor,
        lengths: Tensor,
        tokens: int,
        most_context: int,
        slots: Mapping[LayerKind, int],
        *,
        causal: bool,
    ) -> Pass:
        """The pass of `tokens` tokens a row, in caches with so many slots a row besides the bin."""
        places = torch.arange(tokens, device=rows.device, dtype=torch.int32)
        positions = starts[:, None] + places
        is_token = places < lengths[:, None]
        first = rows.long()[:, None]
        by_kind: dict[LayerKind, Tensor] = {
            kind: torch.where(
                is_token, flat_slots(first, positions, count), first * (count + 1) + count
            ).flatten()
            for kind, count in slots.items()
        }
        turning = positions.flatten().float()[:, None]
        angles = {rope: turning * inverse for rope, inverse in self._frequencies.items()}
        rotations = {rope: (angle.cos(), angle.sin()) for rope, angle in angles.items()}
        return Pass(rows, starts, lengths, tokens, causal, most_context, by_kind, rotations)
