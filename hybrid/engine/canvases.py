"""Canvases in device memory, and the denoising step that moves any of them on.

A step reads everything that differs between requests (temperature, seed, step, limits, place in the
context) from here, so canvases at different steps and with different settings share a batch and a
captured graph. A canvas that is done stays as it is: the host learns of it one step late, and the
step that it takes meanwhile leaves no trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.engine.kv_cache import KVCacheBuffers
from hybrid.engine.model import EngineModel
from hybrid.kernels.accept import FREE, accept
from hybrid.kernels.head import head_sample
from hybrid.kernels.noise import SAMPLE, TOKENS, draw_keys, random_tokens, signed
from hybrid.kernels.soft_embed import soft_embed

# Columns of the whole numbers, after the two halves of the seed.
_LIMIT, _STABLE, _DONE = 4, 6, 8
_COUNTS, _SETTINGS = 9, 4


@dataclass(frozen=True, slots=True)
class Start:
    """A canvas as it begins. `ids` are its tokens; `fixed_ids` those to keep, `FREE` elsewhere.

    `context` is how many tokens its row has read.
    """

    seed: int
    canvas: int
    context: int
    max_denoising_steps: int
    entropy_bound: float
    t_min: float
    t_max: float
    stability_threshold: int
    confidence_threshold: float
    ids: Sequence[int]
    fixed_ids: Sequence[int]


class Canvases:
    """`count` canvases of C tokens, and an idle one after them.

    `ids` int32 [count + 1, C] is what the next step reads, with `expected` [count + 1, C, H], the
    embedding that the last one expected there. After a step: `best_ids` int32, `entropy` float32
    and `kept` bool [count + 1, C]; `outcome` float32 [count + 1, 4] is which canvas it is of its
    row's, the steps taken, whether it has converged, and the mean entropy.
    """

    def __init__(self, model: EngineModel, count: int) -> None:
        config, device = model.config, model.device
        rows, length = count + 1, config.canvas_length
        with torch.inference_mode(False):
            self._counts = torch.zeros(rows, _COUNTS, device=device, dtype=torch.int32)
            self._settings = torch.ones(rows, _SETTINGS, device=device)
            self.expected = torch.zeros(
                rows, length, config.hidden_size, device=device, dtype=model.dtype
            )
            self.ids = torch.zeros(rows, length, device=device, dtype=torch.int32)
            self.fixed_ids = torch.full_like(self.ids, FREE)
            self.best_ids = torch.zeros_like(self.ids)
            self.entropy = torch.zeros(rows, length, device=device)
            self.kept = torch.zeros(rows, length, device=device, dtype=torch.bool)
            self.outcome = torch.zeros(rows, 4, device=device)
        self._counts[:, _LIMIT] = 1
        self.idle_row = count
        self._model = model

    def begin(self, row: int, start: Start) -> None:
        """Start a canvas in the row."""
        device = self.ids.device
        seed = [signed(start.seed), signed(start.seed >> 32)]
        counts = [start.canvas, 0, start.max_denoising_steps, start.stability_threshold, -1]
        self._counts[row] = _row([*seed, *counts, start.context, 0], torch.int32, device)
        settings = [start.t_min, start.t_max, start.entropy_bound, start.confidence_threshold]
        self._settings[row] = _row(settings, torch.float32, device)
        self.expected[row].zero_()
        self.rewrite(row, start.ids, start.fixed_ids)

    def rewrite(self, row: int, ids: Sequence[int], fixed_ids: Sequence[int]) -> None:
        """Change what the next step reads and what it must keep."""
        self.ids[row] = _row(ids, torch.int32, self.ids.device)
        self.fixed_ids[row] = _row(fixed_ids, torch.int32, self.ids.device)

    def unsettle(self, row: int) -> None:
        """The row's canvas is not done, and no longer the same as at the step before."""
        self._counts[row, _STABLE] = -1
        self._counts[row, _DONE] = 0

    def step(self, buffers: KVCacheBuffers, rows: Tensor, barred: Tensor | None = None) -> None:
        """One denoising step of the canvases ``rows``, int64 [R], in the cache rows of the same
        numbers. ``barred`` int32 [R * C, J] are tokens that may not be written there, -1 for none.
        """
        model = self._model
        config, embedding = model.config, model.weights.embedding
        counts, settings = self._counts[rows], self._settings[rows]
        seeds, (canvas, step, limit, stability, stable, context, done) = (
            counts[:, :2].contiguous(),
            counts[:, 2:].unbind(-1),
        )
        t_min, t_max, bound, confidence = settings.unbind(-1)
        # Even a single row's: Triton would compile kernels once more for addresses inside a tensor.
        canvas, context, bound = canvas.clone(), context.clone(), bound.clone()
        fixed_ids, soft = self.fixed_ids[rows], self.expected[rows]
        length = fixed_ids.shape[1]
        hidden = model.denoised(
            self.ids[rows],
            soft,
            buffers,
            rows.to(torch.int32),
            context,
            torch.full_like(context, length),
        ).flatten(0, 1)
        temperature = t_min + (t_max - t_min) * (limit - step) / limit
        following = step + 1
        sampled = head_sample(
            hidden,
            embedding,
            config.final_logit_softcapping,
            temperature.repeat_interleave(length),
            draw_keys(seeds, canvas, following, SAMPLE, length).flatten(),
            barred,
        )
        accepted = accept(
            sampled.entropy.view(-1, length),
            sampled.best.view(-1, length),
            sampled.sample.view(-1, length),
            random_tokens(draw_keys(seeds, canvas, following, TOKENS, length), config.vocab_size),
            self.best_ids[rows],
            fixed_ids,
            bound,
        )
        new_soft = soft_embed(
            sampled.logits,
            sampled.log_sum_exp,
            embedding,
            fixed_ids.flatten(),
            model.embedding_scale,
            sampled.tile_largest,
            0.0,
        ).view_as(soft)
        stable = torch.where(accepted.is_same & (step > 0), stable + 1, 0)
        converged = (stable >= stability) & (accepted.mean_entropy < confidence)
        is_live = done == 0
        done = torch.where(is_live, (converged | (following >= limit)).to(torch.int32), done)

        def put(state: Tensor, new: Tensor) -> None:
            live = is_live.view(-1, *[1] * (new.dim() - 1))
            state.index_copy_(0, rows, torch.where(live, new, state[rows]))

        put(self.ids, accepted.next_ids)
        put(self.best_ids, accepted.best)
        put(self.entropy, accepted.entropy)
        put(self.kept, accepted.kept)
        put(self.expected, new_soft)
        outcome = canvas, following, converged, accepted.mean_entropy
        put(self.outcome, torch.stack([part.float() for part in outcome], -1))
        moved = (seeds, canvas, following, limit, stability, stable, context, done)
        put(self._counts, torch.cat([part.view(len(rows), -1) for part in moved], -1))


def _row(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
