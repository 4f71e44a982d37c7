"""The workers of one `Hybrid`: each request goes to the one that has the fewest.

Time is the machine's monotonic clock, which all processes share: a budget runs on the way, too.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import cast

from hybrid.cores import given_cores, share_of
from hybrid.deadline import CancelFlag
from hybrid.errors import HybridError
from hybrid.pipeline import Custom, Emit
from hybrid.policies.schema import ModelsSection, Policy
from hybrid.types import Finished, Plan, Request, Result, Signals
from hybrid.workers.messages import Answer, Explain, Load, pickled
from hybrid.workers.process import WorkerProcess

log = logging.getLogger(__name__)


class Workers:
    """`count` processes that share the processor's cores; each request goes to the least busy.

    Raises RequestError if the application's signals or its rule cannot be sent.
    """

    def __init__(self, count: int, custom: Custom) -> None:
        self._count, self._custom = count, pickled("signals and rule", custom)
        self._workers: dict[int, WorkerProcess] = {}
        self._models: ModelsSection | None = None
        self._lock = Lock()
        self._restarting: Thread | None = None

    def answer(
        self,
        request: Request,
        policy: Policy,
        emit: Emit | None = None,
        cancelled: CancelFlag | None = None,
    ) -> Result:
        """See `Pipeline.answer`; a BackendError that can be retried if the process died."""
        asked, pickle = time.monotonic(), pickled("checks", request)
        with self._least_busy(policy) as (worker, was_loaded):
            started = asked if was_loaded else time.monotonic()  # loading is outside the budget
            question = Answer(pickle, started, emit is not None)
            result: Result = worker.ask(question, policy, emit, cancelled)
        if emit is not None:
            emit(Finished(result))
        return result

    def explain(self, request: Request, policy: Policy) -> tuple[Signals, Plan]:
        """See `Local.explain`."""
        question = Explain(pickled("checks", request))
        with self._least_busy(policy) as (worker, _):
            decision: tuple[Signals, Plan] = worker.ask(question, policy)
        return decision

    def load(self, policy: Policy) -> str:
        """See `Local.load`; also starts anew what has died."""
        self._wait_for_restart()
        with self._lock:
            return self._load(policy)

    def close(self) -> None:
        """Let all end what they do and keep what they learned, one after the other."""
        self._wait_for_restart()
        with self._lock:
            for worker in self._workers.values():
                worker.close()
            self._workers = {}

    def _wait_for_restart(self) -> None:
        if (restarting := self._restarting) is not None:
            restarting.join()

    @contextmanager
    def _least_busy(self, policy: Policy) -> Iterator[tuple[WorkerProcess, bool]]:
        """The worker with the fewest requests, and whether all were loaded already."""
        with self._lock:
            alive = {number: worker for number, worker in self._workers.items() if worker.is_alive}
            was_loaded = bool(alive) and policy.models == self._models
            if not was_loaded:
                self._load(policy)
                alive = self._workers
            elif len(alive) < self._count and self._restarting is None:
                self._restarting = Thread(target=self._restart, args=(policy,), daemon=True)
                self._restarting.start()
            worker = min(alive.values(), key=lambda worker: worker.in_flight)
            worker.in_flight += 1
        try:
            yield worker, was_loaded
        finally:
            with self._lock:
                worker.in_flight -= 1

    def _load(self, policy: Policy) -> str:
        """Start who is missing. The first may measure the machine, so it loads alone."""
        alive = {number: worker for number, worker in self._workers.items() if worker.is_alive}
        started = self._start({*range(self._count)} - {*alive})
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

    def _restart(self, policy: Policy) -> None:
        """Replace workers that have died, while the others go on answering."""
        try:
            with self._lock:
                dead = {number for number, one in self._workers.items() if not one.is_alive}
            started = self._start(dead)
            for worker in started.values():
                worker.ask(Load(self._custom), policy)
            with self._lock:
                if self._workers and policy.models == self._models:
                    self._workers |= started
                    started = {}
            for worker in started.values():  # closed meanwhile, or other models are in use
                worker.close()
        except HybridError as error:
            log.warning("a worker that has died could not be replaced: %s", error)
        finally:
            self._restarting = None

    def _start(self, numbers: Iterable[int]) -> dict[int, WorkerProcess]:
        cores = given_cores()
        return {n: WorkerProcess(share_of(cores, n, self._count)) for n in sorted(numbers)}
