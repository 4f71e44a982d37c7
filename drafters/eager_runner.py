"""A model runner (see `hybrid.drafters.model_runner`) that computes a step when it is asked for."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hybrid.drafters.denoise_step import fastest_step, take_step
from hybrid.drafters.model_runner import (
    CachedModel,
    random_canvases,
    read_canvases,
    read_prompts,
)
from hybrid.drafters.noise import Noise
from hybrid.drafters.sequence import DraftSequence
from hybrid.protocols import Votes


class EagerRunner:
    """Runs any model that fits the denoising loop, on the device that it is on."""

    def __init__(
        self, model: CachedModel, noise: Noise, max_batch_size: int, max_total_tokens: int
    ) -> None:
        self.max_batch_size, self.max_total_tokens = max_batch_size, max_total_tokens
        self._model, self._noise = model, noise
        self._cache: Any = model.new_cache(max_batch_size, max_total_tokens)
        self._step = fastest_step(model, self._cache, noise)

    def prefill(self, sequences: Sequence[DraftSequence]) -> None:
        """See `ModelRunner.prefill`."""
        read_prompts(self._model, self._cache, sequences)
        self._start_canvases(sequences)

    def denoise(self, sequences: Sequence[DraftSequence]) -> list[DraftSequence]:
        """See `ModelRunner.denoise`."""
        take_step(self._step, sequences)
        return list(sequences)

    def synchronize(self, sequences: Sequence[DraftSequence]) -> list[DraftSequence]:
        """See `ModelRunner.synchronize`."""
        return []

    def apply_votes(self, sequence: DraftSequence, votes: Votes) -> None:
        """See `ModelRunner.apply_votes`."""
        sequence.apply_votes(votes, self._random_canvases([sequence])[0])

    def commit(self, sequences: Sequence[DraftSequence]) -> None:
        """See `ModelRunner.commit`."""
        read_canvases(self._model, self._cache, sequences)
        self._start_canvases([s for s in sequences if s.finish_reason is None])

    def _start_canvases(self, sequences: Sequence[DraftSequence]) -> None:
        if not sequences:
            return
        for sequence, random_ids in zip(sequences, self._random_canvases(sequences), strict=True):
            sequence.start_canvas(random_ids)

    def _random_canvases(self, sequences: Sequence[DraftSequence]) -> Tensor:
        return random_canvases(self._noise, self._model.config, sequences)
