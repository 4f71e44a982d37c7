"""`Hybrid` and `AsyncHybrid`: answers in an application, in blocking and in async code.

Models load at the first request, outside its budget. Requests from several threads share the
drafter's denoising steps; each has the answer that its seed would have had alone.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self, Unpack

from anyio import (
    CancelScope,
    CapacityLimiter,
    create_task_group,
    get_cancelled_exc_class,
    sleep,
    to_thread,
)

from hybrid.backends import Models
from hybrid.deadline import CancelFlag
from hybrid.errors import Overloaded, RequestError
from hybrid.event_stream import EventStream
from hybrid.local import Local
from hybrid.pipeline import Custom, Emit
from hybrid.policies.loader import load_policy, preset_names
from hybrid.policies.rules import PythonRule, check_signals
from hybrid.policies.schema import Policy
from hybrid.policies.watch import WatchedPolicy
from hybrid.requests import Options, Prompt, make_request
from hybrid.types import Event, Plan, Request, Result, SignalValue
from hybrid.workers.pool import Workers

MAX_IN_FLIGHT = 256
_MIN_RETRY_S, _INTERVALS = 0.01, 16
_BATCH_THREADS = 32  # that ask for the requests of one batch


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

    `workers` are processes that hold the models instead of this one, each with its share of the
    cores: more requests a second from a small model on a CPU, for its memory once more each.
    `signals`, `rule` and checks must then be functions of a module that can be imported.
    """

    def __init__(
        self,
        policy: Policy | WatchedPolicy,
        models: Models | None = None,
        *,
        signals: Mapping[str, Callable[[Request], SignalValue]] | None = None,
        rule: PythonRule | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
        workers: int = 0,
    ) -> None:
        if workers < 0 or (workers and models is not None):
            allowed = "at least 0, and 0 for models that are handed over: they stay in this process"
            raise RequestError("workers", workers, allowed)
        self._policy = policy
        check_signals(self.policy, signals or {})
        custom = Custom(signals or {}, rule)
        self._host = Workers(workers, custom) if workers else Local(custom, models)
        self._lock = Lock()
        self._in_flight, self._max_in_flight = 0, max_in_flight
        self._answered_at, self._interval_s = time.monotonic(), 0.0

    @classmethod
    def from_policy(
        cls,
        policy: str | Path | Policy = "balanced",
        *,
        watch: bool = False,
        signals: Mapping[str, Callable[[Request], SignalValue]] | None = None,
        rule: PythonRule | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
        workers: int = 0,
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
        return cls(found, signals=signals, rule=rule, max_in_flight=max_in_flight, workers=workers)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        given = self._policy
        return given.current() if isinstance(given, WatchedPolicy) else given

    def under(self, policy: Policy | WatchedPolicy) -> Self:
        """The same models under another policy; raises RequestError if it names others."""
        named = policy.current() if isinstance(policy, WatchedPolicy) else policy
        if named.models != self.policy.models:
            allowed = f"a policy with the models of {self.policy.name}"
            raise RequestError("policy", named.name, allowed)
        other = copy(self)
        other._policy = policy
        return other

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Result:
        """The answer to a prompt, a conversation or a Request."""
        return self._answer(prompt, options, None, CancelFlag())

    def generate_batch(self, prompts: Iterable[Prompt], **options: Unpack[Options]) -> list[Result]:
        """The answers to many prompts, in their order, drafted together.

        A request that is refused because of the others waits and is tried again; its budget runs
        from then. The first error is raised once all have been tried.
        """

        def answer(prompt: Prompt) -> Result:
            while True:
                try:
                    return self.generate(prompt, **options)
                except Overloaded as refusal:
                    time.sleep(refusal.retry_after_s)

        with ThreadPoolExecutor(min(_BATCH_THREADS, self._max_in_flight)) as threads:
            answers = [threads.submit(answer, prompt) for prompt in prompts]
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
        return self._host.explain(request, self.policy)[1]

    def count_prompt_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt or a conversation as the models read it; loads them, runs none."""
        return self._host.explain(make_request(prompt, Options()), self.policy)[0].prompt_tokens

    @property
    def latency_basis(self) -> str:
        """How and when the costs that plans are predicted with were measured; loads the models."""
        return self._host.load(self.policy)

    def load(self) -> Self:
        """Load the models now instead of at the first request."""
        self._host.load(self.policy)
        return self

    def close(self) -> None:
        """Keep what was learned and let go of the models; the next request loads them again."""
        self._host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(
        self, prompt: Prompt, options: Options, emit: Emit | None, cancelled: CancelFlag
    ) -> Result:
        request, policy = make_request(prompt, options), self.policy
        with self._lock:
            if self._in_flight >= self._max_in_flight:
                wait_s = self._interval_s * (self._in_flight - self._max_in_flight + 1)
                raise Overloaded(wait_s, max(_MIN_RETRY_S, wait_s), self._in_flight)
            self._in_flight += 1
        try:
            return self._host.answer(request, policy, emit, cancelled)
        finally:
            with self._lock:
                self._in_flight -= 1
                now = time.monotonic()
                self._interval_s += (now - self._answered_at - self._interval_s) / _INTERVALS
                self._answered_at = now


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
        workers: int = 0,
    ) -> Self:
        """See `Hybrid.from_policy`."""
        return cls(
            Hybrid.from_policy(
                policy,
                watch=watch,
                signals=signals,
                rule=rule,
                max_in_flight=max_in_flight,
                workers=workers,
            )
        )

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Result:
        """See `Hybrid.generate`; cancelling the task frees the models within one step."""
        cancelled = CancelFlag()
        work = partial(self._hybrid._answer, prompt, options, None, cancelled)
        try:
            return await to_thread.run_sync(
                work, limiter=CapacityLimiter(1), abandon_on_cancel=True
            )
        except get_cancelled_exc_class():
            cancelled.set()
            raise

    async def generate_batch(
        self, prompts: Iterable[Prompt], **options: Unpack[Options]
    ) -> list[Result]:
        """See `Hybrid.generate_batch`; the first error cancels the others."""
        asked = [*prompts]
        results: dict[int, Result] = {}
        limit = CapacityLimiter(_BATCH_THREADS)

        async def answer(place: int, prompt: Prompt) -> None:
            async with limit:
                while place not in results:
                    try:
                        results[place] = await self.generate(prompt, **options)
                    except Overloaded as refusal:
                        await sleep(refusal.retry_after_s)

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
                event := await to_thread.run_sync(
                    next, events, None, limiter=waiting, abandon_on_cancel=True
                )
            ) is not None:
                yield event
        finally:  # also while a thread waits for the next event: closing wakes it
            with CancelScope(shield=True):
                await to_thread.run_sync(events.close, limiter=CapacityLimiter(1))

    async def explain(self, prompt: Prompt, **options: Unpack[Options]) -> Plan:
        """See `Hybrid.explain`."""
        return await to_thread.run_sync(partial(self._hybrid.explain, prompt, **options))

    async def load(self) -> Self:
        """See `Hybrid.load`."""
        await to_thread.run_sync(self._hybrid.load)
        return self

    async def close(self) -> None:
        """See `Hybrid.close`."""
        await to_thread.run_sync(self._hybrid.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
