"""The models in this process, and the pipeline over them.

They load at the first request, outside its budget, and again when a policy names others. A thread
of its own loads them, so that whoever waits for it can go away.
"""

import gc
import logging
import os
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Event, Lock, Thread

from hybrid.backends import Models, load_models
from hybrid.deadline import CancelFlag
from hybrid.errors import BackendError, Cancelled
from hybrid.pipeline import Custom, Emit, Pipeline
from hybrid.policies.calibration import load_or_measure
from hybrid.policies.history import History
from hybrid.policies.measurements import history_file
from hybrid.policies.schema import Policy
from hybrid.process_end import work_in_progress
from hybrid.types import Plan, Request, Result, Signals

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A pipeline, and how and when the costs that its plans are predicted with were measured."""

    pipeline: Pipeline
    latency_basis: str


class Local:
    """Answers in the threads that ask; any number may at once.

    `models` are used instead of those that a policy names, if they are given.
    """

    def __init__(self, custom: Custom, models: Models | None = None) -> None:
        self._custom, self._models = custom, models
        self._loading: Future[_Loaded] | None = None
        self._loading_for: Policy | None = None
        self._process = os.getpid()
        self._lock = Lock()

    def answer(
        self,
        request: Request,
        policy: Policy,
        emit: Emit | None = None,
        cancelled: CancelFlag | None = None,
        started: float | None = None,
    ) -> Result:
        """See `Pipeline.answer`; the models load first if need be, outside the budget."""
        asked = time.monotonic() if started is None else started
        future = self._future(policy)
        was_loaded = future.done()
        pipeline = _wait(future, cancelled or CancelFlag()).pipeline
        if pipeline.policy is not policy:
            pipeline = replace(pipeline, policy=policy)
        with work_in_progress.running():
            work_in_progress.raise_if_ending()
            return pipeline.answer(request, emit, cancelled, asked if was_loaded else None)

    def explain(self, request: Request, policy: Policy) -> tuple[Signals, Plan]:
        """The decision that `answer` would take, and what it rests on."""
        pipeline = _wait(self._future(policy), CancelFlag()).pipeline
        return replace(pipeline, policy=policy).plan(request)

    def load(self, policy: Policy) -> str:
        """Load the models now; how and when the costs that plans are predicted with were measured.

        Raises CheckpointError, CapabilityError or BackendError.
        """
        return _wait(self._future(policy), CancelFlag()).latency_basis

    def close(self) -> None:
        """Keep what was learned and let go of the models."""
        if self._process != os.getpid():  # what a forked process learned is its parent's to keep
            return
        with self._lock:
            loading, self._loading = self._loading, None
        if loading is not None:
            _let_go(loading)

    def _future(self, policy: Policy) -> "Future[_Loaded]":
        """The load of a policy's models: done, under way, or begun now."""
        if self._process != os.getpid() and self._loading is not None:
            raise BackendError(
                "load",
                f"this process was forked from process {self._process} after the models were "
                "loaded there, and their threads do not exist here; load them in each process, or "
                "start processes with multiprocessing's 'spawn'",
            )
        with self._lock:
            before = self._loading
            if before is not None and before.done() and before.exception() is not None:
                before = None  # it failed: try again
            if before is None or self._models_of(self._loading_for) != self._models_of(policy):
                future: Future[_Loaded] = Future()
                self._loading, self._loading_for = future, policy
                self._process = os.getpid()
                arguments = (policy, future, before)
                Thread(target=self._load, args=arguments, name="hybrid-load", daemon=True).start()
            assert self._loading is not None
            return self._loading

    def _models_of(self, policy: Policy | None) -> object:
        return policy and policy.models

    def _load(
        self, policy: Policy, future: "Future[_Loaded]", before: "Future[_Loaded] | None"
    ) -> None:
        started = time.monotonic()
        try:
            models = self._models or load_models(policy.models.drafter, policy.models.refiner)
            if before is not None:
                _let_go(before)
            measured = load_or_measure(policy, models.drafter, models.refiner)
            history = History(measured.costs, history_file(policy))
            # What is loaded stays. To look through it for garbage stops all requests for 95 ms.
            gc.freeze()
            pipeline = Pipeline(policy, models, measured.costs, self._custom, history)
            log.info("loaded %s in %.1f s", policy.models, time.monotonic() - started)
            basis = "; ".join(filter(None, (measured.description, history.note)))
            future.set_result(_Loaded(pipeline, basis))
        except BaseException as error:  # it is for whoever waits
            future.set_exception(error)


def _wait(future: "Future[_Loaded]", cancelled: CancelFlag) -> _Loaded:
    """What was loaded, once it is; raises Cancelled as soon as the caller has gone away."""
    if not future.done():
        changed = Event()
        future.add_done_callback(lambda done: changed.set())
        with cancelled.calling(changed.set):
            changed.wait()
        if not future.done():
            raise Cancelled("cancelled by the caller while the models were loading")
    return future.result()


def _let_go(loading: "Future[_Loaded]") -> None:
    """Save what was learned with models that nobody will ask again."""
    try:
        history = loading.result().pipeline.history
    except Exception:  # there was nothing to let go of
        return
    if history is not None:
        history.save()
    gc.unfreeze()
