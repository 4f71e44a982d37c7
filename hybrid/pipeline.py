"""A request's life: signals, plan, draft, verdict, refinement, result.

Every step leaves an answer behind that the next may only improve: once a draft exists, neither a
failing refiner nor a deadline can lose it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from hybrid.backends import Models
from hybrid.checks import DoesNotRepeat, examine, failed_names
from hybrid.cores import available_cores
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
from hybrid.request_state import RequestState
from hybrid.types import (
    Denoised,
    Draft,
    Drafted,
    Event,
    Finished,
    Patched,
    Plan,
    Planned,
    Request,
    Result,
    Signals,
    SignalValue,
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

    `history`, if there is one, learns from every answer and predicts from then on. Refining has as
    many slots as cores are left by drafting: more at once make all of them late.
    """

    policy: Policy
    models: Models
    latency: LatencyModel
    custom: Custom = Custom()
    history: History | None = None
    refining: DeadlineSemaphore = field(
        default_factory=lambda: DeadlineSemaphore(max(1, available_cores() - 1))
    )

    def answer(
        self,
        request: Request,
        emit: Emit | None = None,
        cancelled: CancelFlag | None = None,
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
        started = time.monotonic() if started is None else started
        state = RequestState(self._phrased(request), started, *self.plan(request, load))
        state.finish("plan")
        tell = emit or _nobody
        tell(Planned(state.signals, state.plan))
        deadline = Deadline.after(state.plan.budget_s, state.started, cancelled)

        if state.plan.draft is not None:
            state.draft = self._draft(state, deadline, emit)
            state.draft_checks = examine(request.checks, state.draft.text)
            tell(Drafted(state.draft))
        state.finish("draft")

        self._refine(state, deadline)
        state.check_answer()
        if state.refinement and state.draft and state.refinement.edits:
            tell(Patched(state.refinement))
        state.finish("refine")

        state.notes += self._warnings(request, state.request)
        if problem := DoesNotRepeat().problem(state.answer().text):
            state.notes += (f"the answer repeats itself: {problem}",)
        result = state.result()
        if self.history is not None:
            self.history.learn(result)
        if result.finish_reason == "budget" and self.policy.on_deadline == "fail":
            raise DeadlineExceeded(f"no complete answer within {state.plan.budget_s} s")
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
        self, state: RequestState, deadline: Deadline, on_step: Callable[[Denoised], None] | None
    ) -> Draft:
        assert self.models.drafter is not None and state.plan.draft is not None
        refining, refiner, most = state.plan.refine, self.models.refiner, state.plan.max_new_tokens
        if refining.mode == "guide" and refiner is not None:
            state.guide = RefinerGuide(refiner, state.request, refining, most, deadline)
        job = state.job(deadline, on_step)
        count = refining.drafts if refining.mode == "best_of" else 1
        more = [replace(job, seed=(state.seed + n) % 2**63, on_step=None) for n in range(1, count)]
        draft, *state.more_drafts = self.models.drafter.draft([job, *more])
        return draft

    def _refine(self, state: RequestState, deadline: Deadline) -> None:
        """Judge and improve the draft; whatever goes wrong here, the draft stands."""
        if state.plan.refine.mode == "none":
            return
        began = time.monotonic()
        is_admitted = self.refining.acquire(deadline, past_deadline=state.draft is None)
        state.refine_waiting_s = time.monotonic() - began
        if not is_admitted:
            state.notes += ("no time was left to refine: the draft stands",)
            return
        try:
            if state.draft is None:
                state.refinement = write_alone(
                    self.models.refiner,
                    state.request,
                    state.plan.max_new_tokens,
                    deadline,
                    state.sampling,
                )
            else:
                context = self._refine_context(state, state.draft, deadline)
                state.verdict, state.refinement = refine(context)
        except Cancelled:
            raise
        except Exception as error:
            if state.draft is None:
                raise
            state.notes += (f"the refiner failed ({error}): the draft stands",)
        finally:
            self.refining.release()

    def _refine_context(
        self, state: RequestState, draft: Draft, deadline: Deadline
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
            job = replace(state.job(deadline, None), seed=seed, fixed_token_ids=fixed)
            return drafter.draft([job])[0]

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
        if self.models.recognise is not None and self.models.recognise(prompt) is None:
            notes += ("outside the embedded model's tasks: do not expect a meaningful answer",)
        return notes


def _signal(name: str, value: SignalValue) -> SignalValue:
    if not isinstance(value, str | int | float | bool):
        raise RequestError(f"signal {name}", value, "a function that returns text or a number")
    return value


def _nobody(event: Event) -> None:
    """Nobody listens."""
