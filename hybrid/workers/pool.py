"""The workers of one `Hybrid`: each request goes to the one that has the fewest.

Time is the machine's monotonic clock, which all processes share: a budget runs on the way, too.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import cast

from hybrid.cores import given_cores, share_of
from hybrid.deadline import CancelFlag
from hybrid.pipeline import Custom, Emit
from hybrid.policies.schema import ModelsSection, Policy
from hybrid.types import Finished, Plan, Request, Result, Signals
from hybrid.workers.messages import Answer, Explain, Load, pickled
from hybrid.workers.process import WorkerProcess


class Workers:
    """`count` processes that share the processor's cores; each request goes to the least busy.

    Raises RequestError if the application's signals or its rule cannot be sent.
    """

    def __init__(self, count: int, custom: Custom) -> None:
        self._count, self._custom = count, pickled("signals and rule", custom)
        self._workers: dict[int, WorkerProcess] = {}
        self._models: ModelsSection | None = None
        self._lock = Lock()

    def answer(
        self,
        request: Request,
        policy: Policy,
        emit: Emit | None = None,
        cancelled: CancelFlag | None = None,
    ) -> Result:
        """See `Pipeline.answer`; a BackendError that can be retried if the process died."""
        pickle = pickled("checks", request)
        with self._least_busy(policy) as worker:
            question = Answer(pickle, time.monotonic(), emit is not None)
            result: Result = worker.ask(question, policy, emit, cancelled)
        if emit is not None:
            emit(Finished(result))
        return result

    def explain(self, request: Request, policy: Policy) -> tuple[Signals, Plan]:
        """See `Local.explain`."""
        question = Explain(pickled("checks", request))
        with self._least_busy(policy) as worker:
            decision: tuple[Signals, Plan] = worker.ask(question, policy)
        return decision

    def load(self, policy: Policy) -> str:
        """See `Local.load`."""
        with self._lock:
            return self._load(policy)

    def close(self) -> None:
        """Let all end what they do and keep what they learned, one after the other."""
        with self._lock:
            for worker in self._workers.values():
                worker.close()
            self._workers = {}

    @contextmanager
    def _least_busy(self, policy: Policy) -> Iterator[WorkerProcess]:
        with self._lock:
            alive = [worker for worker in self._workers.values() if worker.is_alive]
            if len(alive) < self._count or policy.models != self._models:
                self._load(policy)
            worker = min(self._workers.values(), key=lambda worker: worker.in_flight)
            worker.in_flight += 1
        try:
            yield worker
        finally:
            with self._lock:
                worker.in_flight -= 1

    def _load(self, policy: Policy) -> str:
        """Start who is missing. The first may measure the machine, so it loads alone."""
        alive = {number: worker for number, worker in self._workers.items() if worker.is_alive}
        cores = given_cores()
        started = {
            number: WorkerProcess(share_of(cores, number, self._count))
            for number in range(self._count)
            if number not in alive
        }
        load = Load(self._custom)
        try:
            bases = [worker.ask(load, policy) for worker in (*alive.values(), *started.values())]
        except BaseException:
            for worker in started.values():
                worker.close()
            raise
        self._workers = alive | started
        self._models = policy.models
        return cast(str, bases[0])
