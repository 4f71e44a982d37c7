"""Canvases in device memory, and the denoising step that works on any of them.

A step reads everything that differs between requests (temperature, seed, step, limits, position in
the context, banned tokens) from here, so canvases at different steps and with different settings
share a batch and a captured graph. A canvas that is done does not change any more: the host learns
of it one step late, and the step that it takes meanwhile has no effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.engine.banned_tokens import BannedTokens
from hybrid.engine.kv_cache import KVCacheBuffers
from hybrid.engine.model import EngineModel
from hybrid.kernels.accept import FREE
from hybrid.kernels.head import head_sample
from hybrid.kernels.noise import SAMPLE, TOKENS, signed
from hybrid.kernels.soft_embed import soft_embed

# Columns of the whole numbers, after the two halves of the seed.
_LIMIT, _STABLE, _DONE = 4, 6, 8
_COUNTS, _SETTINGS = 9, 4


@dataclass(frozen=True, slots=True)
class Start:
    """A canvas before its first step.

    `ids` are its tokens; `fixed_token_ids` those to keep, `FREE` elsewhere. `context` is how many
    tokens its row has read.
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
    fixed_token_ids: Sequence[int]


class Canvases:
    """`count` canvases of C tokens, and an idle one after them.

    The next step reads `ids` int32 [count + 1, C] and `soft_embedding` [count + 1, C, H], the
    probability-weighted embedding of the last step. After a step: `best_ids` int32, `entropy`
    float32 and `accepted` bool [count + 1, C]; `outcome` float32 [count + 1, 4] is the number of
    the canvas in its row, the steps taken, whether it has converged, and the mean entropy.
    """

    def __init__(self, model: EngineModel, count: int) -> None:
        config, device = model.config, model.device
        rows, length = count + 1, config.canvas_length
        with torch.inference_mode(False):
            self._counts = torch.zeros(rows, _COUNTS, device=device, dtype=torch.int32)
            self._settings = torch.ones(rows, _SETTINGS, device=device)
            self.soft_embedding = torch.zeros(
                rows, length, config.hidden_size, device=device, dtype=model.dtype
            )
            self.ids = torch.zeros(rows, length, device=device, dtype=torch.int32)
            self.fixed_token_ids = torch.full_like(self.ids, FREE)
            self.best_ids = torch.zeros_like(self.ids)
            self.entropy = torch.zeros(rows, length, device=device)
            self.accepted = torch.zeros(rows, length, device=device, dtype=torch.bool)
            self.outcome = torch.zeros(rows, 4, device=device)
        self.banned_tokens = BannedTokens(rows, length, device)
        self._counts[:, _LIMIT] = 1
        self.idle_row = count
        self._model = model

    def begin(self, row: int, start: Start) -> None:
        """Start a canvas in the row, without banned tokens."""
        device = self.ids.device
        seed = [signed(start.seed), signed(start.seed >> 32)]
        counts = [start.canvas, 0, start.max_denoising_steps, start.stability_threshold, -1]
        self._counts[row] = _row([*seed, *counts, start.context, 0], torch.int32, device)
        settings = [start.t_min, start.t_max, start.entropy_bound, start.confidence_threshold]
        self._settings[row] = _row(settings, torch.float32, device)
        self.soft_embedding[row].zero_()
        self.banned_tokens.set(row, ())
        self.set_input(row, start.ids, start.fixed_token_ids)

    def set_input(self, row: int, ids: Sequence[int], fixed_token_ids: Sequence[int]) -> None:
        """Change the tokens that the next step reads, and those that it must keep."""
        self.ids[row] = _row(ids, torch.int32, self.ids.device)
        self.fixed_token_ids[row] = _row(fixed_token_ids, torch.int32, self.ids.device)

    def reset_convergence(self, row: int) -> None:
        """Continue the row's canvas, and count unchanged steps from zero."""
        self._counts[row, _STABLE] = -1
        self._counts[row, _DONE] = 0

    def step(self, buffers: KVCacheBuffers, rows: Tensor, banned_width: int = 0) -> None:
        """One denoising step of the canvases ``rows``, int64 [R], in the cache rows of the same
        numbers; `banned_width` is the width of the table of banned tokens, 0 to read none.
        """
        model = self._model
        config, embedding, operations = model.config, model.weights.embedding, model.operations
        counts, settings = self._counts[rows], self._settings[rows]
        seeds, (canvas, step, limit, stability, stable, context, done) = (
            counts[:, :2].contiguous(),
            counts[:, 2:].unbind(-1),
        )
        t_min, t_max, bound, confidence = settings.unbind(-1)
        # Also for a single row: Triton compiles kernels once more for addresses inside a tensor.
        canvas, context, bound = canvas.clone(), context.clone(), bound.clone()
        fixed_token_ids, soft = self.fixed_token_ids[rows], self.soft_embedding[rows]
        length = fixed_token_ids.shape[1]
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
        table = self.banned_tokens.table(banned_width)[rows] if banned_width else None
        banned = None if table is None else table.flatten(0, 1)
        sampled = head_sample(
            hidden,
            embedding,
            config.final_logit_softcapping,
            temperature.repeat_interleave(length),
            operations.draw_keys(seeds, canvas, following, SAMPLE, length).flatten(),
            banned,
        )
        token_keys = operations.draw_keys(seeds, canvas, following, TOKENS, length)
        acceptance = operations.accept(
            sampled.entropy.view(-1, length),
            sampled.best.view(-1, length),
            sampled.sample.view(-1, length),
            operations.random_tokens(token_keys, config.vocab_size),
            self.best_ids[rows],
            fixed_token_ids,
            bound,
        )
        new_soft = soft_embed(
            sampled.logits,
            sampled.log_sum_exp,
            embedding,
            fixed_token_ids.flatten(),
            model.embedding_scale,
            sampled.tile_largest,
            0.0,
        ).view_as(soft)
        stable = torch.where(acceptance.is_same & (step > 0), stable + 1, 0)
        converged = (stable >= stability) & (acceptance.mean_entropy < confidence)
        is_live = done == 0
        done = torch.where(is_live, (converged | (following >= limit)).to(torch.int32), done)

        def put(state: Tensor, new: Tensor) -> None:
            live = is_live.view(-1, *[1] * (new.dim() - 1))
            state.index_copy_(0, rows, torch.where(live, new, state[rows]))

        put(self.ids, acceptance.next_ids)
        put(self.best_ids, acceptance.best)
        put(self.entropy, acceptance.entropy)
        put(self.accepted, acceptance.kept)
        put(self.soft_embedding, new_soft)
        outcome = canvas, following, converged, acceptance.mean_entropy
        put(self.outcome, torch.stack([part.float() for part in outcome], -1))
        updated = (seeds, canvas, following, limit, stability, stable, context, done)
        put(self._counts, torch.cat([part.view(len(rows), -1) for part in updated], -1))


def _row(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
