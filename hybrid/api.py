"""`Hybrid` and `AsyncHybrid`: answers in an application, in blocking and in async code.

Models load at the first request, outside its budget. Requests from several threads share the
drafter's denoising steps; each has the answer that its seed would have had alone.
"""

import gc
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from threading import Lock
from types import TracebackType
from typing import Self, Unpack

from anyio import CancelScope, CapacityLimiter, create_task_group, to_thread

from hybrid.backends import Models, load_models
from hybrid.batching import SLOTS, share
from hybrid.errors import BackendError, RequestError
from hybrid.event_stream import EventStream
from hybrid.pipeline import Custom, Emit, Pipeline
from hybrid.policies.calibration import load_or_measure
from hybrid.policies.history import History
from hybrid.policies.loader import load_policy, preset_names
from hybrid.policies.measurements import history_file
from hybrid.policies.rules import PythonRule
from hybrid.policies.schema import Policy
from hybrid.policies.watch import WatchedPolicy
from hybrid.requests import Options, Prompt, make_request
from hybrid.types import Event, Finished, Plan, Request, Result, SignalValue

MAX_IN_FLIGHT = 256


class Hybrid:
    """A policy and the models it names.

    with Hybrid.from_policy("balanced") as hybrid:
        result = hybrid.generate("sort up: 4 8 1 9 3", budget="300ms")

    `signals` are functions of a request whose values the policy's rules may ask for (`when:
    {signals: {customer: gold}}`). `rule` is a function of a request and its signals that may return
    what a rule in YAML would say, such as `{"refine": {"mode": "verify"}}`; it comes before the
    policy's rules.

    Any number of threads may ask at once: their drafts are denoised together. Above
    `max_in_flight` requests the next one is refused at once, with a BackendError that says that a
    retry can help.
    """

    def __init__(
        self,
        policy: Policy | WatchedPolicy,
        models: Models | None = None,
        *,
        signals: Mapping[str, Callable[[Request], SignalValue]] | None = None,
        rule: PythonRule | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._policy = policy
        self._models = models
        self._custom = Custom(signals or {}, rule)
        self._pipeline: Pipeline | None = None
        self._latency_basis = ""
        self._lock, self._turn = Lock(), Lock()
        self._in_flight, self._max_in_flight = 0, max_in_flight

    @classmethod
    def from_policy(
        cls,
        policy: str | Path | Policy = "balanced",
        *,
        watch: bool = False,
        signals: Mapping[str, Callable[[Request], SignalValue]] | None = None,
        rule: PythonRule | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> Self:
        """Under a preset's name, a policy file or a policy; raises PolicyError. Loads no model.

        With `watch`, a policy file that changes is in force from the next request on; a change that
        is not valid is logged and leaves the policy as it was.
        """
        if watch and (isinstance(policy, Policy) or str(policy) in preset_names()):
            raise RequestError("watch", watch, "only a policy file can change")
        if isinstance(policy, Policy):
            found: Policy | WatchedPolicy = policy
        else:
            found = WatchedPolicy(policy) if watch else load_policy(policy)
        return cls(found, signals=signals, rule=rule, max_in_flight=max_in_flight)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        given = self._policy
        return given.current() if isinstance(given, WatchedPolicy) else given

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Result:
        """The answer to a prompt, a conversation or a Request."""
        return self._answer(prompt, options, lambda event: None, Flag())

    def generate_batch(self, prompts: Iterable[Prompt], **options: Unpack[Options]) -> list[Result]:
        """The answers to many prompts, in their order, drafted together.

        The first error is raised once all have been tried.
        """
        with ThreadPoolExecutor(min(2 * SLOTS, self._max_in_flight)) as threads:
            answers = [threads.submit(self.generate, prompt, **options) for prompt in prompts]
        return [answer.result() for answer in answers]

    def fill(self, prompt: Prompt, template: str, **options: Unpack[Options]) -> Result:
        """The answer as `template`, with its blanks (`<blank:N>`, N tokens) filled in."""
        options["infill"] = template
        return self.generate(prompt, **options)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> EventStream:
        """The events of an answer as they happen, `Finished` last; closing it cancels the work."""
        return EventStream(lambda emit, cancelled: self._answer(prompt, options, emit, cancelled))

    def explain(self, prompt: Prompt, **options: Unpack[Options]) -> Plan:
        """The decision that `generate` would take, with what was rejected and why."""
        request = make_request(prompt, options)
        with self._lock:
            return self._ready().plan(request, self._in_flight)[1]

    @property
    def latency_basis(self) -> str:
        """How and when the costs that plans are predicted with were measured; loads the models."""
        with self._lock:
            self._ready()
            return self._latency_basis

    def load(self) -> Self:
        """Load the models now instead of at the first request."""
        with self._lock:
            self._ready()
        return self

    def close(self) -> None:
        """Keep what was learned and let go of the models; the next request loads them again."""
        with self._lock:
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, prompt: Prompt, options: Options, emit: Emit, cancelled: Flag) -> Result:
        request = make_request(prompt, options)
        with self._lock:
            pipeline, load = self._ready(), self._in_flight
            if load >= self._max_in_flight:
                message = f"{load} requests are being answered, as many as are allowed at once"
                raise BackendError("queue", message, retryable=True)
            self._in_flight += 1
        try:
            with self._turn if pipeline.is_exclusive else nullcontext():
                return pipeline.answer(request, emit, cancelled, load)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _ready(self) -> Pipeline:
        policy, before = self.policy, self._pipeline
        if before is None or before.policy.models != policy.models:
            models = self._models or load_models(policy.models.drafter, policy.models.refiner)
            self._let_go()
            measured = load_or_measure(policy, models.drafter, models.refiner)
            history = History(measured.costs, history_file(policy))
            shared = replace(models, drafter=share(models.drafter))
            self._pipeline = Pipeline(policy, shared, measured.costs, self._custom, history)
            self._latency_basis = measured.description
            # What is loaded stays. To look through it for garbage stops all requests for 95 ms.
            gc.freeze()
        elif before.policy is not policy:
            self._pipeline = replace(before, policy=policy)
        assert self._pipeline is not None
        return self._pipeline

    def _let_go(self) -> None:
        if self._pipeline is None:
            return
        if self._pipeline.history is not None:
            self._pipeline.history.save()
        self._pipeline = None
        gc.unfreeze()


class AsyncHybrid:
    """`Hybrid` for async code; the work runs in a thread and stops when its task is cancelled."""

    def __init__(self, hybrid: Hybrid) -> None:
        self._hybrid = hybrid

    @classmethod
    def from_policy(
        cls,
        policy: str | Path | Policy = "balanced",
        *,
        watch: bool = False,
        signals: Mapping[str, Callable[[Request], SignalValue]] | None = None,
        rule: PythonRule | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> Self:
        """See `Hybrid.from_policy`."""
        return cls(
            Hybrid.from_policy(
                policy, watch=watch, signals=signals, rule=rule, max_in_flight=max_in_flight
            )
        )

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Result:
        """See `Hybrid.generate`; cancelling the task frees the models within one step."""
        async for event in self.stream(prompt, **options):
            if isinstance(event, Finished):
                return event.result
        raise AssertionError("a stream ends with Finished or an error")

    async def generate_batch(
        self, prompts: Iterable[Prompt], **options: Unpack[Options]
    ) -> list[Result]:
        """See `Hybrid.generate_batch`; the first error cancels the others."""
        asked = [*prompts]
        results: dict[int, Result] = {}
        limit = CapacityLimiter(2 * SLOTS)

        async def answer(place: int, prompt: Prompt) -> None:
            async with limit:
                results[place] = await self.generate(prompt, **options)

        try:
            async with create_task_group() as tasks:
                for place, prompt in enumerate(asked):
                    tasks.start_soon(answer, place, prompt)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return [results[place] for place in range(len(asked))]

    async def fill(self, prompt: Prompt, template: str, **options: Unpack[Options]) -> Result:
        """See `Hybrid.fill`."""
        options["infill"] = template
        return await self.generate(prompt, **options)

    async def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncIterator[Event]:
        """See `Hybrid.stream`."""
        events = self._hybrid.stream(prompt, **options)
        waiting = CapacityLimiter(1)  # of its own: the usual one lets 40 wait in all
        try:
            while (
                event := await to_thread.run_sync(next, events, None, limiter=waiting)
            ) is not None:
                yield event
        finally:  # also while a thread waits for the next event: closing wakes it
            with CancelScope(shield=True):
                await to_thread.run_sync(events.close, limiter=CapacityLimiter(1))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._hybrid.close()
