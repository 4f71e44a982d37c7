"""Where the denoising loop gets its random numbers from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hybrid.kernels.gumbel_max_sample import gumbel_max_sample_torch
from hybrid.kernels.noise import (
    SAMPLE,
    TOKENS,
    position_keys_torch,
    random_tokens_torch,
    row_key,
)


@dataclass(frozen=True, slots=True)
class Draw:
    """Which random numbers a row needs: `step` 0 starts a canvas, later ones follow that step."""

    seed: int
    canvas: int
    step: int


class Noise(Protocol):
    """Where a canvas's tokens come from. Tests inject their own to repeat another's numbers."""

    def tokens(self, draws: Sequence[Draw], positions: int, vocabulary: int) -> Tensor:
        """Uniform token ids, int64 [R, C], to begin a canvas with."""
        ...

    def renoise(self, draws: Sequence[Draw], probabilities: Tensor, accepted: Tensor) -> Tensor:
        """The next canvas, int64 [R, C]: where ``accepted``, bool [R, C], a sample of its
        distribution in ``probabilities`` [R, C, V], elsewhere a uniform token id.
        """
        ...


class CounterNoise:
    """Numbers that depend on the draw alone, not on what else is in the batch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def tokens(self, draws: Sequence[Draw], positions: int, vocabulary: int) -> Tensor:
        """See `Noise.tokens`."""
        return random_tokens_torch(self._keys(draws, positions, TOKENS), vocabulary).long()

    def renoise(self, draws: Sequence[Draw], probabilities: Tensor, accepted: Tensor) -> Tensor:
        """See `Noise.renoise`; samples are exact, as `hybrid.kernels.gumbel_max_sample` says."""
        rows, positions, vocabulary = probabilities.shape
        keys = self._keys(draws, positions, TOKENS, SAMPLE)
        token_ids = random_tokens_torch(keys[:rows], vocabulary).long()
        samples = gumbel_max_sample_torch(
            keys[rows:].flatten(), probabilities.flatten(0, 1), accepted.flatten()
        )
        return token_ids.masked_scatter_(accepted, samples)

    def _keys(self, draws: Sequence[Draw], positions: int, *purposes: int) -> Tensor:
        """int32 [purposes * R, C]: all rows for one purpose, then all for the next."""
        keys = [
            row_key(draw.seed, draw.canvas, draw.step, purpose)
            for purpose in purposes
            for draw in draws
        ]
        signed = torch.tensor(keys, device=self._device).to(torch.int32)
        return position_keys_torch(signed, positions)
