"""One request in a batch of drafts: its settings, its canvas and what the last step made of it.

Nothing is ever frozen inside a canvas: each step keeps the positions it is surest of and replaces
all others by random tokens; what carries over is the kept tokens and the self-conditioning vector.
The text of a canvas is its arg-max, not its sampled tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hybrid.drafters.noise import Draw
from hybrid.drafters.template import Template
from hybrid.kernels.accept import FREE
from hybrid.protocols import DraftJob, Votes


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

    @property
    def imposed_ids(self) -> Tensor | None:
        """Int64 [C]: tokens that places hold for certain, `FREE` elsewhere; None if none do."""
        if self.is_blank is None or self.fixed_ids is None:
            return None
        return torch.where(self.is_blank, FREE, self.fixed_ids)

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
