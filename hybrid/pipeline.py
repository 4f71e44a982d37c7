"""A request's life: signals, plan, draft, verdict, refinement, result.

Every step leaves an answer behind that the next may only improve: once a draft exists, neither a
failing refiner nor a deadline can lose it.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from threading import Event as Flag

from hybrid.backends import Models
from hybrid.batching import SharedDrafter
from hybrid.checks import DoesNotRepeat, examine, failed_names
from hybrid.cores import available_cores
from hybrid.deadline import Deadline
from hybrid.errors import (
    BackendError,
    Cancelled,
    CapabilityError,
    DeadlineExceeded,
    RequestError,
)
from hybrid.policies.history import History
from hybrid.policies.latency import LatencyModel
from hybrid.policies.planner import plan
from hybrid.policies.rules import PythonRule, ask
from hybrid.policies.schema import Policy
from hybrid.policies.signals import gather
from hybrid.protocols import DraftJob, Sampling
from hybrid.refiners.assignment import Assignment, Clamp
from hybrid.refiners.guide import RefinerGuide
from hybrid.refiners.refine import refine, write_alone
from hybrid.turns import Turns
from hybrid.types import (
    CheckOutcome,
    Denoised,
    Draft,
    Drafted,
    Event,
    Finished,
    Message,
    Patched,
    Plan,
    Planned,
    Refinement,
    Request,
    Result,
    Signals,
    SignalValue,
    Timing,
    Usage,
    Verdict,
)

Emit = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Custom:
    """What the application adds to a policy: signals of its own by name, and a rule in Python."""

    signals: Mapping[str, Callable[[Request], SignalValue]] = field(default_factory=dict)
    rule: PythonRule | None = None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Answers requests with a loaded pair under a policy.

    `history`, if there is one, learns from every answer and predicts from then on. Refining takes
    turns: more at once than processors are left by drafting makes all of them late.
    """

    policy: Policy
    models: Models
    latency: LatencyModel
    custom: Custom = Custom()
    history: History | None = None
    refining: Turns = field(default_factory=lambda: Turns(max(1, available_cores() - 1)))

    @property
    def is_exclusive(self) -> bool:
        """Whether it can answer only one request at a time."""
        return not isinstance(self.models.drafter, SharedDrafter | None)

    def answer(
        self,
        request: Request,
        emit: Emit | None = None,
        cancelled: Flag | None = None,
        load: int = 0,
        started: float | None = None,
    ) -> Result:
        """The whole life of one request; `emit` gets every event as it happens.

        `load` is how many others are being answered; `emit` may be called from another thread.
        The budget runs from `started` on the monotonic clock, now if it is None.
        Raises RequestError before anything runs, Cancelled once `cancelled` is set,
        DeadlineExceeded only if the policy says `on_deadline: fail`, and BackendError if no answer
        could be had at all.
        """
        work = _Work(self._phrased(request), time.monotonic() if started is None else started)
        work.signals, work.plan = self.plan(request, load)
        work.finish("plan")
        tell = emit or _nobody
        tell(Planned(work.signals, work.plan))
        deadline = Deadline.after(work.plan.budget_s, work.started, cancelled)

        if work.plan.draft is not None:
            work.draft = self._draft(work, deadline, emit)
            work.draft_checks = examine(request.checks, work.draft.text)
            tell(Drafted(work.draft))
        work.finish("draft")

        self._refine(work, deadline)
        work.examine()
        if work.refinement and work.draft and work.refinement.edits:
            tell(Patched(work.refinement))
        work.finish("refine")

        work.notes += self._warnings(request, work.request)
        if problem := DoesNotRepeat().problem(work.answer().text):
            work.notes += (f"the answer repeats itself: {problem}",)
        result = work.result()
        if self.history is not None:
            self.history.learn(result)
        if result.finish_reason == "budget" and self.policy.on_deadline == "fail":
            raise DeadlineExceeded(f"no complete answer within {work.plan.budget_s} s")
        tell(Finished(result))
        return result

    def plan(self, request: Request, load: int = 0) -> tuple[Signals, Plan]:
        """What the policy decides for a request; runs no model."""
        drafter, refiner, custom = self.models.drafter, self.models.refiner, self.custom
        request = self._phrased(request)
        reader = drafter or refiner
        if reader is None:
            raise CapabilityError("answering", "this policy", "it names no drafter and no refiner")
        signals = gather(
            request,
            prompt_tokens=reader.count_prompt_tokens(request),
            blank_tokens=drafter.count_blank_tokens(request) if drafter else 0,
            recognise=self.models.recognise,
            policy=self.policy,
            custom={name: _signal(name, read(request)) for name, read in custom.signals.items()},
            load=load,
        )
        said = ask(custom.rule, request, signals) if custom.rule else None
        quality = {**self.models.quality, **self.policy.quality}
        latency = self.history.latency if self.history else self.latency
        return signals, plan(request, signals, self.policy, latency, quality, said)

    def _draft(
        self, work: "_Work", deadline: Deadline, on_step: Callable[[Denoised], None] | None
    ) -> Draft:
        assert self.models.drafter is not None and work.plan.draft is not None
        refining, refiner, most = work.plan.refine, self.models.refiner, work.plan.max_new_tokens
        if refining.mode == "guide" and refiner is not None:
            work.guide = RefinerGuide(refiner, work.request, refining, most, deadline)
        job = work.job(deadline, on_step)
        count = refining.drafts if refining.mode == "best_of" else 1
        more = [replace(job, seed=(work.seed + n) % 2**63, on_step=None) for n in range(1, count)]
        draft, *work.more_drafts = self.models.drafter.draft([job, *more])
        return draft

    def _refine(self, work: "_Work", deadline: Deadline) -> None:
        """Judge and improve the draft; whatever goes wrong here, the draft stands."""
        if work.plan.refine.mode == "none":
            return
        if not self.refining.take(deadline, is_needed=work.draft is None):
            work.notes += ("no time was left to refine: the draft stands",)
            return
        try:
            if work.draft is None:
                work.refinement = write_alone(
                    self.models.refiner,
                    work.request,
                    work.plan.max_new_tokens,
                    deadline,
                    work.sampling,
                )
            else:
                assignment = self._assignment(work, work.draft, deadline)
                work.verdict, work.refinement = refine(assignment)
        except Cancelled:
            raise
        except Exception as error:
            if work.draft is None:
                raise
            work.notes += (f"the refiner failed ({error}): the draft stands",)
        finally:
            self.refining.give_back()

    def _assignment(self, work: "_Work", draft: Draft, deadline: Deadline) -> Assignment:
        """What a refine mode may use; raises BackendError if the draft's guide failed."""
        drafter, guide = self.models.drafter, work.guide
        assert drafter is not None
        if guide and guide.problem:
            raise BackendError("guide", str(guide.problem)) from guide.problem

        def failed(text: str) -> tuple[str, ...]:
            known = text == draft.text
            return failed_names(work.draft_checks if known else examine(work.request.checks, text))

        def redraft(clamp: Clamp) -> Draft:
            again = replace(work.job(deadline, None), seed=(work.seed + 1) % 2**63, clamp=clamp)
            return drafter.draft([again])[0]

        return Assignment(
            request=work.request,
            draft=draft,
            params=work.plan.refine,
            max_new_tokens=work.plan.max_new_tokens,
            deadline=deadline,
            refiner=self.models.refiner,
            sampling=work.sampling,
            failed_checks=failed,
            redraft=redraft,
            more_drafts=work.more_drafts,
            opened=guide.session if guide else None,
        )

    def _phrased(self, request: Request) -> Request:
        """The request in the models' own words, where its task was given by name."""
        if self.models.phrase is None or request.task is None:
            return request
        *before, last = request.conversation
        content = self.models.phrase(request.task, last.content)
        if content == last.content:
            return request
        return replace(request, messages=(*before, Message(last.role, content)))

    def _warnings(self, asked: Request, answered: Request) -> tuple[str, ...]:
        prompt = answered.conversation[-1].content
        notes: tuple[str, ...] = () if asked == answered else (f"read as {prompt!r}",)
        if self.models.recognise is not None and self.models.recognise(prompt) is None:
            notes += ("outside the embedded model's tasks: do not expect a meaningful answer",)
        return notes


def _signal(name: str, value: SignalValue) -> SignalValue:
    if not isinstance(value, str | int | float | bool):
        raise RequestError(f"signal {name}", value, "a function that returns text or a number")
    return value


def _nobody(event: Event) -> None:
    """Nobody listens."""


@dataclass(slots=True)
class _Work:
    """What is known of a request so far, and when each stage was done."""

    request: Request
    started: float
    finished: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    signals: Signals = field(init=False)
    plan: Plan = field(init=False)
    draft: Draft | None = None
    verdict: Verdict | None = None
    refinement: Refinement | None = None
    more_drafts: list[Draft] = field(default_factory=list)
    guide: RefinerGuide | None = None
    draft_checks: tuple[CheckOutcome, ...] = ()
    checks: tuple[CheckOutcome, ...] = ()
    is_harmed: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.seed = secrets.randbits(31) if self.request.seed is None else self.request.seed

    @property
    def sampling(self) -> Sampling:
        """How the refiner chooses its tokens."""
        return Sampling(self.plan.refine.temperature, self.seed)

    def finish(self, stage: str) -> None:
        self.finished[stage] = time.monotonic()

    def job(self, deadline: Deadline, on_step: Callable[[Denoised], None] | None) -> DraftJob:
        """What the drafter is asked for."""
        assert self.plan.draft is not None
        refining = self.plan.refine
        return DraftJob(
            request=self.request,
            params=self.plan.draft,
            seed=self.seed,
            max_new_tokens=self.plan.max_new_tokens,
            deadline=deadline,
            on_step=on_step,
            self_score=refining.mode != "none" and refining.scorer != "refiner",
            guide=self.guide,
        )

    def examine(self) -> None:
        """Check the refined answer; one that breaks what its draft kept does not replace it.

        Only `verify`'s promise, the refiner's own answer, is stronger than a check.
        """
        answer = self.answer()
        if answer is self.draft:
            self.checks = self.draft_checks
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

    def answer(self) -> Draft | Refinement:
        """The refined answer if refining came to its end and did no harm, else the draft."""
        is_whole = self.refinement and self.refinement.finish_reason != "budget"
        if self.refinement and (self.draft is None or (is_whole and not self.is_harmed)):
            return self.refinement
        assert self.draft is not None
        return self.draft

    def result(self) -> Result:
        answer, done = self.answer(), self.finished
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
        )
