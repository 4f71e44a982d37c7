"""The two halves of a denoising step on a CPU: a pass with its statistics, then the next input.

The second half is for the sequences that continue alone, whose number is known only after the
first. Any model can do both eagerly; small models may have them compiled ahead of time.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hybrid.drafters.noise import CounterNoise, Noise
from hybrid.drafters.sequence import DraftSequence
from hybrid.gemma.compiled.model import CompiledModel
from hybrid.kernels.accept import FREE
from hybrid.kernels.canvas_statistics import CanvasStatistics, canvas_statistics_torch
from hybrid.kernels.head import BANNED_LOGIT
from hybrid.kernels.noise import signed


class DenoisingModel(Protocol):
    """What an eager step needs of a model; `hybrid.gemma.model.gemma.GemmaModel` has it."""

    def denoise(
        self, canvas_ids: Tensor, soft_embedding: Tensor | None, cache: Any, rows: Any
    ) -> Tensor: ...

    def soft_embed(self, probabilities: Tensor) -> Tensor: ...


class DenoiseStep(Protocol):
    """Both halves of a step."""

    def statistics(self, sequences: Sequence[DraftSequence]) -> CanvasStatistics:
        """What a pass over the sequences' canvases says of every position."""
        ...

    def next_input(
        self, sequences: Sequence[DraftSequence], p: Tensor, accepted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The next canvases [R, C], a sample of ``p`` [R, C, V] where ``accepted`` and random
        tokens elsewhere, and the embeddings [R, C, H] that ``p`` expects there.
        """
        ...


class EagerDenoiseStep:
    """Any model's pass and any noise, one operation after another."""

    def __init__(self, model: DenoisingModel, cache: Any, noise: Noise) -> None:
        self._model, self._cache, self._noise = model, cache, noise

    def statistics(self, sequences: Sequence[DraftSequence]) -> CanvasStatistics:
        """See `DenoiseStep.statistics`."""
        canvas_ids = torch.stack([sequence.canvas_ids for sequence in sequences])
        rows = [sequence.row for sequence in sequences]
        soft_embeddings = _soft_embeddings(sequences)
        logits = self._model.denoise(canvas_ids, soft_embeddings, self._cache, rows)
        for index, sequence in enumerate(sequences):
            for position, token in sequence.banned_tokens:
                logits[index, position, token] = BANNED_LOGIT
        fixed_token_ids = _fixed_token_ids(sequences)
        settings = _settings(sequences, logits)
        return canvas_statistics_torch(logits, *settings, fixed_token_ids)

    def next_input(
        self, sequences: Sequence[DraftSequence], p: Tensor, accepted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `DenoiseStep.next_input`."""
        draws = [sequence.draw(sequence.step) for sequence in sequences]
        return self._noise.renoise(draws, p, accepted), self._model.soft_embed(p)


class CompiledDenoiseStep:
    """Both halves as compiled; steps with banned tokens are eager.

    The numbers are the same as eager ones but for the last bits.
    """

    def __init__(self, model: CompiledModel, cache: Any, noise: CounterNoise) -> None:
        self._model, self._cache = model, cache
        self._eager = EagerDenoiseStep(model, cache, noise)

    def statistics(self, sequences: Sequence[DraftSequence]) -> CanvasStatistics:
        """See `DenoiseStep.statistics`."""
        if any(sequence.banned_tokens for sequence in sequences):
            return self._eager.statistics(sequences)
        statistics = self._model.canvas_statistics(
            torch.stack([sequence.canvas_ids for sequence in sequences]),
            _soft_embeddings(sequences),
            *_settings(sequences, self._model.weights.embedding),
            _fixed_token_ids(sequences),
            self._cache,
            [sequence.row for sequence in sequences],
        )
        return statistics or self._eager.statistics(sequences)

    def next_input(
        self, sequences: Sequence[DraftSequence], p: Tensor, accepted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `DenoiseStep.next_input`."""
        following = None
        if len(sequences) == 1:
            draw = sequences[0].draw(sequences[0].step)
            seeds = [signed(draw.seed), signed(draw.seed >> 32)]
            following = self._model.renoise(p, accepted, seeds, draw.canvas, draw.step)
        return following or self._eager.next_input(sequences, p, accepted)


def fastest_step(model: Any, cache: Any, noise: Noise) -> DenoiseStep:
    """Both halves of a step as they are fastest with this model and noise."""
    if isinstance(model, CompiledModel) and isinstance(noise, CounterNoise):
        return CompiledDenoiseStep(model, cache, noise)
    return EagerDenoiseStep(model, cache, noise)


@torch.inference_mode()
def take_step(step: DenoiseStep, sequences: Sequence[DraftSequence]) -> None:
    """One pass over the canvases of all `sequences`, each of which takes its own step with it."""
    statistics = step.statistics(sequences)
    parts = zip(
        sequences,
        statistics.best_ids,
        statistics.entropy,
        statistics.accepted,
        statistics.mean_entropy.tolist(),
        strict=True,
    )
    for sequence, best_ids, entropy, accepted, mean_entropy in parts:
        sequence.take_step(best_ids, entropy, accepted, mean_entropy)
    p, accepted = statistics.p, statistics.accepted
    continuing = [index for index, sequence in enumerate(sequences) if sequence.may_continue]
    if not continuing:
        return
    if len(continuing) < len(sequences):
        sequences = [sequences[index] for index in continuing]
        p, accepted = p[continuing], accepted[continuing]
    following = zip(sequences, *step.next_input(sequences, p, accepted), strict=True)
    for sequence, canvas_ids, soft_embedding in following:
        sequence.set_next_input(canvas_ids, soft_embedding)


def _soft_embeddings(sequences: Sequence[DraftSequence]) -> Tensor | None:
    """What the last steps handed on, [R, C, H], zero for a first step; None if all are."""
    given = [sequence.soft_embedding for sequence in sequences]
    known = next((one for one in given if one is not None), None)
    if known is None:
        return None
    nothing = torch.zeros_like(known)
    return torch.stack([nothing if one is None else one for one in given])


def _settings(sequences: Sequence[DraftSequence], like: Tensor) -> tuple[Tensor, Tensor]:
    """Temperatures and entropy bounds, [R] each, beside and in the dtype of ``like``."""
    bounds = [sequence.job.params.entropy_bound for sequence in sequences]
    temperatures = [sequence.temperature for sequence in sequences]
    return like.new_tensor(temperatures), like.new_tensor(bounds)


def _fixed_token_ids(sequences: Sequence[DraftSequence]) -> Tensor | None:
    """Tokens that positions must hold, int64 [R, C], and `FREE` elsewhere; None if none must."""
    given = [sequence.fixed_token_ids for sequence in sequences]
    if all(one is None for one in given):
        return None
    free = torch.full_like(sequences[0].canvas_ids, FREE)
    return torch.stack([free if one is None else one for one in given])
