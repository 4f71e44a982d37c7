"""One request while it is drafted: prompt, template, current canvas, answer so far, timings.

No token is ever frozen inside a canvas. Each step keeps the positions it is surest of and replaces
all others by random tokens; what carries over to the next step is the kept tokens and the
self-conditioning embedding. The text of a canvas is its arg-max, not its sampled tokens.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from threading import Event

import torch
from torch import Tensor

from hybrid.drafters.noise import Draw
from hybrid.drafters.template import Template
from hybrid.kernels.accept import FREE
from hybrid.priority import Priority
from hybrid.protocols import DraftJob, Votes
from hybrid.types import Canvas, Draft, DraftTiming, FinishReason


@dataclass(slots=True, eq=False)
class DraftSequence:
    """A checked job on its way through the engine.

    `max_total_tokens` limits prompt and answer together. The engine sets `row`, the sequence's row
    of the KV cache, when it admits it.

    Of the current canvas: `canvas_ids` int64 [C] is what the next step reads, `soft_embedding`
    [C, H] the self-conditioning that goes with it (None before the first step). The last step left
    `best_ids` int64, `entropy` float32 (nats) and `accepted` bool, [C] each. `fixed_token_ids`
    int64 [C] are tokens that positions must hold, `FREE` where the drafter writes; None if it
    writes all. `banned_tokens` are pairs of a position and a token id not to be written there.

    Of the finished canvases: `token_ids` and, one number a token, `token_entropy` and
    `self_logprobs`; `latest_ids` are the last canvas's. `last_hidden` [1, H] is the state that
    predicts the next token, for jobs that are scored.
    """

    job: DraftJob
    prompt_ids: tuple[int, ...] = ()
    template: Template | None = None
    max_total_tokens: int = 0
    priority: Priority = field(init=False)
    enqueued_at: float = field(default_factory=time.perf_counter)
    row: int = -1

    canvas: int = 0
    step: int = 0
    stable_steps: int = -1
    converged: bool = False
    mean_entropy: float = float("inf")
    canvas_ids: Tensor = field(init=False)
    best_ids: Tensor = field(init=False)
    entropy: Tensor = field(init=False)
    accepted: Tensor = field(init=False)
    soft_embedding: Tensor | None = None
    fixed_token_ids: Tensor | None = None
    banned_tokens: frozenset[tuple[int, int]] = frozenset()

    token_ids: list[int] = field(default_factory=list)
    latest_ids: list[int] = field(default_factory=list)
    token_entropy: list[float] = field(default_factory=list)
    self_logprobs: list[float] = field(default_factory=list)
    canvases: list[Canvas] = field(default_factory=list)
    last_hidden: Tensor | None = None
    finish_reason: FinishReason | None = None

    waiting_s: float = 0.0
    prefill_s: float = 0.0
    denoise_s: float = 0.0
    commit_s: float = 0.0

    is_aborted: bool = False
    outcome: Draft | BaseException | None = None
    finished: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self.priority = Priority.of(self.job.deadline)
        if self.template is not None:
            tokens = self.template.tokens
            self.fixed_token_ids = torch.tensor([FREE if t is None else t for t in tokens])

    # Limits

    @property
    def max_answer_tokens(self) -> int:
        """Most tokens that the answer may have, by the request and by the context."""
        return min(self.job.max_new_tokens, self.max_total_tokens - len(self.prompt_ids))

    @property
    def min_canvas_tokens(self) -> int:
        """Tokens of the canvas that belong to the answer whatever the drafter writes."""
        return self.template.min_tokens if self.template else 0

    # The current canvas

    @property
    def temperature(self) -> float:
        """Of the next step: from t_max down towards t_min as steps run out."""
        params = self.job.params
        remaining = params.max_denoising_steps - self.step
        return params.t_min + (params.t_max - params.t_min) * remaining / params.max_denoising_steps

    @property
    def is_canvas_done(self) -> bool:
        """Whether the current canvas has converged or used up its steps."""
        return self.converged or self.step >= self.job.params.max_denoising_steps

    @property
    def has_canvas_ended(self) -> bool:
        """Whether the current canvas takes no further step: it is done, or the time is up."""
        return self.is_canvas_done or self.job.deadline.expired

    @property
    def may_continue(self) -> bool:
        """Whether the canvas may take another step: a guide can revoke that it converged."""
        return not self.is_canvas_done or self.job.guide is not None

    def draw(self, step: int) -> Draw:
        """The key of the random numbers that follow `step`."""
        return Draw(self.job.seed, self.canvas, step)

    def start_canvas(self, random_ids: Tensor) -> None:
        """Start the canvas on random tokens [C]; the first one on the job's own where given."""
        if self.fixed_token_ids is not None:
            self.fixed_token_ids = self.fixed_token_ids.to(random_ids.device)
        canvas_ids = random_ids.clone()
        if self.canvas == 0:
            warm_start = canvas_ids.new_tensor(self.job.warm_start)
            canvas_ids[: len(warm_start)] = warm_start
        self.canvas_ids = self._with_fixed(canvas_ids)

    def advance_canvas(self) -> None:
        """Leave the finished canvas; the next one starts with `start_canvas`."""
        self.canvas += 1
        self.step, self.stable_steps, self.converged = 0, -1, False
        self.soft_embedding, self.banned_tokens = None, frozenset()
        if self.job.guide is not None:  # it fixed positions of the last canvas
            self.fixed_token_ids = None

    def take_step(
        self, best_ids: Tensor, entropy: Tensor, accepted: Tensor, mean_entropy: float
    ) -> None:
        """Take over this sequence's part of a step, and decide whether the canvas converged."""
        params = self.job.params
        is_same = self.step > 0 and torch.equal(self.best_ids, best_ids)
        self.best_ids, self.entropy, self.accepted = best_ids, entropy, accepted
        self.step += 1
        self.stable_steps = self.stable_steps + 1 if is_same else 0
        self.mean_entropy = mean_entropy
        is_stable = self.stable_steps >= params.stability_threshold
        self.converged = is_stable and mean_entropy < params.confidence_threshold

    def set_next_input(self, canvas_ids: Tensor, soft_embedding: Tensor) -> None:
        """Take over what the next step starts from."""
        self.canvas_ids = self._with_fixed(canvas_ids)
        self.soft_embedding = soft_embedding

    def load_result(
        self,
        step: int,
        canvas_ids: Tensor,
        best_ids: Tensor,
        entropy: Tensor,
        accepted: Tensor,
        converged: bool,
        mean_entropy: float,
    ) -> None:
        """Take over what a device has made of the canvas by `step`, and decided about it."""
        self.step, self.stable_steps = step, 0
        self.canvas_ids, self.best_ids = canvas_ids, best_ids
        self.entropy, self.accepted = entropy, accepted
        self.converged, self.mean_entropy = converged, mean_entropy

    def apply_votes(self, votes: Votes, random_ids: Tensor) -> None:
        """Fix what is approved, and continue from random tokens where something is vetoed."""
        approved, vetoed = sorted(votes.approved), sorted(votes.vetoed - votes.approved)
        if approved:
            if self.fixed_token_ids is None:
                self.fixed_token_ids = torch.full_like(self.best_ids, FREE)
            self.fixed_token_ids[approved] = self.best_ids[approved]
        if vetoed:
            self.canvas_ids[vetoed] = random_ids[vetoed]
            self.accepted[vetoed] = False
            self.stable_steps, self.converged = -1, False
        self.banned_tokens |= votes.banned_tokens
        self.canvas_ids = self._with_fixed(self.canvas_ids)

    def count_answer(self, token_ids: Sequence[int], end_token_ids: Collection[int]) -> int:
        """How many of a canvas's tokens come before its end token."""
        positions = range(self.min_canvas_tokens, len(token_ids))
        return next((p for p in positions if token_ids[p] in end_token_ids), len(token_ids))

    def _with_fixed(self, ids: Tensor) -> Tensor:
        fixed = self.fixed_token_ids
        return ids if fixed is None else torch.where(fixed == FREE, ids, fixed)

    # The answer

    @property
    def is_commit_needed(self) -> bool:
        """Whether the canvas just taken must be read: another follows, or it is scored."""
        return self.finish_reason is None or (self.job.self_score and bool(self.latest_ids))

    def take_canvas(self, end_token_ids: Collection[int]) -> None:
        """Append the canvas's answer to the sequence's, and decide whether it is finished."""
        canvas = self.best_ids.tolist()
        left = self.max_answer_tokens - len(self.token_ids)
        count = self.count_answer(canvas, end_token_ids)
        has_end = count < len(canvas) and count < left
        self.latest_ids = canvas[: min(count + has_end, left)]
        self.token_ids += self.latest_ids
        self.token_entropy += self.entropy.tolist()[: len(self.latest_ids)]
        self.canvases.append(Canvas(self.step, self.converged, self.mean_entropy))
        if not self.is_canvas_done:
            self.finish_reason = "budget"
        elif has_end:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_answer_tokens or self.template is not None:
            self.finish_reason = "length"
        elif self.job.deadline.expired:
            self.finish_reason = "budget"

    @property
    def timing(self) -> DraftTiming:
        """Where the seconds went so far."""
        return DraftTiming(self.prefill_s, self.denoise_s, self.commit_s, self.waiting_s)

    def finish(self, outcome: Draft | BaseException) -> None:
        """Hand the draft, or what went wrong, to whoever waits; only the first time counts."""
        if not self.finished.is_set():
            self.outcome = outcome
            self.finished.set()

    def wait(self) -> Draft:
        """The draft, once it is finished; raises what went wrong instead."""
        self.finished.wait()
        if not isinstance(self.outcome, Draft):
            assert self.outcome is not None
            raise self.outcome
        return self.outcome
