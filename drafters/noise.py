"""Where the denoising loop gets its random numbers from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hybrid.kernels.noise import position_keys_torch, random_tokens_torch, row_key
from hybrid.kernels.race import race_torch


@dataclass(frozen=True, slots=True)
class Draw:
    """Which random numbers a row needs: `step` 0 starts a canvas, later ones follow that step."""

    seed: int
    canvas: int
    step: int


class Noise(Protocol):
    """Two draws a step. Tests inject their own to repeat another implementation's."""

    def tokens(self, draws: Sequence[Draw], positions: int, vocabulary: int) -> Tensor:
        """Uniform token ids, int64 [R, C]."""
        ...

    def sample(self, draws: Sequence[Draw], probabilities: Tensor, wanted: Tensor) -> Tensor:
        """Token ids, int64 [N], of those distributions in ``probabilities`` [R, C, V] that are
        ``wanted``, bool [R, C] with N true, in order.
        """
        ...


class CounterNoise:
    """Numbers that depend on the draw alone, not on what else is in the batch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def tokens(self, draws: Sequence[Draw], positions: int, vocabulary: int) -> Tensor:
        """See `Noise.tokens`."""
        return random_tokens_torch(self._keys(draws, positions, purpose=0), vocabulary).long()

    def sample(self, draws: Sequence[Draw], probabilities: Tensor, wanted: Tensor) -> Tensor:
        """An exact sample of each; see `hybrid.kernels.race`."""
        keys = self._keys(draws, wanted.shape[1], purpose=1)
        return race_torch(keys.flatten(), probabilities.flatten(0, 1), wanted.flatten())

    def _keys(self, draws: Sequence[Draw], positions: int, purpose: int) -> Tensor:
        keys = [row_key(draw.seed, draw.canvas, draw.step, purpose) for draw in draws]
        signed = torch.tensor(keys, device=self._device).to(torch.int32)
        return position_keys_torch(signed, positions)
