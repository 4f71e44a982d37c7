"""The denoising loop: a batch of canvases, each at its own step, settings and random numbers.

One call of `step` runs one pass for all given rows. Nothing is ever frozen inside a canvas: each
step keeps the positions it is surest of and replaces all others by random tokens; what carries over
is the kept tokens and the self-conditioning vector. The text of a canvas is its arg-max, not its
sampled tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from hybrid.drafters.noise import Draw, Noise
from hybrid.drafters.template import Template
from hybrid.kernels.accept import within_bound_torch
from hybrid.kernels.largest import largest_torch
from hybrid.protocols import DraftJob, Votes

_NEVER = -1e4  # as a logit: finite, so that an entropy of it is


class DenoisingModel(Protocol):
    """What the loop needs of a model; `hybrid.gemma.model.GemmaModel` has it."""

    def encode(self, token_ids: Tensor, lengths: Any, cache: Any, rows: Any) -> Tensor: ...

    def denoise(
        self, canvas_ids: Tensor, soft_embedding: Tensor | None, cache: Any, rows: Any
    ) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def soft_embed(self, probabilities: Tensor) -> Tensor: ...


class Denoiser(Protocol):
    """Moves the canvases of one batch on; a row learns of a step at once or one step later."""

    def begin(self, row: "Row") -> None:
        """The row begins a canvas, on the tokens in its `canvas_ids`."""
        ...

    def step(self, rows: "Sequence[Row]") -> "list[Row]":
        """Ask for a step of each row; the rows that have learned of one since the last time."""
        ...

    def settle(self, rows: "Sequence[Row]") -> "list[Row]":
        """Wait until these rows know of all their steps; those of them that did not."""
        ...

    def change(self, row: "Row") -> None:
        """The row's canvas has been changed by votes; it knew of all its steps."""
        ...


@dataclass(slots=True, eq=False)
class Row:
    """One request in the batch and its current canvas.

    `canvas_ids` [C] is what the next step reads; `best_ids` [C], `entropy` [C] and `accepted` [C]
    are what the last one left. `soft_embedding` [C, H] is what a step hands to the next, None
    before the first. `written` are the answer's tokens on earlier canvases, `barred` places and
    tokens that do not go together.
    """

    job: DraftJob
    cache_row: int
    canvas_ids: Tensor
    soft_embedding: Tensor | None = None
    template: Template | None = None
    canvas: int = 0
    step: int = 0
    stable_steps: int = -1
    converged: bool = False
    mean_entropy: float = float("inf")
    written: tuple[int, ...] = ()
    barred: frozenset[tuple[int, int]] = frozenset()
    best_ids: Tensor = field(init=False)
    entropy: Tensor = field(init=False)
    accepted: Tensor = field(init=False)
    fixed_ids: Tensor | None = field(init=False, default=None)
    is_blank: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.template is not None:
            tokens = self.template.tokens
            device = self.canvas_ids.device
            self.fixed_ids = torch.tensor([token or 0 for token in tokens], device=device)
            self.is_blank = torch.tensor([token is None for token in tokens], device=device)
        self.canvas_ids = self._with_fixed(self.canvas_ids)

    @property
    def temperature(self) -> float:
        """Of the next step: from t_max down towards t_min as steps run out."""
        params = self.job.params
        remaining = params.max_denoising_steps - self.step
        return params.t_min + (params.t_max - params.t_min) * remaining / params.max_denoising_steps

    @property
    def canvas_done(self) -> bool:
        """Whether the current canvas has converged or used up its steps."""
        return self.converged or self.step >= self.job.params.max_denoising_steps

    def draw(self, step: int) -> Draw:
        """The key of the random numbers that follow `step`."""
        return Draw(self.job.seed, self.canvas, step)

    def warm_start(self, token_ids: Sequence[int]) -> None:
        """Begin the canvas with these tokens instead of random ones."""
        canvas_ids = self.canvas_ids.clone()
        canvas_ids[: len(token_ids)] = canvas_ids.new_tensor(token_ids)
        self.canvas_ids = self._with_fixed(canvas_ids)

    def next_canvas(self, canvas_ids: Tensor, written: Sequence[int]) -> None:
        """Start over on a fresh canvas after the tokens `written` so far."""
        self.canvas += 1
        self.written, self.barred = tuple(written), frozenset()
        if self.job.guide is not None:  # it held places of the last canvas
            self.fixed_ids = self.is_blank = None
        self.step, self.stable_steps, self.converged = 0, -1, False
        self.canvas_ids = self._with_fixed(canvas_ids)
        self.soft_embedding = None

    def take_step(
        self, best_ids: Tensor, entropy: Tensor, accepted: Tensor, mean_entropy: float
    ) -> None:
        """Take over this row's part of a step, and decide whether the canvas has converged."""
        params = self.job.params
        is_same = self.step > 0 and torch.equal(self.best_ids, best_ids)
        self.best_ids, self.entropy, self.accepted = best_ids, entropy, accepted
        self.step += 1
        self.stable_steps = self.stable_steps + 1 if is_same else 0
        self.mean_entropy = mean_entropy
        is_stable = self.stable_steps >= params.stability_threshold
        self.converged = is_stable and mean_entropy < params.confidence_threshold

    @property
    def goes_on(self) -> bool:
        """Whether the canvas may take another step: a guide can take back that it converged."""
        return not self.canvas_done or self.job.guide is not None

    def go_on(self, canvas_ids: Tensor, soft_embedding: Tensor) -> None:
        """Take over what the next step starts from."""
        self.canvas_ids = self._with_fixed(canvas_ids)
        self.soft_embedding = soft_embedding

    def learn(
        self,
        step: int,
        canvas_ids: Tensor,
        best_ids: Tensor,
        entropy: Tensor,
        accepted: Tensor,
        converged: bool,
        mean_entropy: float,
    ) -> None:
        """Take over what a device has made of the canvas by `step` and decided about it."""
        self.step, self.stable_steps = step, 0
        self.canvas_ids, self.best_ids = canvas_ids, best_ids
        self.entropy, self.accepted = entropy, accepted
        self.converged, self.mean_entropy = converged, mean_entropy

    def follow(self, votes: Votes, random_ids: Tensor) -> None:
        """Hold fast what is approved, and go on from noise where something is vetoed."""
        approved, vetoed = sorted(votes.approved), sorted(votes.vetoed - votes.approved)
        if approved:
            if self.is_blank is None or self.fixed_ids is None:
                self.is_blank = torch.ones_like(self.accepted)
                self.fixed_ids = torch.zeros_like(self.best_ids)
            self.is_blank[approved] = False
            self.fixed_ids[approved] = self.best_ids[approved]
        if vetoed:
            self.canvas_ids[vetoed] = random_ids[vetoed]
            self.accepted[vetoed] = False
            self.stable_steps, self.converged = -1, False
        self.barred |= votes.barred
        self.canvas_ids = self._with_fixed(self.canvas_ids)

    def _with_fixed(self, ids: Tensor) -> Tensor:
        if self.is_blank is None or self.fixed_ids is None:
            return ids
        return torch.where(self.is_blank, ids, self.fixed_ids)


class HostDenoiser:
    """A denoiser that computes a step when it is asked for."""

    def __init__(self, model: DenoisingModel, cache: Any, noise: Noise) -> None:
        self._model, self._cache, self._noise = model, cache, noise

    def begin(self, row: Row) -> None:
        """See `Denoiser.begin`."""

    def step(self, rows: Sequence[Row]) -> list[Row]:
        """See `Denoiser.step`."""
        step(self._model, self._cache, self._noise, rows)
        return list(rows)

    def settle(self, rows: Sequence[Row]) -> list[Row]:
        """See `Denoiser.settle`."""
        return []

    def change(self, row: Row) -> None:
        """See `Denoiser.change`."""


@torch.inference_mode()
def step(model: DenoisingModel, cache: Any, noise: Noise, rows: Sequence[Row]) -> None:
    """One denoising pass over the canvases of all `rows`; each row takes its own step with it."""
    canvas_ids = torch.stack([row.canvas_ids for row in rows])
    cache_rows = [row.cache_row for row in rows]
    logits = model.denoise(canvas_ids, _soft_embeddings(rows), cache, cache_rows)
    for index, row in enumerate(rows):
        for place, token in row.barred:
            logits[index, place, token] = _NEVER
    logits.div_(_column([row.temperature for row in rows], logits)[..., None])
    p, entropy, best_ids = _distributions(logits)
    mean_entropy = entropy.mean(-1)
    if any(row.is_blank is not None for row in rows):
        mean_entropy = _impose(rows, p, entropy, best_ids)
    bounds = _column([row.job.params.entropy_bound for row in rows], p)
    accepted = within_bound_torch(entropy, bounds)
    for index, (row, mean) in enumerate(zip(rows, mean_entropy.tolist(), strict=True)):
        row.take_step(best_ids[index], entropy[index], accepted[index], mean)
    going = [index for index, row in enumerate(rows) if row.goes_on]
    if len(going) == len(rows):
        _go_on(model, noise, rows, p, accepted)
    elif going:
        _go_on(model, noise, [rows[index] for index in going], p[going], accepted[going])


def _soft_embeddings(rows: Sequence[Row]) -> Tensor | None:
    """What the rows' last steps handed on, [R, C, H], zero for a row without one; None if all."""
    given = [row.soft_embedding for row in rows]
    known = next((one for one in given if one is not None), None)
    if known is None:
        return None
    nothing = torch.zeros_like(known)
    return torch.stack([nothing if one is None else one for one in given])


def _distributions(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities [R, C, V], their entropy in nats and the likeliest token, both [R, C].

    Overwrites ``logits``. They are taken relative to the largest, which leaves both terms of the
    entropy, -log p(best) and what the others lack to it, exact where it is almost zero.
    """
    best_ids = largest_torch(logits)
    best = best_ids[..., None]
    relative = logits.sub_(logits.gather(-1, best))
    p = relative.softmax(-1)
    entropy = p.gather(-1, best).log_()[..., 0].add_(relative.mul_(p).sum(-1)).neg_()
    return p, entropy, best_ids


def _go_on(
    model: DenoisingModel, noise: Noise, rows: Sequence[Row], p: Tensor, accepted: Tensor
) -> None:
    """Give each row its next canvas: a sample where accepted, and random tokens elsewhere."""
    draws = [row.draw(row.step) for row in rows]
    next_ids = noise.renoise(draws, p, accepted)
    soft_embedding = model.soft_embed(p)
    for index, row in enumerate(rows):
        row.go_on(next_ids[index], soft_embedding[index])


def _impose(rows: Sequence[Row], p: Tensor, entropy: Tensor, best_ids: Tensor) -> Tensor:
    """Make templates' fixed positions certain, in place; the mean entropy [R] over blanks."""
    mean_entropy = entropy.mean(-1)
    for index, row in enumerate(rows):
        if row.is_blank is not None and row.fixed_ids is not None:
            is_fixed = ~row.is_blank
            p[index, is_fixed] = torch.nn.functional.one_hot(
                row.fixed_ids[is_fixed], p.shape[2]
            ).to(p.dtype)
            entropy[index, is_fixed] = 0
            best_ids[index, is_fixed] = row.fixed_ids[is_fixed]
            blanks = entropy[index, row.is_blank]
            mean_entropy[index] = blanks.mean() if len(blanks) else 0.0
    return mean_entropy


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[:, None]
