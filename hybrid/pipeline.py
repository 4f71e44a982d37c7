"""A request's life: signals, plan, admission, draft, verdict, refinement, result.

Every stage leaves an answer that the next may only improve: once a draft exists, neither a failing
refiner nor a deadline can lose it. An answer of nothing counts as a failure, whoever gave it.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from hybrid.admission import Admission
from hybrid.backends import Models
from hybrid.checks import DoesNotRepeat, examine, failed_names
from hybrid.deadline import CancelFlag, Deadline
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
from hybrid.priority import DeadlineSemaphore
from hybrid.refiners.context import FixedTokens, RefineContext
from hybrid.refiners.guide import RefinerGuide
from hybrid.refiners.refine import refine, write_alone
from hybrid.refiners.written_text import OnTokens, WrittenText
from hybrid.request_state import RequestState
from hybrid.types import (
    Draft,
    Drafted,
    DraftParams,
    Event,
    Finished,
    Patched,
    Plan,
    Planned,
    Refinement,
    Request,
    Result,
    Signals,
    SignalValue,
)

# Of the budget: under load, a draft of one step takes some ten times as long as alone.
_FALLBACK_SHARE, _AFTER_SHARE = 0.2, 0.02
_NO_TIME = "no time was left to refine: the draft stands"
_NO_TIME_TO_WRITE = "no time was left for the refiner to write"
log = logging.getLogger(__name__)
Emit = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Custom:
    """What the application adds to a policy: signals of its own by name, and a rule in Python."""

    signals: Mapping[str, Callable[[Request], SignalValue]] = field(default_factory=dict)
    rule: PythonRule | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the requests of one loaded pair share: who is let in, and slots to refine in."""

    admission: Admission
    refining: DeadlineSemaphore

    @classmethod
    def of(cls, models: Models) -> Self:
        """As much as the models say that they can do side by side."""
        first = models.drafter or models.refiner
        slots = models.refiner.concurrency if models.refiner else 1
        return cls(Admission(first.concurrency if first else 1), DeadlineSemaphore(slots))


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Answers requests with a loaded pair under a policy.

    `history`, if there is one, learns from every answer and predicts from then on. Pipelines of the
    same pair must share one `capacity`.
    """

    policy: Policy
    models: Models
    latency: LatencyModel
    custom: Custom = Custom()
    history: History | None = None
    capacity: Capacity = None  # type: ignore[assignment]  # of the models, if left out

    def __post_init__(self) -> None:
        if self.capacity is None:
            object.__setattr__(self, "capacity", Capacity.of(self.models))

    def answer(
        self,
        request: Request,
        emit: Emit | None = None,
        cancelled: CancelFlag | None = None,
        started: float | None = None,
    ) -> Result:
        """The whole life of one request; `emit` gets every event as it happens.

        `emit` may be called from another thread. The budget runs from `started` on the monotonic
        clock, now if it is None.
        Raises RequestError before anything runs, Overloaded if the request would wait too long,
        Cancelled once `cancelled` is set, DeadlineExceeded if the budget ran out with no answer or
        the policy says `on_deadline: fail`, and BackendError if no answer could be had at all.
        """
        started = time.monotonic() if started is None else started
        if request.budget_s is not None:  # a refusal should cost less than a plan
            self.capacity.admission.check(Deadline.after(request.budget_s, started), 0.0)
        state = RequestState(self._phrased(request), started, *self.plan(request))
        state.prompt_format = self.models.prompt_format
        state.finish("plan")
        deadline = Deadline.after(state.plan.budget_s, started, cancelled)
        log.info("%s: %s, budget %s s", state.id, state.plan.label, state.plan.budget_s)
        with self.capacity.admission.admitted(deadline, self._least_s(state.signals)):
            tell = emit or _nobody
            tell(Planned(state.signals, state.plan))
            self._draft(state, deadline, emit)
            self._refine(state, deadline, emit)
            self._ensure_answer(state, deadline)
            result = self._finish(state, request)
            tell(Finished(result))
            return result

    def _finish(self, state: RequestState, asked: Request) -> Result:
        """The result, from which the predictions learn."""
        state.notes += self._warnings(asked, state.request)
        answer = state.answer()
        if answer and (problem := DoesNotRepeat().problem(answer.text)):
            state.notes += (f"the answer repeats itself: {problem}",)
        result = state.result()
        reason, total_s = result.finish_reason, result.timing.total_s
        log.info("%s: %s after %.3f s: %s", state.id, reason, total_s, result.usage)
        if self.history is not None:
            self.history.learn(result)
        if result.finish_reason == "budget" and self.policy.on_deadline == "fail":
            raise DeadlineExceeded(f"no complete answer within {state.plan.budget_s} s")
        return result

    def plan(self, request: Request) -> tuple[Signals, Plan]:
        """What the policy decides for a request; runs no model."""
        drafter, refiner, custom = self.models.drafter, self.models.refiner, self.custom
        request = self._phrased(request)
        is_deterministic = request.deterministic or self.policy.deterministic
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
            load=0 if is_deterministic else self.capacity.admission.in_flight,
            length_hint=self.models.length_hint(request.question),
        )
        said = ask(custom.rule, request, signals) if custom.rule else None
        quality = {**self.models.quality, **self.policy.quality}
        latency = self.latency if is_deterministic else self._latency_now
        return signals, plan(request, signals, self.policy, latency, quality, said)

    def _least_s(self, signals: Signals) -> float:
        """Seconds of the least answer: a draft of one step, or a token where nothing drafts."""
        latency = self._latency_now
        if self.models.drafter is None:
            return latency.read(signals.prompt_tokens).p50_s
        return latency.draft(signals.prompt_tokens, 1, 1, 1).p50_s

    def _draft(self, state: RequestState, deadline: Deadline, emit: Emit | None) -> None:
        """Draft as planned, if anything is to be drafted."""
        drafter, refiner, plan = self.models.drafter, self.models.refiner, state.plan
        if plan.draft is not None:
            assert drafter is not None
            if plan.refine.mode == "guide" and refiner is not None:
                state.guide = RefinerGuide(
                    refiner, state.request, plan.refine, plan.max_new_tokens, deadline
                )
            job = state.job(plan.draft, deadline, emit)
            count = plan.refine.drafts if plan.refine.mode == "best_of" else 1
            seeds = ((job.seed + n) % 2**63 for n in range(1, count))
            more = [replace(job, seed=seed, on_step=None) for seed in seeds]
            draft, *state.more_drafts = drafter.draft([job, *more])
            state.take_draft(draft)
            if emit is not None:
                emit(Drafted(draft))
        state.finish("draft")

    def _refine(self, state: RequestState, deadline: Deadline, emit: Emit | None) -> None:
        """Evaluate and improve the draft; whatever goes wrong here, the draft stands."""
        if state.plan.refine.mode != "none":
            asked = time.monotonic()
            if self.capacity.refining.acquire(deadline.earlier(self._reserve_s(state))):
                started = time.monotonic()
                state.waiting_s += started - asked
                try:
                    # What follows the last token (checks, the result) takes time as well.
                    after_s = _AFTER_SHARE * (state.plan.budget_s or 0.0)
                    self._run_refiner(state, deadline.earlier(after_s), emit)
                finally:
                    self.capacity.refining.release()
            else:
                state.notes += (_NO_TIME if state.draft else _NO_TIME_TO_WRITE,)
        state.check_answer()
        if emit is not None and state.refinement and state.draft and state.refinement.edits:
            emit(Patched(state.refinement))
        state.finish("refine")

    def _run_refiner(self, state: RequestState, deadline: Deadline, emit: Emit | None) -> None:
        """The refiner's part of the plan; what it raises is an error only where nothing drafts."""
        on_tokens = None
        if emit is not None and self.models.refiner is not None:
            on_tokens = WrittenText(self.models.refiner.decode, emit)
        try:
            if state.draft is None:
                state.refinement = self._written(state, deadline, on_tokens)
            else:
                context = self._refine_context(state, state.draft, deadline, on_tokens)
                state.verdict, state.refinement = refine(context)
        except Cancelled:
            raise
        except Exception as error:
            if self.models.drafter is None:
                raise
            log.warning("%s: the refiner failed: %s", state.id, error)
            state.notes += (f"the refiner failed ({error}): the draft stands",)

    def _written(
        self, state: RequestState, deadline: Deadline, on_tokens: OnTokens | None = None
    ) -> Refinement:
        """What the refiner writes alone."""
        return write_alone(
            self.models.refiner,
            state.request,
            state.plan.max_new_tokens,
            deadline,
            state.sampling,
            on_tokens=on_tokens,
        )

    def _ensure_answer(self, state: RequestState, deadline: Deadline) -> None:
        """Make up for an answer of nothing, and raise where nothing can be had.

        A refiner that got no slot, failed or wrote nothing leaves a draft of one step. An empty
        draft is drawn once more, and then left to the refiner, while there is time.
        """
        drafter, refiner = self.models.drafter, self.models.refiner
        if state.has_answer:
            return
        if drafter is not None and state.draft is None:
            job = state.job(DraftParams(max_denoising_steps=1), deadline, None)
            state.take_draft(drafter.draft([job])[0])
            state.notes += ("the refiner wrote nothing in time: this is a draft of one step",)
        if drafter is not None and not state.has_answer and not deadline.expired:
            job = state.job(state.plan.draft or DraftParams(), deadline, None)
            state.take_draft(drafter.draft([replace(job, seed=(job.seed + 1) % 2**63)])[0])
            state.notes += ("the draft was empty: this is another draw",)
        if refiner is not None and not state.has_answer and not deadline.expired:
            state.refinement = self._written(state, deadline)
            state.notes += ("the drafts were empty: the refiner wrote alone",)
        if state.has_answer:
            return
        if deadline.expired:
            raise DeadlineExceeded(f"nothing was written within {state.plan.budget_s} s")
        raise BackendError("answer", "the models wrote nothing: the answer is empty")

    def _reserve_s(self, state: RequestState) -> float:
        """How long before the deadline refining must begin to be worth it.

        A pass cannot be interrupted, so one that would end too late does not start. Without a draft
        there must be time left for one afterwards.
        """
        latency = self._latency_now
        tokens = len(state.draft.token_ids) if state.draft else 0
        pass_s = latency.read(state.signals.prompt_tokens + tokens).p50_s
        reserve_s = max(1.0, latency.slowdown) * pass_s
        if state.draft is None and self.models.drafter is not None:
            least_s = self._least_s(state.signals)
            reserve_s += max(2 * least_s, _FALLBACK_SHARE * (state.plan.budget_s or 0.0))
        return reserve_s

    @property
    def _latency_now(self) -> LatencyModel:
        """What predictions rest on."""
        return self.history.latency if self.history else self.latency

    def _refine_context(
        self, state: RequestState, draft: Draft, deadline: Deadline, on_tokens: OnTokens | None
    ) -> RefineContext:
        """What a refine mode may use; raises BackendError if the draft's guide failed."""
        drafter, guide = self.models.drafter, state.guide
        assert drafter is not None
        if guide and guide.problem:
            raise BackendError("guide", str(guide.problem)) from guide.problem

        def failed(text: str) -> tuple[str, ...]:
            known = text == draft.text
            return failed_names(
                state.draft_checks if known else examine(state.request.checks, text)
            )

        def redraft(fixed: FixedTokens) -> Draft:
            seed = (state.seed + 1) % 2**63
            assert state.plan.draft is not None
            job = state.job(state.plan.draft, deadline, None)
            return drafter.draft([replace(job, seed=seed, fixed_token_ids=fixed)])[0]

        return RefineContext(
            request=state.request,
            draft=draft,
            params=state.plan.refine,
            max_new_tokens=state.plan.max_new_tokens,
            deadline=deadline,
            refiner=self.models.refiner,
            sampling=state.sampling,
            failed_checks=failed,
            redraft=redraft,
            more_drafts=state.more_drafts,
            opened=guide.session if guide else None,
            on_tokens=on_tokens,
        )

    def _phrased(self, request: Request) -> Request:
        """The request in the models' own words, where its task was given by name."""
        if self.models.phrase is None or request.task is None:
            return request
        content = self.models.phrase(request.task, request.question)
        if content == request.question:
            return request
        turns = request.conversation
        place = max((n for n, turn in enumerate(turns) if turn.role == "user"), default=-1)
        asked = replace(turns[place], content=content, parts=())
        return replace(request, messages=(*turns[:place], asked, *turns[place:][1:]))

    def _warnings(self, asked: Request, answered: Request) -> tuple[str, ...]:
        prompt = answered.question
        notes: tuple[str, ...] = () if asked == answered else (f"read as {prompt!r}",)
        note = self.models.note(prompt)
        return (*notes, note) if note else notes


def _signal(name: str, value: SignalValue) -> SignalValue:
    if not isinstance(value, str | int | float | bool):
        raise RequestError(f"signal {name}", value, "a function that returns text or a number")
    return value


def _nobody(event: Event) -> None:
    """Nobody listens."""
