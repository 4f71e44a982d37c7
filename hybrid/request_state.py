"""What is known of one request while it is answered, and which of its answers stands.

The pipeline fills it in stage by stage: plan, draft, verdict, refinement. At any moment after the
first of them `answer` is the best answer so far, so a failure or a deadline loses nothing.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hybrid.checks import examine
from hybrid.deadline import Deadline
from hybrid.protocols import DraftJob, SamplingParams
from hybrid.refiners.guide import RefinerGuide
from hybrid.types import (
    CheckOutcome,
    Denoised,
    Draft,
    DraftParams,
    Plan,
    PromptFormat,
    Refinement,
    Request,
    Result,
    Signals,
    Timing,
    Usage,
    Verdict,
)


@dataclass(slots=True)
class RequestState:
    """One request on its way through the pipeline.

    `started` is when the caller asked, on the monotonic clock; `finished` when each stage was done.
    `is_harmed` says that refining broke a check that the draft had passed. `waiting_s` is what was
    spent in queues.
    """

    request: Request
    started: float
    signals: Signals
    plan: Plan
    finished: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    draft: Draft | None = None
    verdict: Verdict | None = None
    refinement: Refinement | None = None
    more_drafts: list[Draft] = field(default_factory=list)
    guide: RefinerGuide | None = None
    draft_checks: tuple[CheckOutcome, ...] = ()
    checks: tuple[CheckOutcome, ...] = ()
    is_harmed: bool = False
    notes: tuple[str, ...] = ()
    waiting_s: float = 0.0
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    prompt_format: PromptFormat | None = None

    def __post_init__(self) -> None:
        self.seed = secrets.randbits(31) if self.request.seed is None else self.request.seed

    @property
    def sampling(self) -> SamplingParams:
        """How the refiner chooses its tokens."""
        return SamplingParams(self.plan.refine.temperature, self.seed)

    def finish(self, stage: str) -> None:
        """The stage is done now."""
        self.finished[stage] = time.monotonic()

    def job(
        self,
        params: DraftParams,
        deadline: Deadline,
        on_step: Callable[[Denoised], None] | None,
    ) -> DraftJob:
        """What the drafter is asked for."""
        refine = self.plan.refine
        return DraftJob(
            request=self.request,
            params=params,
            seed=self.seed,
            max_new_tokens=self.plan.max_new_tokens,
            deadline=deadline,
            on_step=on_step,
            self_score=refine.mode != "none" and refine.scorer != "refiner",
            guide=self.guide,
        )

    def take_draft(self, draft: Draft) -> None:
        """The draft is there: check it."""
        self.draft, self.draft_checks = draft, examine(self.request.checks, draft.text)
        self.waiting_s += draft.timing.waiting_s
        if self.answer() is draft:
            self.checks = self.draft_checks

    def check_answer(self) -> None:
        """Check the refined answer; one that breaks what its draft passed does not replace it.

        Only the guarantee of `verify`, the refiner's own answer, is stronger than a check.
        """
        answer = self.answer()
        if answer is None or answer is self.draft:
            return
        self.checks = examine(self.request.checks, answer.text)
        broken = [
            after.name
            for before, after in zip(self.draft_checks, self.checks, strict=False)
            if before.passed and not after.passed
        ]
        if broken and self.refinement and self.refinement.guarantee != "lossless":
            self.is_harmed, self.checks = True, self.draft_checks
            self.notes += (f"refining broke {', '.join(broken)}: the draft stands",)

    def answer(self) -> Draft | Refinement | None:
        """The answer that stands: the refined one if it is whole and did no harm, else the draft.

        Of two, one that is empty never stands. None before there is any.
        """
        draft, refined = self.draft, self.refinement
        if draft is None or refined is None:
            return draft or refined
        is_whole = refined.finish_reason != "budget" and not self.is_harmed
        first, second = (refined, draft) if is_whole else (draft, refined)
        return first if first.text.strip() or not second.text.strip() else second

    @property
    def has_answer(self) -> bool:
        """Whether there is any text to return."""
        answer = self.answer()
        return answer is not None and bool(answer.text.strip())

    def result(self) -> Result:
        """The answer that stands, with everything that was decided and measured."""
        answer, done = self.answer(), self.finished
        assert answer is not None
        return Result(
            text=answer.text,
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
            signals=self.signals,
            plan=self.plan,
            draft=self.draft,
            verdict=self.verdict,
            refinement=self.refinement,
            timing=Timing(
                total_s=time.monotonic() - self.started,
                plan_s=done["plan"] - self.started,
                draft_s=done["draft"] - done["plan"],
                refine_s=done["refine"] - done["draft"],
                predicted_p50_s=self.plan.predicted.latency_p50_s,
                predicted_p95_s=self.plan.predicted.latency_p95_s,
                budget_s=self.plan.budget_s,
                waiting_s=self.waiting_s,
            ),
            usage=Usage(
                prompt_tokens=self.signals.prompt_tokens,
                completion_tokens=len(answer.token_ids),
                denoising_steps=(self.draft.steps if self.draft else 0)
                + (self.refinement.denoising_steps if self.refinement else 0),
                refiner_passes=self.refinement.forward_passes if self.refinement else 0,
            ),
            seed=self.seed,
            notes=self.notes,
            checks=self.checks,
            id=self.id,
            thought=answer.thought,
            prompt_format=self.prompt_format,
        )
