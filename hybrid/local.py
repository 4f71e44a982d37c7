"""The models in this process, and the pipeline over them.

They load at the first request, outside its budget, and again when a policy names others.
"""

import gc
from dataclasses import replace
from threading import Lock

from hybrid.backends import Models, load_models
from hybrid.deadline import CancelFlag
from hybrid.pipeline import Custom, Emit, Pipeline
from hybrid.policies.calibration import load_or_measure
from hybrid.policies.history import History
from hybrid.policies.measurements import history_file
from hybrid.policies.schema import Policy
from hybrid.types import Plan, Request, Result, Signals


class Local:
    """Answers in the threads that ask; any number may at once.

    `models` are used instead of those that a policy names, if they are given.
    """

    def __init__(self, custom: Custom, models: Models | None = None) -> None:
        self._custom, self._models = custom, models
        self._pipeline: Pipeline | None = None
        self._latency_basis = ""
        self._lock = Lock()
        self._in_flight = 0

    def answer(
        self,
        request: Request,
        policy: Policy,
        emit: Emit | None = None,
        cancelled: CancelFlag | None = None,
        started: float | None = None,
    ) -> Result:
        """See `Pipeline.answer`; the models load first if need be."""
        with self._lock:
            pipeline, load = self._ready(policy), self._in_flight
            self._in_flight += 1
        try:
            return pipeline.answer(request, emit, cancelled, load, started)
        finally:
            with self._lock:
                self._in_flight -= 1

    def explain(self, request: Request, policy: Policy) -> tuple[Signals, Plan]:
        """The decision that `answer` would take, and what it rests on."""
        with self._lock:
            return self._ready(policy).plan(request, self._in_flight)

    def load(self, policy: Policy) -> str:
        """Load the models now; how and when the costs that plans are predicted with were measured.

        Raises CheckpointError, CapabilityError or BackendError.
        """
        with self._lock:
            self._ready(policy)
            return self._latency_basis

    def close(self) -> None:
        """Keep what was learned and let go of the models."""
        with self._lock:
            self._let_go()

    def _ready(self, policy: Policy) -> Pipeline:
        before = self._pipeline
        if before is None or before.policy.models != policy.models:
            models = self._models or load_models(policy.models.drafter, policy.models.refiner)
            self._let_go()
            measured = load_or_measure(policy, models.drafter, models.refiner)
            history = History(measured.costs, history_file(policy))
            self._latency_basis = "; ".join(filter(None, (measured.description, history.note)))
            # What is loaded stays. To look through it for garbage stops all requests for 95 ms.
            gc.freeze()
            self._pipeline = Pipeline(policy, models, measured.costs, self._custom, history)
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
