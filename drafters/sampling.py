"""The two halves of a denoising step: a pass with all that is made of it, then the next canvases.

The second is for the rows that go on alone, whose number is known only after the first.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hybrid.drafters.noise import CounterNoise, Noise
from hybrid.drafters.row import Row
from hybrid.gemma.compiled.model import CompiledModel
from hybrid.kernels.accept import FREE
from hybrid.kernels.canvas_statistics import CanvasStatistics, canvas_statistics_torch
from hybrid.kernels.head import BANNED_LOGIT
from hybrid.kernels.noise import signed


class DenoisingModel(Protocol):
    """What a step needs of a model; `hybrid.gemma.model.gemma.GemmaModel` has it."""

    def denoise(
        self, canvas_ids: Tensor, soft_embedding: Tensor | None, cache: Any, rows: Any
    ) -> Tensor: ...

    def soft_embed(self, probabilities: Tensor) -> Tensor: ...


class Sampling(Protocol):
    """Both halves of a step."""

    def judge(self, rows: Sequence[Row]) -> CanvasStatistics:
        """What a pass makes of the rows' canvases."""
        ...

    def go_on(self, rows: Sequence[Row], p: Tensor, accepted: Tensor) -> tuple[Tensor, Tensor]:
        """The rows' next canvases [R, C], a sample of ``p`` [R, C, V] where ``accepted`` and random
        tokens elsewhere, and the embeddings [R, C, H] that ``p`` expects there.
        """
        ...


class EagerSampling:
    """Any model's pass and any noise, one operation after another."""

    def __init__(self, model: DenoisingModel, cache: Any, noise: Noise) -> None:
        self._model, self._cache, self._noise = model, cache, noise

    def judge(self, rows: Sequence[Row]) -> CanvasStatistics:
        """See `Sampling.judge`."""
        canvas_ids = torch.stack([row.canvas_ids for row in rows])
        cache_rows = [row.cache_row for row in rows]
        logits = self._model.denoise(canvas_ids, _soft_embeddings(rows), self._cache, cache_rows)
        for index, row in enumerate(rows):
            for place, token in row.barred:
                logits[index, place, token] = BANNED_LOGIT
        return canvas_statistics_torch(logits, *_settings(rows, logits), _imposed_ids(rows))

    def go_on(self, rows: Sequence[Row], p: Tensor, accepted: Tensor) -> tuple[Tensor, Tensor]:
        """See `Sampling.go_on`."""
        next_ids = self._noise.renoise([row.draw(row.step) for row in rows], p, accepted)
        return next_ids, self._model.soft_embed(p)


class CompiledSampling:
    """Both halves as compiled, where the model has them; tokens that are barred it does not know.

    The numbers are the same as eager ones but for the last bits.
    """

    def __init__(self, model: CompiledModel, cache: Any, noise: CounterNoise) -> None:
        self._model, self._cache = model, cache
        self._eager = EagerSampling(model, cache, noise)

    def judge(self, rows: Sequence[Row]) -> CanvasStatistics:
        """See `Sampling.judge`."""
        if any(row.barred for row in rows):
            return self._eager.judge(rows)
        judged = self._model.judge(
            torch.stack([row.canvas_ids for row in rows]),
            _soft_embeddings(rows),
            *_settings(rows, self._model.weights.embedding),
            _imposed_ids(rows),
            self._cache,
            [row.cache_row for row in rows],
        )
        return judged or self._eager.judge(rows)

    def go_on(self, rows: Sequence[Row], p: Tensor, accepted: Tensor) -> tuple[Tensor, Tensor]:
        """See `Sampling.go_on`."""
        following = None
        if len(rows) == 1:
            draw = rows[0].draw(rows[0].step)
            seeds = [signed(draw.seed), signed(draw.seed >> 32)]
            following = self._model.renoise(p, accepted, seeds, draw.canvas, draw.step)
        return following or self._eager.go_on(rows, p, accepted)


def sampling_of(model: Any, cache: Any, noise: Noise) -> Sampling:
    """Both halves of a step as they are fastest with this model and noise."""
    if isinstance(model, CompiledModel) and isinstance(noise, CounterNoise):
        return CompiledSampling(model, cache, noise)
    return EagerSampling(model, cache, noise)


def _soft_embeddings(rows: Sequence[Row]) -> Tensor | None:
    """What the rows' last steps handed on, [R, C, H], zero for a row without one; None if all."""
    given = [row.soft_embedding for row in rows]
    known = next((one for one in given if one is not None), None)
    if known is None:
        return None
    nothing = torch.zeros_like(known)
    return torch.stack([nothing if one is None else one for one in given])


def _settings(rows: Sequence[Row], like: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' temperatures and entropy bounds, [R] each, beside and in the dtype of ``like``."""
    bounds = [row.job.params.entropy_bound for row in rows]
    return like.new_tensor([row.temperature for row in rows]), like.new_tensor(bounds)


def _imposed_ids(rows: Sequence[Row]) -> Tensor | None:
    """Tokens that places hold for certain, int64 [R, C], and `FREE` elsewhere; None if none do."""
    given = [row.imposed_ids for row in rows]
    if all(one is None for one in given):
        return None
    free = torch.full_like(rows[0].canvas_ids, FREE)
    return torch.stack([free if one is None else one for one in given])
