"""Attention metadata of one pass on the device: positions of tokens and slots of their keys.

Everything is computed on the device from three short vectors (rows, starts, lengths), so a captured
graph serves any position of any row: only the contents of the vectors change.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.gemma.config import GemmaConfig, LayerKind, Rope
from hybrid.gemma.model.cache import AttentionMetadata, flat_slots
from hybrid.kernels.rope import frequencies_torch


@dataclass(frozen=True, slots=True)
class DeviceAttentionMetadata:
    """R rows of T tokens each, of which the first `lengths` count.

    `rows`, `starts` and `lengths` are int32 [R]: the cache row, the tokens that it has read before,
    and those of this pass. `slots` int64 [R * T] are indices into a cache seen as [rows * slots,
    ...], by kind of layer; padding goes to a row's last slot. `rotations` are cosine and sine,
    float32 [R * T, D / 2]. `max_context` bounds starts + lengths; kernels choose splits by it.
    """

    rows: Tensor
    starts: Tensor
    lengths: Tensor
    tokens: int
    causal: bool
    max_context: int
    slots: Mapping[LayerKind, Tensor]
    rotations: Mapping[Rope, tuple[Tensor, Tensor]]


class AttentionMetadataBuilder:
    """Builds the metadata of passes for one geometry."""

    def __init__(self, config: GemmaConfig, device: torch.device) -> None:
        ropes = {layer.rope for layer in config.layers}
        self._frequencies = {rope: frequencies_torch(*rope).to(device) for rope in ropes}

    def build(
        self,
        rows: Tensor,
        starts: Tensor,
        lengths: Tensor,
        tokens: int,
        max_context: int,
        slots: Mapping[LayerKind, int],
        *,
        causal: bool,
    ) -> DeviceAttentionMetadata:
        """Metadata of `tokens` tokens a row; `slots` is their number a row without the last."""
        offsets = torch.arange(tokens, device=rows.device, dtype=torch.int32)
        positions = starts[:, None] + offsets
        is_token = offsets < lengths[:, None]
        first = rows.long()[:, None]
        by_kind: dict[LayerKind, Tensor] = {
            kind: torch.where(
                is_token, flat_slots(first, positions, count), first * (count + 1) + count
            ).flatten()
            for kind, count in slots.items()
        }
        column = positions.flatten().float()[:, None]
        angles = {rope: column * inverse for rope, inverse in self._frequencies.items()}
        rotations = {rope: (angle.cos(), angle.sin()) for rope, angle in angles.items()}
        return DeviceAttentionMetadata(
            rows, starts, lengths, tokens, causal, max_context, by_kind, rotations
        )


def device_vectors(
    metadata: AttentionMetadata, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, starts and lengths, int32 [R], each at a 16-byte aligned address.

    For other alignments Triton would compile the kernels that read them once more.
    """
    count = len(metadata.rows)
    padding = [0] * (-count % 4)
    parts = [[*part, *padding] for part in (metadata.rows, metadata.starts, metadata.lengths)]
    numbers = torch.tensor(parts, dtype=torch.int32, device=device)[:, :count]
    return numbers[0], numbers[1], numbers[2]
