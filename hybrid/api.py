"""`Hybrid` and `AsyncHybrid`: answers in an application, in blocking and in async code.

Models load at the first request, outside its budget. One pair answers one request at a time;
requests from several threads wait for each other.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event as Flag
from threading import Lock
from types import TracebackType
from typing import Self, Unpack

from anyio import CancelScope, to_thread

from hybrid.backends import Models, load_models
from hybrid.event_stream import EventStream
from hybrid.pipeline import Emit, Pipeline
from hybrid.policies.latency import load_or_measure
from hybrid.policies.loader import load_policy
from hybrid.policies.schema import Policy
from hybrid.requests import Options, Prompt, make_request
from hybrid.types import Event, Finished, Plan, Result


class Hybrid:
    """A policy and the models it names.

    with Hybrid.from_policy("balanced") as hybrid:
        result = hybrid.generate("sort up: 4 8 1 9 3", budget="300ms")
    """

    def __init__(self, policy: Policy, models: Models | None = None) -> None:
        self.policy = policy
        self._models = models
        self._pipeline: Pipeline | None = None
        self._lock = Lock()

    @classmethod
    def from_policy(cls, policy: str | Path | Policy = "balanced") -> Self:
        """Under a preset's name, a policy file or a policy; raises PolicyError. Loads no model."""
        return cls(policy if isinstance(policy, Policy) else load_policy(policy))

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Result:
        """The answer to a prompt, a conversation or a Request."""
        return self._answer(prompt, options, lambda event: None, Flag())

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> EventStream:
        """The events of an answer as they happen, `Finished` last; closing it cancels the work."""
        return EventStream(lambda emit, cancelled: self._answer(prompt, options, emit, cancelled))

    def explain(self, prompt: Prompt, **options: Unpack[Options]) -> Plan:
        """The decision that `generate` would take, with what was rejected and why."""
        request = make_request(prompt, options)
        with self._lock:
            return self._ready().plan(request)[1]

    def load(self) -> Self:
        """Load the models now instead of at the first request."""
        with self._lock:
            self._ready()
        return self

    def close(self) -> None:
        """Let go of the models; the next request would load them again."""
        with self._lock:
            self._pipeline = None

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
            return self._ready().answer(request, emit, cancelled)

    def _ready(self) -> Pipeline:
        if self._pipeline is None:
            wanted = self.policy.models
            models = self._models or load_models(wanted.drafter, wanted.refiner)
            latency = load_or_measure(self.policy, models.drafter, models.refiner)
            self._pipeline = Pipeline(self.policy, models, latency)
        return self._pipeline


class AsyncHybrid:
    """`Hybrid` for async code; the work runs in a thread and stops when its task is cancelled."""

    def __init__(self, hybrid: Hybrid) -> None:
        self._hybrid = hybrid

    @classmethod
    def from_policy(cls, policy: str | Path | Policy = "balanced") -> Self:
        """See `Hybrid.from_policy`."""
        return cls(Hybrid.from_policy(policy))

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Result:
        """See `Hybrid.generate`; cancelling the task frees the models within one step."""
        async for event in self.stream(prompt, **options):
            if isinstance(event, Finished):
                return event.result
        raise AssertionError("a stream ends with Finished or an error")

    async def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncIterator[Event]:
        """See `Hybrid.stream`."""
        events = self._hybrid.stream(prompt, **options)
        try:
            while (event := await to_thread.run_sync(next, events, None)) is not None:
                yield event
        finally:  # also while a thread waits for the next event: closing wakes it
            with CancelScope(shield=True):
                await to_thread.run_sync(events.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._hybrid.close()
